//! Where launches run. A launch is data - a kernel, a dtype, a params struct - and a [`Stream`] is
//! whatever can run it. Only this folder knows which device that is; only it uses cudarc.

mod buffer;
mod cuda;
mod form;
mod geometry;
mod host;
mod modules;
mod nvtx;
mod observer;
mod pool;
mod products;
#[cfg(feature = "simt")]
mod simt;

pub use buffer::{Buffer, Landing};
pub(crate) use cuda::Cells;
pub use cuda::{CudaCard, Nccl, NcclTicket, cuda_cards};
pub use form::Form;
pub use geometry::{Chip, Geometry, Swizzle, TensorMap};
pub use host::{Host, Isa};
pub use modules::{MODULES, TOOLKIT};
pub use observer::{Launched, OpenPhase, Phase, Recording};
pub use pool::Pool;
pub use products::Products;
#[cfg(feature = "simt")]
pub use simt::Simt;

use crate::{DType, Error, Result};
use observer::Observer;
use std::cell::OnceCell;
use std::ffi::c_void;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

/// The device a user asks for. A closed set: portability is [`Stream::launch`], not a trait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A GPU if this build and machine can use one, else the host.
    Auto,
    /// The native twins on this machine's processor.
    Host,
    /// The CUDA card with this ordinal.
    Cuda(usize),
    /// The kernels under the emulator, laid out as for this card. In tests only.
    #[cfg(feature = "simt")]
    Simt(Chip),
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let wrong = || Error::invalid("device", "auto, cpu, cuda or cuda:N", format!("`{s}`"));
        match s {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Host),
            "cuda" => Ok(Device::Cuda(0)),
            #[cfg(feature = "simt")]
            "simt" | "simt:h200" => Ok(Device::Simt(Chip::H200)),
            #[cfg(feature = "simt")]
            "simt:a100" => Ok(Device::Simt(Chip::A100)),
            _ => {
                let n = s.strip_prefix("cuda:").ok_or_else(wrong)?;
                n.parse().map(Device::Cuda).map_err(|_| wrong())
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => write!(f, "auto"),
            Device::Host => write!(f, "cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
            #[cfg(feature = "simt")]
            Device::Simt(chip) => write!(f, "simt:sm_{}", chip.capability),
        }
    }
}

impl Device {
    /// What `auto` is on this machine: the first card that there are kernels for, or the host and,
    /// if NVIDIA's driver is here, why not a card.
    pub fn auto() -> (Self, Option<String>) {
        if !cuda::has_driver() {
            return (Device::Host, None);
        }
        let cards = match cuda_cards() {
            Ok(cards) => cards,
            Err(why) => return (Device::Host, Some(why.to_string())),
        };
        let mut whys = Vec::new();
        for (n, card) in cards.iter().enumerate() {
            match card.kernels() {
                Ok(_) => return (Device::Cuda(n), None),
                Err(why) => whys.push(format!("cuda:{n}: {}: {why}", card.name)),
            }
        }
        (Device::Host, Some(whys.join("; ")))
    }

    /// As [`Device::open`], but without the tables of tiles that `ops` reads for it.
    ///
    /// # Errors
    /// Those of [`Device::open`] for a card.
    pub(crate) fn connect(self, threads: usize) -> Result<Stream> {
        match self {
            Device::Host => Ok(Stream::new(Host::new(threads))),
            Device::Cuda(n) => Ok(Stream::on(Backend::Cuda(cuda::Queue::open(n)?))),
            Device::Auto => {
                let (device, why) = Self::auto();
                let opened = device.connect(threads).map(|stream| (stream, why));
                let (mut stream, why) = match opened {
                    Err(why) if device != Device::Host => {
                        (Device::Host.connect(threads)?, Some(why.to_string()))
                    }
                    opened => opened?,
                };
                stream.fallback = why;
                Ok(stream)
            }
            #[cfg(feature = "simt")]
            Device::Simt(chip) => Stream::emulated(chip),
        }
    }
}

/// Bytes that must move and operations that must be done: the roofline of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Bytes read and written at least once.
    pub bytes: f64,
    /// Floating-point operations, a multiply-add counted as two.
    pub flops: f64,
}

/// A native implementation of a kernel: the whole grid on the host.
///
/// # Safety
/// Every pointer in the params is valid for the extent its contract states.
pub type Twin<P> = unsafe fn(&P, &Host);

/// The static description of an entry family.
pub struct Kernel<P: 'static> {
    /// The entry is `{name}_{dtype}` in `kernels/<stem>.cu`.
    pub name: &'static str,
    /// One function per storage type.
    pub twins: &'static [(DType, Twin<P>)],
    /// The entry's variant, grid, block and shared memory on a card; pure.
    pub geometry: fn(&P, DType, &Chip) -> Geometry,
    /// Bytes and operations of a launch; pure, and out of the params' numbers alone: what they
    /// point at is on a card.
    pub cost: fn(&P, DType) -> Cost,
    /// How many `i64` at the end of the params are for `cost` only: launches that differ in nothing
    /// else are the same launch.
    pub accounting: usize,
}

/// The twins of a generic function for the three storage types.
#[macro_export]
macro_rules! twins {
    ($f:ident) => {
        &[
            ($crate::DType::F32, $f::<f32>),
            ($crate::DType::BF16, $f::<half::bf16>),
            ($crate::DType::F16, $f::<half::f16>),
        ]
    };
}

/// What runs the launches of a stream.
enum Backend {
    Host(Host),
    Cuda(Arc<cuda::Queue>),
    #[cfg(feature = "simt")]
    Simt(simt::Queue),
    /// Runs nothing: what a model would ask of a card that is not there.
    Plan(Chip),
}

/// An ordered queue of launches on one device, and the memory they work on.
pub struct Stream {
    backend: Backend,
    observer: Observer,
    workspace: OnceCell<Buffer>,
    /// Why `auto` is the host on a machine with NVIDIA's driver.
    fallback: Option<String>,
    products: Products,
}

impl Stream {
    /// A stream of launches on `host`.
    pub fn new(host: Host) -> Self {
        Stream::on(Backend::Host(host))
    }

    /// A stream on this machine's processor; `threads` 0 means one per core.
    pub fn host(threads: usize) -> Self {
        Stream::new(Host::new(threads))
    }

    /// A stream of the real kernels under the emulator, laid out as for `chip`.
    ///
    /// # Errors
    /// If the kernels do not compile.
    #[cfg(feature = "simt")]
    pub fn emulated(chip: Chip) -> Result<Self> {
        Ok(Stream::on(Backend::Simt(simt::Queue { simt: Simt::kernels()?, chip })))
    }

    /// Another stream of this card's queue, for tests of many cases: opening the card once more
    /// would load all kernels once more. None if this is no card's.
    #[cfg(feature = "simt")]
    pub fn beside(&self) -> Option<Self> {
        match &self.backend {
            Backend::Cuda(queue) => Some(Stream::on(Backend::Cuda(queue.clone()))),
            _ => None,
        }
    }

    /// A stream that runs nothing but records, laid out as for `chip`: its [`Stream::recording`]
    /// says what would be launched. Memory is the host's and stays as it is.
    pub fn planning(chip: Chip) -> Self {
        let stream = Stream::on(Backend::Plan(chip));
        stream.record();
        stream
    }

    fn on(backend: Backend) -> Self {
        let (workspace, fallback, products) = (OnceCell::new(), None, Products::Own);
        Stream { backend, observer: Observer::new(), workspace, fallback, products }
    }

    /// Launches are written down from here on, with their times; on a card they run one by one for
    /// it, with events around each.
    pub fn record(&self) {
        if let Backend::Cuda(queue) = &self.backend {
            // A queue that has failed says so at its next launch.
            let _ = queue.begin_timing();
        }
        self.observer.record();
    }

    /// What ran since [`Stream::record`]; the recording ends.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has failed.
    pub fn recording(&self) -> Result<Recording> {
        let mut recording = self.observer.take();
        if let Backend::Cuda(queue) = &self.backend {
            for (launch, (start_us, us)) in recording.launches.iter_mut().zip(queue.end_timing()?) {
                (launch.start_us, launch.us) = (start_us, us);
            }
        }
        Ok(recording)
    }

    /// How long the launches of `body` take together, us; waits for them.
    ///
    /// # Errors
    /// Those of `body`; [`Error::Device`] if the device has failed.
    pub fn time(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        if let Backend::Cuda(queue) = &self.backend {
            return queue.time(body);
        }
        let began = Instant::now();
        body()?;
        Ok(began.elapsed().as_secs_f64() * 1e6)
    }

    /// True if a profiler watches this process: its figures are the ones that count.
    pub fn is_profiled(&self) -> bool {
        nvtx::is_heard()
    }

    /// What is launched until the result is dropped is `name`, in recordings and to a profiler.
    pub fn phase(&self, name: &'static str) -> OpenPhase<'_> {
        self.observer.phase(name)
    }

    /// Scratch for one launch at a time, [`Stream::WORKSPACE`] bytes; its first 64 KiB are `u32`
    /// counters, which every launch finds and leaves at 0. Null on the host, whose twins need none.
    ///
    /// # Errors
    /// [`Error::Device`] when there is not that much memory.
    pub fn workspace(&self) -> Result<*mut c_void> {
        if let Backend::Host(_) = self.backend {
            return Ok(std::ptr::null_mut());
        }
        if self.workspace.get().is_none() {
            let _ = self.workspace.set(self.zeros(Self::WORKSPACE)?);
        }
        Ok(self.workspace.get().map_or(std::ptr::null_mut(), |b| b.ptr().cast()))
    }

    /// Bytes of [`Stream::workspace`].
    pub const WORKSPACE: usize = 32 << 20;

    /// Zeroed device memory. On the host untouched pages cost nothing.
    ///
    /// # Errors
    /// [`Error::Device`] when there is not that much memory.
    pub fn zeros(&self, bytes: usize) -> Result<Buffer> {
        match &self.backend {
            Backend::Cuda(queue) => Ok(Buffer::on_card(queue.zeros(bytes)?, bytes)),
            _ => Buffer::zeros(bytes),
        }
    }

    /// Device memory that holds anything.
    ///
    /// # Errors
    /// As [`Stream::zeros`].
    pub fn room(&self, bytes: usize) -> Result<Buffer> {
        match &self.backend {
            Backend::Cuda(queue) => Ok(Buffer::on_card(queue.allocate(bytes)?, bytes)),
            _ => Buffer::zeros(bytes),
        }
    }

    /// Copies mapped files into one buffer of the card: the buffer, and where in it each begins.
    /// None where kernels read the mapping.
    ///
    /// # Errors
    /// [`Error::Device`] when there is not that much memory.
    pub fn place(&self, mapped: &[Buffer]) -> Result<Option<(Buffer, Vec<usize>)>> {
        match &self.backend {
            Backend::Cuda(queue) => Buffer::placed(queue, mapped).map(Some),
            _ => Ok(None),
        }
    }

    /// Free memory of the card, bytes; none on the host, whose memory is the system's.
    ///
    /// # Errors
    /// [`Error::Device`] if the card has failed.
    pub fn free_memory(&self) -> Result<Option<usize>> {
        match &self.backend {
            Backend::Cuda(queue) => Ok(Some(queue.memory()?.0)),
            _ => Ok(None),
        }
    }

    /// Runs `body`, whose launches may repeat: on a card they become one launch of a graph, made
    /// when they are first seen. Its writes to device memory come before all its launches; reads
    /// and copies in it first run what came before them. Its launches overlap, as in
    /// [`Stream::overlapping`].
    ///
    /// # Errors
    /// Those of `body`, whose launches then may not have run.
    pub fn step<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        self.collect(None, body)
    }

    /// As [`Stream::step`], of launches that `form` stands for: where a graph of that form is
    /// known, it runs and `body` does not, unless somebody watches every launch. So `body` does
    /// nothing but launch.
    ///
    /// # Errors
    /// Those of [`Stream::step`].
    pub fn step_of(&self, form: Form, body: impl FnOnce() -> Result<()>) -> Result<()> {
        if let Backend::Cuda(queue) = &self.backend
            && !self.observer.is_watching()
            && let Some(launches) = queue.replay(&form)?
        {
            self.observer.count(launches);
            return Ok(());
        }
        self.collect(Some(form), body)
    }

    fn collect<T>(&self, form: Option<Form>, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let Backend::Cuda(queue) = &self.backend else { return body() };
        queue.begin_step(form)?;
        match body() {
            Ok(value) => queue.end_step().map(|()| value),
            Err(e) => {
                queue.drop_step();
                Err(e)
            }
        }
    }

    /// Runs `body`, whose launches on Hopper may begin while the ones before them end. Products
    /// then read B, norms their vectors, `attention_decode` older keys and `cross_attention` those
    /// of images before the launch before them has ended: no launch of `body` may write weights, or
    /// keys that another one reads there.
    ///
    /// # Errors
    /// Those of `body`.
    pub fn overlapping<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let Backend::Cuda(queue) = &self.backend else { return body() };
        queue.set_overlapping(true);
        let result = body();
        queue.set_overlapping(false);
        result
    }

    /// Graphs that were made of steps, and steps that ran as one made before.
    pub fn graphs(&self) -> (u64, u64) {
        match &self.backend {
            Backend::Cuda(queue) => queue.graphs(),
            _ => (0, 0),
        }
    }

    /// Device memory holding `bytes`.
    pub fn upload(&self, bytes: &[u8]) -> Result<Buffer> {
        let mut buffer = self.room(bytes.len())?;
        buffer.write(0, bytes)?;
        Ok(buffer)
    }

    /// Runs `kernel` with `params`. `MEDFLAMINGO_TRACE=1` prints each launch before it runs.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the kernel has no entry for `dtype`.
    ///
    /// # Safety
    /// Every pointer in `params` is valid on this device for the extent the contract states, and
    /// what the kernel writes is not borrowed elsewhere. The wrappers in `ops` establish this.
    pub unsafe fn launch<P>(&self, kernel: &Kernel<P>, dtype: DType, params: &P) -> Result<()> {
        let twin = kernel.twins.iter().find(|(d, _)| *d == dtype);
        let Some((_, twin)) = twin else {
            let known: Vec<_> = kernel.twins.iter().map(|(d, _)| d.name()).collect();
            return Err(Error::invalid(kernel.name, known.join(", "), dtype));
        };
        let geometry = self.chip().map(|chip| (kernel.geometry)(params, dtype, chip));
        if geometry.as_ref().is_some_and(Geometry::is_empty) {
            return Ok(());
        }
        let is_observed = self.observer.before(kernel, dtype, geometry.as_ref(), params);
        let result = match (&self.backend, &geometry) {
            (Backend::Host(host), _) => {
                // SAFETY: the caller's contract is the twin's.
                unsafe { twin(params, host) };
                Ok(())
            }
            (Backend::Cuda(queue), Some(geometry)) => {
                const { assert!(size_of::<P>() <= cuda::MOST_PARAMS) };
                let start = std::ptr::from_ref(params).cast();
                let accounting = kernel.accounting * size_of::<i64>();
                // SAFETY: params are plain bytes without gaps (`tests/contracts.rs`); the rest is
                // the caller's.
                unsafe {
                    let bytes = std::slice::from_raw_parts(start, size_of::<P>());
                    queue.launch((kernel.name, dtype), geometry, bytes, accounting)
                }
            }
            #[cfg(feature = "simt")]
            (Backend::Simt(queue), Some(geometry)) => {
                let entry = geometry.entry(kernel.name, dtype);
                // SAFETY: the caller's contract is the entry's.
                unsafe { queue.simt.launch(&entry, geometry, params) }
            }
            // A planning stream.
            _ => Ok(()),
        };
        if is_observed {
            self.observer.after(!matches!(self.backend, Backend::Plan(_) | Backend::Cuda(_)));
        }
        result
    }

    /// The card's queue, if this is one's.
    fn queue(&self) -> Option<&Arc<cuda::Queue>> {
        match &self.backend {
            Backend::Cuda(queue) => Some(queue),
            _ => None,
        }
    }

    /// What launches are laid out for; None on the host, whose twins take no geometry.
    pub fn chip(&self) -> Option<&Chip> {
        match &self.backend {
            Backend::Host(_) => None,
            #[cfg(feature = "simt")]
            Backend::Simt(queue) => Some(&queue.chip),
            Backend::Cuda(queue) => Some(&queue.chip),
            Backend::Plan(chip) => Some(chip),
        }
    }

    /// Has `products` compute matrix products from here on.
    ///
    /// # Errors
    /// [`Error::Device`] if cuBLASLt is asked for on a device that is no card, or is not installed.
    pub fn choose_products(&mut self, products: Products) -> Result<()> {
        if products == Products::CublasLt {
            let Backend::Cuda(queue) = &self.backend else {
                let message = format!("needs a CUDA card; the device is {}", self.describe());
                return Err(Error::device("cublaslt", message));
            };
            queue.open_cublaslt()?;
        }
        if let Some(queue) = self.queue() {
            queue.forget_steps()?;
        }
        self.products = products;
        Ok(())
    }

    /// Who computes matrix products.
    pub fn products(&self) -> Products {
        self.products
    }

    /// Launches since the stream was opened.
    pub fn launches(&self) -> u64 {
        self.observer.launches()
    }

    /// Why the stream is on the host, if `auto` was asked for and NVIDIA's driver is here.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// True if launches run on this machine's processor.
    pub fn is_host(&self) -> bool {
        matches!(self.backend, Backend::Host(_))
    }

    /// True if somebody wants to see each launch, one after the other.
    pub fn is_watched(&self) -> bool {
        self.observer.is_watching()
    }

    /// What the launches run on, in words.
    pub fn describe(&self) -> String {
        match &self.backend {
            Backend::Host(host) => format!("cpu, {} threads, {}", host.pool.threads(), host.isa),
            #[cfg(feature = "simt")]
            Backend::Simt(queue) => format!("emulated sm_{}", queue.chip.capability),
            Backend::Cuda(queue) => queue.describe(),
            Backend::Plan(chip) => format!("planned for sm_{}", chip.capability),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_parse_and_print() {
        for (text, device) in
            [("auto", Device::Auto), ("cpu", Device::Host), ("cuda:3", Device::Cuda(3))]
        {
            assert_eq!(text.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(bad.parse::<Device>().unwrap_err().to_string().contains("cuda:N"), "{bad}");
        }
    }

    #[test]
    fn a_cuda_card_is_never_silently_the_host() {
        assert_eq!(Device::Cuda(0).open(1).err().map(|e| e.exit_code()), Some(3));
    }
}
