//! The one error type: who, what was expected, what was found, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// Everything that can go wrong, in terms of the person who has to put it right.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file, key, argument or request that cannot be used as it is.
    Invalid {
        /// The file, tensor, argument or op that is wrong.
        who: String,
        /// What would have been acceptable.
        expected: String,
        /// What was there instead.
        found: String,
        /// What the reader can do about it; empty when `expected` says it all.
        advice: String,
    },
    /// The operating system refused: missing file, full disk, no permission.
    Io {
        /// What was being done, such as `read` or `write`.
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A device that is absent, too small, or has failed.
    Device { device: String, message: String },
    /// The caller asked for the work to stop.
    Cancelled,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `who` is wrong: it should have been `expected` but is `found`.
    pub fn invalid(
        who: impl fmt::Display,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Error::Invalid {
            who: who.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
            advice: String::new(),
        }
    }

    /// Adds what the reader can do about an [`Error::Invalid`]; other kinds are returned unchanged.
    pub fn advise(mut self, text: impl fmt::Display) -> Self {
        if let Error::Invalid { advice, .. } = &mut self {
            *advice = text.to_string();
        }
        self
    }

    /// Puts `outer` (a file name, say) before the `who` of an [`Error::Invalid`].
    pub fn within(mut self, outer: impl fmt::Display) -> Self {
        if let Error::Invalid { who, .. } = &mut self {
            *who = format!("{outer}: {who}");
        }
        self
    }

    /// The operating system refused `action` on `path`.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { action, path: path.as_ref().to_path_buf(), source }
    }

    /// `device` cannot do what was asked of it.
    pub fn device(device: impl fmt::Display, message: impl fmt::Display) -> Self {
        Error::Device { device: device.to_string(), message: message.to_string() }
    }

    /// The exit status of a command that ends with this error: 2 bad input, 3 device, 130
    /// cancelled.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Invalid { .. } | Error::Io { .. } => 2,
            Error::Device { .. } => 3,
            Error::Cancelled => 130,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Invalid { who, expected, found, advice } => {
                write!(f, "{who}: expected {expected}, found {found}")?;
                if advice.is_empty() { Ok(()) } else { write!(f, "\n  {advice}") }
            }
            Error::Io { action, path, source } => {
                write!(f, "{}: cannot {action}: {source}", path.display())
            }
            Error::Device { device, message } => write!(f, "{device}: {message}"),
            Error::Cancelled => write!(f, "cancelled"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_who_expected_found_and_advice() {
        let e = Error::invalid("w", "(4096)", "(1024)").within("layernorm").advise("convert again");
        assert_eq!(e.to_string(), "layernorm: w: expected (4096), found (1024)\n  convert again");
        assert_eq!(e.exit_code(), 2);
    }
}
