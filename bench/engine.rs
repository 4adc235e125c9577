//! An engine on one model folder: opening, the first question, the second, and decoding against the
//! reading of the same bytes.
//!
//! `cargo bench --bench engine -- --model DIR [--tokens N] [--reps N] [--threads N]
//! [--batches 8,32] [--json]`
//!
//! The prompt is six shots and a question with seven generated images; what the words mean does not
//! matter here. Decoding and reading alternate, repetition by repetition, because the machine may
//! be shared; shares are medians of the ratios. Of a card there are none: `bench/kernels.rs` reads
//! its memory.

mod ceiling;

use medflamingo::Result;
use medflamingo::device::Host;
use medflamingo::engine::{
    Answer, Control, Engine, EngineOptions, GenerateOptions, Image, ModelFolder,
};
use medflamingo::image::Pixels;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

const INSTRUCTION: &str = "You are a helpful medical assistant. ";
/// Six of them and a question are 255 tokens of the 9B shape.
const SHOT: &str = "<image>Question: Which side? Answer: the left side.<|endofchunk|>";
const QUESTION: &str = "<image>Question: Where is the largest mass? Answer:";

struct Options {
    model: PathBuf,
    tokens: usize,
    reps: usize,
    threads: usize,
    batches: Vec<usize>,
    json: bool,
}

fn options() -> Options {
    let mut options = Options {
        model: PathBuf::new(),
        tokens: 16,
        reps: 7,
        threads: 0,
        batches: Vec::new(),
        json: false,
    };
    let mut arguments = std::env::args().skip(1);
    let number = |text: Option<String>| text.and_then(|t| t.parse().ok()).expect("a number");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--model" => options.model = arguments.next().expect("--model DIR").into(),
            "--tokens" => options.tokens = number(arguments.next()),
            "--reps" => options.reps = number(arguments.next()),
            "--threads" => options.threads = number(arguments.next()),
            "--batches" => {
                let list = arguments.next().expect("--batches 8,32");
                options.batches = list.split(',').map(|n| number(Some(n.into()))).collect();
            }
            "--json" => options.json = true,
            "--bench" => {}
            other => panic!("unknown argument {other}; see the first lines of bench/engine.rs"),
        }
    }
    options
}

fn main() -> Result<()> {
    let options = options();
    if options.model.as_os_str().is_empty() {
        // `cargo bench` without arguments runs every bench; this one needs a model.
        eprintln!("engine: skipped, no --model DIR (make one with medflamingo-tools synth)");
        return Ok(());
    }
    let how = EngineOptions { threads: options.threads, ..EngineOptions::default() };
    let open = (0..options.reps)
        .map(|_| {
            let started = Instant::now();
            Engine::open(&options.model, &how).map(|_| started.elapsed().as_secs_f64() * 1e3)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut engine = Engine::open(&options.model, &how)?;
    let questions = questions(&mut engine, options.reps)?;
    let decode = decode(&mut engine, &options)?;
    let memory = engine.memory();
    let device = engine.device();
    drop(engine);
    let batches = options.batches.iter().map(|&size| batch(&options, size));
    let batches = batches.collect::<Result<Vec<_>>>()?;
    let report = json!({
        "model": options.model.file_name().map(|n| n.to_string_lossy()),
        "device": device,
        "open_ms": median(&open),
        "questions": questions,
        "decode": decode,
        "batches": batches,
        "anonymous_mib": memory.anonymous as f64 / 1048576.0,
        "kv_pages_mib": memory.kv_pages as f64 / 1048576.0,
        "weights_mib": memory.weights as f64 / 1048576.0,
    });
    if options.json {
        println!("{report}");
    } else {
        println!("{}", serde_json::to_string_pretty(&report).expect("JSON"));
    }
    Ok(())
}

fn ask(
    engine: &mut Engine,
    instruction: &str,
    question: &str,
    images: &[usize],
    options: GenerateOptions,
) -> Result<Answer> {
    let size = engine.model().config().vision.image_size;
    let images = images.iter().map(|&seed| picture(size, seed)).collect();
    let text = format!("{instruction}{}{question}", SHOT.repeat(6));
    let request = engine.request(&text, images, options)?;
    engine.generate(request, &mut |_| Control::Continue)
}

/// Smooth waves, different for each seed.
fn picture(size: usize, seed: usize) -> Image {
    let wave = |i: usize| {
        let (x, y) = (i % size, i / size % size);
        (127.5 * (1.0 + ((x * (seed + 1) + y * (2 * seed + 3)) as f32 * 0.01).sin())) as u8
    };
    Image::new(Pixels { size, data: (0..3 * size * size).map(wave).collect() })
}

/// The first question, the same shots with another question, and with another image as well.
const QUESTIONS: [(&str, &str, usize); 3] = [
    ("first", QUESTION, 6),
    ("same_shots_same_image", "<image>Question: Is it large? Answer:", 6),
    ("same_shots_new_image", QUESTION, 7),
];

/// Times of [`QUESTIONS`], medians over repetitions that share nothing with each other.
fn questions(engine: &mut Engine, reps: usize) -> Result<serde_json::Value> {
    let one = GenerateOptions { max_new_tokens: 1, ..GenerateOptions::default() };
    // Weights come in and threads start.
    ask(engine, "Warm up. ", QUESTION, &[0; 7], one.clone())?;
    let mut answers: [Vec<Answer>; 3] = Default::default();
    for rep in 1..=reps {
        let instruction = format!("{rep}. {INSTRUCTION}");
        for ((_, question, last), answers) in QUESTIONS.iter().zip(&mut answers) {
            let mut images: [usize; 7] = std::array::from_fn(|i| 10 * rep + i);
            images[6] = 10 * rep + last;
            answers.push(ask(engine, &instruction, question, &images, one.clone())?);
        }
    }
    let first = answers[0].clone();
    let rows = QUESTIONS.iter().zip(&answers).map(|((name, ..), answers)| {
        let of = |f: &dyn Fn(&Answer) -> f64| median(&answers.iter().map(f).collect::<Vec<_>>());
        let times = first.iter().zip(answers);
        let ratios: Vec<_> =
            times.map(|(a, b)| a.timings_ms.first_token / b.timings_ms.first_token).collect();
        let row = json!({
            "prompt_tokens": answers[0].prompt_tokens,
            "cached_tokens": answers[0].cached_tokens,
            "cached_images": answers[0].cached_images,
            "vision_ms": of(&|a| a.timings_ms.vision),
            "prefill_ms": of(&|a| a.timings_ms.prefill),
            "first_token_ms": of(&|a| a.timings_ms.first_token),
            "first_question_over_this": median(&ratios),
        });
        (name.to_string(), row)
    });
    Ok(rows.collect::<serde_json::Map<_, _>>().into())
}

/// Decoding of `size` sequences together, which share no page of keys.
fn batch(options: &Options, size: usize) -> Result<serde_json::Value> {
    let how = EngineOptions {
        threads: options.threads,
        concurrent: size,
        kv_tokens: Some(size * 1024),
        ..EngineOptions::default()
    };
    let mut engine = Engine::open(&options.model, &how)?;
    let side = engine.model().config().vision.image_size;
    // Prompts are read a few at a time: the first sequence is still there when the last begins.
    let tokens = options.tokens.max(4 * size) + 1;
    let generate = GenerateOptions {
        max_new_tokens: tokens,
        min_new_tokens: tokens,
        ..GenerateOptions::default()
    };
    let mut steps = Vec::new();
    for rep in 0..=options.reps {
        let request = |i: usize| {
            let text = format!("{rep} {i}. {INSTRUCTION}{}{QUESTION}", SHOT.repeat(6));
            let images = (0..7).map(|seed| picture(side, seed)).collect();
            engine.request(&text, images, generate.clone())
        };
        let requests = (0..size).map(request).collect::<Result<Vec<_>>>()?;
        let answers = engine.generate_batch(requests, &mut |_, _| Control::Continue);
        let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
        // The first repetition warms up. The first half of the last sequence is decoded together
        // with all others.
        if rep > 0 {
            let times = &answers[size - 1].timings_ms.decode;
            steps.extend_from_slice(&times[..times.len() / 2]);
        }
    }
    let step = median(&steps);
    Ok(json!({"sequences": size, "ms_per_step": step, "tokens_per_s": size as f64 * 1e3 / step}))
}

/// Decoding and, on the host, reading of the same bytes, in turns.
fn decode(engine: &mut Engine, options: &Options) -> Result<serde_json::Value> {
    let folder = ModelFolder::open(&options.model)?;
    let is_read = |name: &str| {
        let tied = folder.config.language.tied_head;
        (name.starts_with("language.") && (tied || name != "language.embedding.weight"))
            || (name.starts_with("xattn.") && !name.contains(".attn.kv."))
    };
    let pieces: Vec<&[u8]> = folder
        .weights
        .iter()
        .filter(|(name, _)| is_read(name))
        .filter_map(|(_, entry)| entry.contiguous())
        .collect();
    let bytes: usize = pieces.iter().map(|p| p.len()).sum();
    let host = Host::new(options.threads);
    let how = GenerateOptions {
        max_new_tokens: options.tokens + 1,
        min_new_tokens: options.tokens + 1,
        ..GenerateOptions::default()
    };
    let is_host = engine.device().starts_with("cpu");
    let read = || if is_host { ceiling::read_all(&host, &pieces) } else { f64::NAN };
    let (mut shares, mut per_token, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.reps {
        let before = read();
        let images = [1, 2, 3, 4, 5, 6, 7];
        let answer = ask(engine, INSTRUCTION, QUESTION, &images, how.clone())?;
        let seconds = (before + read()) / 2.0;
        let token = median(&answer.timings_ms.decode) / 1e3;
        shares.push(seconds / token);
        per_token.push(token * 1e3);
        reads.push(bytes as f64 / seconds / 1e9);
    }
    Ok(json!({
        "bytes_per_token": bytes,
        "counted_by_the_model": engine.model().decode_bytes(),
        "ms_per_token": median(&per_token),
        "tokens_per_s": 1e3 / median(&per_token),
        "gb_per_s": bytes as f64 / median(&per_token) / 1e6,
        "read_gb_per_s": median(&reads),
        "share_of_read": median(&shares),
        "share_of_read_all": shares,
    }))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
