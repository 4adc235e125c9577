//! Small JSON files of the inputs, read key by key: what is missing or odd is said with its path.

use crate::{Error, Result};
use serde_json::Value;
use std::fmt::Display;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The largest configuration file that is read, bytes.
const MAX_BYTES: u64 = 4 << 20;

/// A JSON object and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// The file, and the key inside it.
    pub at: String,
    pub value: Value,
}

impl Object {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that is missing, large, or not a JSON object.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
        let at = path.display().to_string();
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::invalid(at, format!("at most {MAX_BYTES} bytes"), "more"));
        }
        match serde_json::from_slice(&bytes) {
            Ok(value @ Value::Object(_)) => Ok(Object { at, value }),
            Ok(_) => Err(Error::invalid(at, "a JSON object", "another value")),
            Err(e) => Err(Error::invalid(at, "a JSON object", e)),
        }
    }

    /// Reads a file if it exists.
    pub(super) fn read_optional(path: PathBuf) -> Result<Option<Self>> {
        if path.exists() { Self::read(&path).map(Some) } else { Ok(None) }
    }

    /// The object under `key`, if there is one.
    pub(super) fn object(&self, key: &str) -> Option<Object> {
        let value = self.value.get(key).filter(|v| v.is_object())?;
        Some(Object { at: format!("{}: {key}", self.at), value: value.clone() })
    }

    /// The value under the first of `keys` that is there and not null.
    pub(super) fn get(&self, keys: &[&str]) -> Option<&Value> {
        keys.iter().find_map(|key| self.value.get(*key).filter(|v| !v.is_null()))
    }

    fn wrong(&self, keys: &[&str], expected: impl Display) -> Error {
        let key = keys.iter().find(|k| self.value.get(**k).is_some()).unwrap_or(&keys[0]);
        let mut found = self.value.get(*key).map_or("nothing".into(), Value::to_string);
        if found.len() > 100 {
            found = "something longer".into();
        }
        Error::invalid(format!("{}: {key}", self.at), expected, found)
    }

    /// A whole number above zero.
    pub(super) fn size(&self, keys: &[&str]) -> Result<usize> {
        self.size_or(keys, 0)
    }

    /// A whole number above zero; `default` where nothing is said and it is not zero.
    pub(super) fn size_or(&self, keys: &[&str], default: usize) -> Result<usize> {
        let n = match self.get(keys) {
            None => Some(default),
            Some(v) => v.as_u64().and_then(|n| usize::try_from(n).ok()),
        };
        n.filter(|&n| n > 0 && n < 1 << 32)
            .ok_or_else(|| self.wrong(keys, "a whole number above 0"))
    }

    /// A number above zero, as f32 too.
    pub(super) fn number_or(&self, keys: &[&str], default: f64) -> Result<f64> {
        let x = self.get(keys).map_or(Some(default), Value::as_f64);
        let is_fine = |x: &f64| *x as f32 > 0.0 && (*x as f32).is_finite();
        x.filter(is_fine).ok_or_else(|| self.wrong(keys, "a number above 0"))
    }

    pub(super) fn flag_or(&self, keys: &[&str], default: bool) -> Result<bool> {
        let flag = self.get(keys).map_or(Some(default), Value::as_bool);
        flag.ok_or_else(|| self.wrong(keys, "true or false"))
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.value.get(key).and_then(Value::as_str)
    }

    /// Refuses any value of `key` but null, nothing, and those in `fine`.
    ///
    /// # Errors
    /// Names the key, what is supported and what is there.
    pub(super) fn only(&self, key: &str, fine: &[Value]) -> Result<()> {
        let Some(value) = self.get(&[key]) else { return Ok(()) };
        let is_equal = |f: &Value| f == value || (f.is_number() && f.as_f64() == value.as_f64());
        if fine.iter().any(is_equal) {
            return Ok(());
        }
        let listed: Vec<_> = fine.iter().map(Value::to_string).collect();
        let expected = if fine.is_empty() { "null".into() } else { listed.join(" or ") };
        Err(self.wrong(&[key], expected).advise("this variant of the model is not supported"))
    }
}
