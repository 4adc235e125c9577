//! Prompts in, text out. An [`Engine`] owns a device, a model and what it remembers between
//! requests; it is `Send`, has no globals and installs no signal handlers.
//!
//! ```no_run
//! use medflamingo::engine::{Control, Engine, EngineOptions, Event, GenerateOptions};
//!
//! # fn main() -> medflamingo::Result<()> {
//! let mut engine = Engine::open("model".as_ref(), &EngineOptions::default())?;
//! let image = engine.image(&std::fs::read("scan.jpg").unwrap())?;
//! let options = GenerateOptions { max_new_tokens: 10, ..Default::default() };
//! let request = engine.request("<image>Question: What is this? Answer:", vec![image], options)?;
//! let answer = engine.generate(request, &mut |event| {
//!     if let Event::Token { text, .. } = event {
//!         print!("{text}");
//!     }
//!     Control::Continue // or Control::Cancel, at any event
//! })?;
//! println!("{} tokens, {:?}", answer.token_ids.len(), answer.finish_reason);
//! # Ok(())
//! # }
//! ```

pub mod beam;
mod cache;
mod flight;
mod folder;
pub mod options;
pub mod processors;
mod request;
mod run;
pub mod sampler;

pub use folder::{GenerationConfig, ModelFolder};
pub use options::GenerateOptions;
pub use request::{
    Answer, Control, Event, Finish, Image, Memory, Request, Timings, TokenLogprob, Work,
};

use crate::device::{Device, Products, Stream};
use crate::image::{self, Preprocess};
use crate::model::{Config, Flamingo, KvPool, MaskMode, Probe};
use crate::prompt::{Limits, Prompt};
use crate::tensor::{Arena, View};
use crate::text::Tokenizer;
use crate::{DType, Error, Result};
use cache::{ImageCache, PrefixCache};
use flight::Chosen;
use std::path::Path;
use std::time::Instant;

/// How an engine runs; independent of any request.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    pub device: Device,
    /// Who computes matrix products on a card.
    pub products: Products,
    /// Threads on the host; 0 is one per core.
    pub threads: usize,
    pub mask_mode: MaskMode,
    /// Allow prompts with more `<image>` markers than images, which then average all images as the
    /// original does.
    pub surplus_markers: bool,
    /// Tokens that all sequences together may keep; `None` is four contexts.
    pub kv_tokens: Option<usize>,
    /// Bytes of images to remember; 0 remembers none.
    pub image_cache: usize,
    /// Prompts to remember for others that begin alike; 0 remembers none.
    pub prefixes: usize,
    /// Requests of a batch that run at the same time.
    pub concurrent: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            device: Device::Auto,
            products: Products::Own,
            threads: 0,
            mask_mode: MaskMode::V2,
            surplus_markers: false,
            kv_tokens: None,
            image_cache: 256 << 20,
            prefixes: 4,
            concurrent: 8,
        }
    }
}

/// Device, model, tokenizer, and what is remembered between requests.
pub struct Engine {
    stream: Stream,
    model: Flamingo,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    generation: GenerationConfig,
    options: EngineOptions,
    weights_bytes: u64,
    arena: Arena,
    /// How the tokens of a pass are chosen.
    draws: Arena,
    chosen: Chosen,
    pool: KvPool,
    images: ImageCache,
    prefixes: PrefixCache,
    load_ms: f64,
    place_ms: f64,
}

impl Engine {
    /// Opens a model folder. On the host weights are mapped, not read, which takes milliseconds for
    /// any size; a card gets a copy.
    ///
    /// # Errors
    /// A folder that is incomplete or contradicts itself; a device that is not there.
    pub fn open(folder: &Path, options: &EngineOptions) -> Result<Self> {
        let started = Instant::now();
        let mut stream = options.device.open(options.threads)?;
        stream.choose_products(options.products)?;
        let ModelFolder { config, mut weights, tokenizer, preprocess, generation } =
            ModelFolder::open(folder)?;
        let tokens = options.kv_tokens.unwrap_or(4 * config.language.context);
        fits(&stream, &config, weights.bytes(), tokens).map_err(|e| e.within(folder.display()))?;
        let placing = Instant::now();
        weights.place(&stream)?;
        let place_ms = placing.elapsed().as_secs_f64() * 1e3;
        let model = Flamingo::load(&stream, &weights, &config, &preprocess)
            .map_err(|e| e.within(folder.display()))?;
        let pool = model.kv_pool(&stream, tokens)?;
        // With V1AttendNext a token's keys depend on the prompt that follows it.
        let is_causal = options.mask_mode != MaskMode::V1AttendNext && !options.surplus_markers;
        let prefixes = if is_causal { options.prefixes } else { 0 };
        Ok(Engine {
            arena: Arena::new(&stream, 0)?,
            draws: Arena::new(&stream, 0)?,
            chosen: Chosen::new(&stream, options.concurrent)?,
            images: ImageCache::new(options.image_cache),
            prefixes: PrefixCache::new(prefixes, config.tokens.image),
            weights_bytes: weights.bytes() as u64,
            options: options.clone(),
            stream,
            model,
            tokenizer,
            preprocess,
            generation,
            pool,
            load_ms: started.elapsed().as_secs_f64() * 1e3,
            place_ms,
        })
    }

    /// Decodes a JPEG or PNG and prepares it for the vision tower, as the original does.
    ///
    /// # Errors
    /// A file that is damaged, unsupported, or larger than any picture should be.
    pub fn image(&self, bytes: &[u8]) -> Result<Image> {
        self.picture(&image::decode(bytes, &image::Limits::default())?)
    }

    /// As [`Engine::image`], of a picture that has been decoded.
    ///
    /// # Errors
    /// A picture without pixels.
    pub fn picture(&self, picture: &image::Picture) -> Result<Image> {
        Ok(Image::new(image::preprocess(picture, &self.preprocess)?))
    }

    /// A request to continue `text`, in which `<image>` stands for the `images` in order and
    /// `<|endofchunk|>` ends what belongs to one; everything else is plain text.
    ///
    /// # Errors
    /// Markers and images that differ in number, a prompt that is empty or too long for the
    /// context, options out of range.
    pub fn request(
        &self,
        text: &str,
        images: Vec<Image>,
        options: GenerateOptions,
    ) -> Result<Request> {
        let context = self.model.config().language.context;
        options.check(context)?;
        let limits = Limits {
            tokens: context - options.max_new_tokens.min(context),
            surplus_markers: self.options.surplus_markers,
        };
        let prompt = Prompt::from_text(&self.tokenizer, text, images, &limits)?;
        Ok(Request { prompt, options, left_pads: 0 })
    }

    /// Continues one prompt; `on` sees every token as it comes and may cancel.
    ///
    /// # Errors
    /// Too little room in the page pool; logits that are not finite.
    pub fn generate(
        &mut self,
        request: Request,
        on: &mut dyn FnMut(Event<'_>) -> Control,
    ) -> Result<Answer> {
        let mut answers = self.generate_batch(vec![request], &mut |_, event| on(event));
        answers.pop().unwrap_or(Err(Error::Cancelled))
    }

    /// Runs the whole prompt once and returns the logits of every position, (T, V) row by row.
    /// `see` receives the intermediates named as in the golden files.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub fn inspect(
        &mut self,
        request: &Request,
        see: &mut dyn FnMut(String, View<'_>),
    ) -> Result<Vec<f32>> {
        run::inspect(self, request, &mut Probe::new(see))
    }

    /// The tokenizer, with Flamingo's markers.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The model, for those who drive [`Flamingo::forward`] themselves.
    pub fn model(&self) -> &Flamingo {
        &self.model
    }

    /// What the engine launches on, for those who record it.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// What the engine runs on, in words.
    pub fn device(&self) -> String {
        self.stream.describe()
    }

    /// Why the engine is on the host, if `auto` was asked for and NVIDIA's driver is here.
    pub fn fallback(&self) -> Option<&str> {
        self.stream.fallback()
    }

    /// What the device has been given to do since the engine was opened.
    pub fn work(&self) -> Work {
        let (graphs, replays) = self.stream.graphs();
        Work { launches: self.stream.launches(), graphs, replays }
    }

    /// What memory is in use now.
    pub fn memory(&self) -> Memory {
        Memory {
            anonymous: anonymous_memory(),
            weights: self.weights_bytes,
            kv_pages: self.pool.bytes_in_use() as u64,
            images: self.images.bytes() as u64,
        }
    }
}

/// Scratch of a card beside weights, pages and workspace: intermediates of a pass and remembered
/// images. A model smaller than that has smaller ones.
const SCRATCH: usize = 512 << 20;

/// Refuses a model that a card has no room for, before anything is copied to it.
fn fits(stream: &Stream, config: &Config, weights: usize, tokens: usize) -> Result<()> {
    let Some(free) = stream.free_memory()? else { return Ok(()) };
    let l = &config.language;
    let token = 2 * l.layers * l.width * DType::from(config.dtype).size();
    let scratch = Stream::WORKSPACE + SCRATCH.min(weights);
    let needed = weights + scratch + tokens * token;
    if needed <= free {
        return Ok(());
    }
    let mib = |bytes: usize| bytes as f64 / 1048576.0;
    let fit = free.saturating_sub(weights + scratch) / token.max(1);
    let advice = match fit {
        0 => "not even one token fits beside the weights: use a smaller dtype".into(),
        _ => format!("--kv-tokens {fit} would fit; so would a smaller dtype"),
    };
    Err(Error::device(
        stream.describe(),
        format!(
            "not enough memory: {:.1} MiB of weights, {:.1} MiB of keys and values for {tokens} \
             tokens and {:.1} MiB of scratch, but {:.1} MiB free; {advice}",
            mib(weights),
            mib(tokens * token),
            mib(scratch),
            mib(free)
        ),
    ))
}

/// Anonymous resident memory of this process in bytes; 0 where the system does not say.
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
