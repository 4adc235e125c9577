//! Opening a device, with what its launches are laid out by.

use super::gemm;
use crate::Result;
use crate::device::{Device, Stream};

impl Device {
    /// Opens the device. `threads` is the size of the host's pool; 0 means one per core.
    ///
    /// Here and not in `device`, which knows no tiles: a table of them that cannot be used is to be
    /// known before the first launch, which has no way to say so.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) for a CUDA card that is not there or that there are
    /// no kernels for: saying so beats running on the host unasked. What is wrong with the file
    /// that `MEDFLAMINGO_TILES` names, unless launches are the host's.
    pub fn open(self, threads: usize) -> Result<Stream> {
        let stream = self.connect(threads)?;
        if stream.chip().is_some() {
            gemm::read_tiles()?;
        }
        Ok(stream)
    }
}
