//! `medflamingo generate`

use clap::Args;
use medflamingo::device::{Device, Products};
use medflamingo::engine::options::EarlyStopping;
use medflamingo::engine::{
    Answer, Control, Engine, EngineOptions, Event, GenerateOptions, Request,
};
use medflamingo::model::MaskMode;
use medflamingo::ops::Summary;
use medflamingo::{Error, Result};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Continue a prompt in which `<image>` stands for an image and `<|endofchunk|>` ends its text.
///
/// Example:
///   medflamingo generate --model med-flamingo --image a.jpg --image b.jpg --prompt
///   '<image>Question: Is it enlarged? Answer: no.<|endofchunk|><image>Question: And here? Answer:'
///
/// Research software. Not a medical device.
#[derive(Args)]
#[command(verbatim_doc_comment, allow_negative_numbers = true)]
pub struct Generate {
    /// Model folder, made by `medflamingo-tools convert`
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The prompt
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompt_file", "batch"])]
    prompt: Option<String>,
    /// Read the prompt from a file, exactly as it is but for one final newline
    #[arg(long, value_name = "FILE", conflicts_with = "batch")]
    prompt_file: Option<PathBuf>,
    /// An image (JPEG or PNG) for each `<image>`, in order
    #[arg(long = "image", value_name = "FILE", conflicts_with = "batch")]
    images: Vec<PathBuf>,
    /// Run the requests of a JSONL file together; a line is {"prompt": "..", "images": ["..", ..]}
    /// with any of the options below, in snake case, and anything under "id" is repeated in the
    /// answer
    #[arg(long, value_name = "FILE", conflicts_with = "dump")]
    batch: Option<PathBuf>,
    #[command(flatten)]
    options: OptionArgs,
    /// Where to run: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: Device,
    /// Who computes matrix products on a card: own, or, to compare, cublaslt (NVIDIA's library, for
    /// products with nothing but bias and residual around them)
    #[arg(long, default_value_t = Products::Own, value_name = "WHO")]
    gemm: Products,
    /// Threads on the CPU; 0 is one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// Which image a token sees: v2 (the latest one before it), or, to reproduce runs of
    /// OpenFlamingo 0.0.2, v1-attend-next or v1-attend-previous. Med-Flamingo's published demo ran
    /// v1-attend-next, in which neither "Answer:" nor any generated token ever looks at an image
    #[arg(long, default_value = "v2", value_name = "MODE")]
    mask_mode: MaskMode,
    /// Allow more `<image>` markers than images; the text after a surplus one then averages all
    /// images, as the original does without saying so
    #[arg(long)]
    surplus_markers: bool,
    /// Tokens that all sequences together may keep; four contexts unless given
    #[arg(long, value_name = "N")]
    kv_tokens: Option<usize>,
    /// Requests of --batch that run at the same time
    #[arg(long, default_value_t = 8, value_name = "N")]
    concurrent: usize,
    /// Remember neither images nor prompts (the answers are the same)
    #[arg(long)]
    no_cache: bool,
    /// Print a JSON object (one a line with --batch): text, ids, logprobs, timings, memory
    #[arg(long)]
    json: bool,
    /// Run the prompt once and write its intermediate tensors to a safetensors file, f32
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
}

/// [`GenerateOptions`] as flags.
#[derive(Args)]
struct OptionArgs {
    /// Most tokens to generate
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_new_tokens: usize,
    /// Tokens to generate before the answer may end
    #[arg(long, default_value_t = 0, value_name = "N")]
    min_new_tokens: usize,
    /// Beams; 1 is no beam search
    #[arg(long, default_value_t = 1, value_name = "N")]
    num_beams: usize,
    /// Beam scores are divided by length^X, prompt included; OpenFlamingo evaluates with 0
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    length_penalty: f64,
    /// When beams may stop: false (when no open beam can win), true (with enough answers), never
    #[arg(long, default_value = "false", value_name = "RULE")]
    early_stopping: EarlyStopping,
    /// 0 is greedy; above, tokens are drawn at random
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    temperature: f64,
    /// Draw from the N most probable tokens; 0 is all
    #[arg(long, default_value_t = 0, value_name = "N")]
    top_k: usize,
    /// Draw from the most probable tokens that together reach probability X
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    top_p: f64,
    /// Draw from tokens at least X times as probable as the best
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    min_p: f64,
    /// Above 1: make tokens that have occurred less likely
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    repetition_penalty: f64,
    /// Forbid any sequence of N tokens to occur twice; 0 allows it
    #[arg(long, default_value_t = 0, value_name = "N")]
    no_repeat_ngram_size: usize,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// End the answer before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Report this many alternatives with each token
    #[arg(long, default_value_t = 0, value_name = "N")]
    logprobs: usize,
}

impl OptionArgs {
    fn options(&self) -> GenerateOptions {
        GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
            num_beams: self.num_beams,
            length_penalty: self.length_penalty,
            early_stopping: self.early_stopping,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            seed: self.seed,
            stop: self.stop.clone(),
            logprobs: self.logprobs,
        }
    }
}

impl Generate {
    pub fn run(self) -> Result<()> {
        let (image_cache, prefixes) = if self.no_cache { (0, 0) } else { (256 << 20, 4) };
        let mut engine = Engine::open(
            &self.model,
            &EngineOptions {
                device: self.device,
                products: self.gemm,
                threads: self.threads,
                mask_mode: self.mask_mode,
                surplus_markers: self.surplus_markers,
                kv_tokens: self.kv_tokens,
                image_cache,
                prefixes,
                concurrent: self.concurrent,
            },
        )?;
        if let Some(why) = engine.fallback() {
            eprintln!("note: on the CPU: {why}");
        }
        if let Some(file) = &self.batch {
            return self.run_batch(&mut engine, file);
        }
        let prompt = self.prompt_text()?;
        let request = request(&engine, &prompt, &self.images, self.options.options())?;
        match &self.dump {
            Some(file) => dump(&mut engine, &request, file),
            None => self.run_one(&mut engine, request),
        }
    }

    fn prompt_text(&self) -> Result<String> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(file)) => {
                let text = read_text(file)?;
                Ok(text.strip_suffix('\n').unwrap_or(&text).to_string())
            }
            (None, None) => Err(Error::invalid("arguments", "a prompt", "none")
                .advise("give --prompt TEXT, --prompt-file FILE or --batch FILE")),
        }
    }

    fn run_one(&self, engine: &mut Engine, request: Request) -> Result<()> {
        let streams = !self.json;
        let answer = engine.generate(request, &mut |event| {
            if let (true, Event::Token { text, .. }) = (streams, event) {
                super::print_text(text);
            }
            Control::Continue
        })?;
        if self.json {
            return super::print_json(&answer);
        }
        // Beams are known only at the end.
        let rest = if answer.score.is_some() { answer.text.as_str() } else { "" };
        super::print_text(&format!("{rest}\n"));
        eprintln!("{}", summary(&answer, engine));
        Ok(())
    }

    fn run_batch(&self, engine: &mut Engine, file: &Path) -> Result<()> {
        let lines = read_text(file)?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let mut ids = Vec::new();
        let mut requests = Vec::new();
        for (n, line) in lines.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let at = format!("{} line {}", file.display(), n + 1);
            let line = Line::parse(line, &self.options).map_err(|e| e.within(&at))?;
            let images: Vec<_> = line.images.iter().map(|i| folder.join(i)).collect();
            let request = request(engine, &line.prompt, &images, line.options);
            requests.push(request.map_err(|e| e.within(&at))?);
            ids.push(line.id);
        }
        let answers = engine.generate_batch(requests, &mut |_, _| Control::Continue);
        let mut failed = None;
        for (id, answer) in ids.iter().zip(answers) {
            match answer {
                Ok(answer) if self.json => {
                    super::print_json(&json!({ "id": id, "answer": answer }))?
                }
                Ok(answer) => super::print_text(&format!("{}\n", answer.text.trim())),
                Err(e) => {
                    if self.json {
                        super::print_json(&json!({ "id": id, "error": e.to_string() }))?;
                    }
                    eprintln!("error: request {id}: {e}");
                    failed = Some(e);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// One line of a batch file.
struct Line {
    id: serde_json::Value,
    prompt: String,
    images: Vec<PathBuf>,
    options: GenerateOptions,
}

impl Line {
    fn parse(text: &str, defaults: &OptionArgs) -> Result<Self> {
        #[derive(Deserialize)]
        struct Required {
            #[serde(default)]
            id: serde_json::Value,
            prompt: String,
            #[serde(default)]
            images: Vec<PathBuf>,
        }
        let wrong = |e: serde_json::Error| Error::invalid("request", "a JSON object", e);
        let mut fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).map_err(wrong)?;
        let required =
            ["id", "prompt", "images"].iter().filter_map(|&k| fields.remove_entry(k)).collect();
        let Required { id, prompt, images } =
            serde_json::from_value(serde_json::Value::Object(required)).map_err(wrong)?;
        // Flags are the defaults; the line's own fields replace them, and unknown ones are refused.
        let mut options = match serde_json::to_value(defaults.options()).map_err(wrong)? {
            serde_json::Value::Object(map) => map,
            _ => serde_json::Map::new(),
        };
        options.extend(fields);
        let options = serde_json::from_value(serde_json::Value::Object(options)).map_err(wrong)?;
        Ok(Line { id, prompt, images, options })
    }
}

pub fn request(
    engine: &Engine,
    prompt: &str,
    images: &[PathBuf],
    options: GenerateOptions,
) -> Result<Request> {
    let open = |path: &PathBuf| {
        let bytes = read_bytes(path)?;
        engine.image(&bytes).map_err(|e| e.within(path.display()))
    };
    let images = images.iter().map(open).collect::<Result<_>>()?;
    engine.request(prompt, images, options)
}

/// No image or prompt file is longer; a device file would never end.
const MAX_FILE: u64 = 256 << 20;

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > MAX_FILE {
        let expected = format!("at most {} MiB", MAX_FILE >> 20);
        return Err(Error::invalid(path.display(), expected, "more"));
    }
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_bytes(path)?)
        .map_err(|e| Error::invalid(path.display(), "UTF-8 text", e.utf8_error()))
}

/// One line of timings for people.
pub fn summary(answer: &Answer, engine: &Engine) -> String {
    let t = &answer.timings_ms;
    let per_token = t.decode.iter().sum::<f64>() / t.decode.len().max(1) as f64;
    let rate = if per_token > 0.0 { 1e3 / per_token } else { 0.0 };
    format!(
        "[{}; load {:.1} ms, {} images {:.1} ms ({} cached), \
         {} prompt tokens {:.1} ms ({} cached), {} tokens at {rate:.1}/s; {:.0} MiB anonymous]",
        engine.device(),
        t.load,
        answer.images,
        t.vision,
        answer.cached_images,
        answer.prompt_tokens,
        t.prefill,
        answer.cached_tokens,
        answer.token_ids.len(),
        answer.memory_bytes.anonymous as f64 / 1048576.0,
    )
}

/// Writes every intermediate of one pass over the prompt.
fn dump(engine: &mut Engine, request: &Request, file: &Path) -> Result<()> {
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let mut failed = None;
    let logits = engine.inspect(request, &mut |name, view| match view.to_f32() {
        Ok(values) => {
            tensors.insert(name, (vec![view.rows(), view.cols()], values));
        }
        Err(e) => failed = Some(e),
    })?;
    if let Some(e) = failed {
        return Err(e);
    }
    let ids = request.prompt.ids();
    let rows = logits.chunks_exact(logits.len() / ids.len());
    let scored = rows.zip(&ids[1..]).map(|(row, &next)| {
        let summary = Summary::of(row)?;
        Ok(summary.logprob(row[next as usize]))
    });
    let scored: Vec<f32> = scored.collect::<Result<_>>()?;
    tensors.insert("token_logprobs".into(), (vec![scored.len()], scored));
    let exact = ids.iter().map(|&id| id as f32).collect();
    tensors.insert("input_ids".into(), (vec![ids.len()], exact));
    let views = tensors.iter().map(|(name, (shape, values))| {
        let bytes = bytemuck::cast_slice(values);
        let dtype = safetensors::Dtype::F32;
        safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).map(|v| (name, v))
    });
    let wrong = |e| Error::invalid("dump", "tensors that safetensors can hold", e);
    let views: Vec<_> = views.collect::<std::result::Result<_, _>>().map_err(wrong)?;
    let bytes = safetensors::serialize(views, None).map_err(wrong)?;
    std::fs::write(file, bytes).map_err(|e| Error::io("write", file, e))?;
    eprintln!("{} tensors in {}", tensors.len(), file.display());
    Ok(())
}
