//! The model that comes inside this program: what `recipes/phantom` made, in bf16.

use crate::{Error, Result};
use std::path::Path;

/// A file of the model folder and what is in it.
type Embedded = (&'static str, &'static [u8]);

/// The files of its model folder, as they are in the sources under `models/phantom`.
const FILES: [Embedded; 7] = [
    ("config.json", include_bytes!("../../models/phantom/config.json")),
    ("tokenizer.json", include_bytes!("../../models/phantom/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../models/phantom/tokenizer_config.json")),
    ("preprocessor_config.json", include_bytes!("../../models/phantom/preprocessor_config.json")),
    ("generation_config.json", include_bytes!("../../models/phantom/generation_config.json")),
    ("model.safetensors", include_bytes!("../../models/phantom/model.safetensors")),
    ("checksums.json", include_bytes!("../../models/phantom/checksums.json")),
];

/// Writes the embedded model into `folder`, which is there: an engine maps its weights.
///
/// # Errors
/// A folder that cannot be written to.
pub fn unpack(folder: &Path) -> Result<()> {
    for (name, bytes) in FILES {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|e| Error::io("write", &path, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small() {
        let bytes: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= 4 << 20, "{bytes} bytes");
    }
}
