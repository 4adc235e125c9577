//! Models whose frozen matrices have 8 or 4 bits a weight: their gradients are those of the numbers
//! that the codes stand for, and what must not change a bit does not.

use crate::golden_folder::{Model, relative_l2};
use crate::runs::{batch, gradients, held, model, options, restore, saved};
use medflamingo::convert::quantize::{Choice, Options, Part, Precision, quantize};
use medflamingo::device::{Device, Stream};
use medflamingo::image::Preprocess;
use medflamingo::model::Config;
use medflamingo::model::config::StoredDType;
use medflamingo::tensor::Tensor;
use medflamingo::train::{Batch, Recompute, TrainOptions, Trained, Trainer};
use medflamingo::weights::{Matrix, SINGLE, Weights};
use medflamingo::{DType, ops};
use safetensors::tensor::{Dtype, TensorView};
use std::path::{Path, PathBuf};

/// A quantised folder, and one of f32 with the numbers that its codes stand for.
struct Pair {
    _parent: tempfile::TempDir,
    quantized: PathBuf,
    dense: PathBuf,
    config: Config,
}

impl Pair {
    fn new(model: &Model, dtype: &str, weights: Precision, parts: &[Part]) -> Pair {
        let parent = tempfile::tempdir().unwrap();
        let [quantized, dense] = ["quantized", "dense"].map(|name| parent.path().join(name));
        let source = model.convert(dtype);
        let options = Options {
            model: source.clone(),
            output: quantized.clone(),
            choice: Choice { weights, parts: parts.to_vec() },
            max_shard: 1 << 30,
            is_forced: false,
            device: Device::Host,
            threads: 2,
        };
        quantize(&options, &|_, _| {}).unwrap();
        let config = Config::read(&source.join("config.json")).unwrap();
        std::fs::create_dir(&dense).unwrap();
        write_dense(&quantized, &config, &dense.join(SINGLE));
        Pair { _parent: parent, quantized, dense, config }
    }

    fn trainer(&self, folder: &Path, options: TrainOptions, stream: Stream) -> Trainer {
        let mut weights = Weights::open(folder).unwrap();
        let mut config = self.config.clone();
        if folder == self.dense {
            config.dtype = StoredDType::F32;
        }
        let bytes = Preprocess::clip(config.vision.image_size);
        Trainer::new(stream, &mut weights, &config, &bytes, options, None).unwrap()
    }

    fn quantized(&self, options: TrainOptions, threads: usize) -> Trainer {
        self.trainer(&self.quantized, options, Stream::host(threads))
    }

    fn dense(&self, options: TrainOptions) -> Trainer {
        self.trainer(&self.dense, options, Stream::host(2))
    }

    /// Matrices of that type.
    fn count(&self, dtype: DType) -> usize {
        let weights = Weights::open(&self.quantized).unwrap();
        weights.iter().filter(|(_, entry)| entry.dtype == dtype).count()
    }
}

/// Every tensor of `from` in f32.
fn write_dense(from: &Path, config: &Config, to: &Path) {
    let (weights, stream) = (Weights::open(from).unwrap(), Stream::host(2));
    let mut all = Vec::new();
    for (name, shape) in config.tensors() {
        let stored = match (name.strip_suffix(".weight"), shape.as_slice()) {
            (Some(at), &[rows, cols]) => weights.matrix(at, rows, cols).unwrap(),
            _ => Matrix::Dense(weights.get(&name, &shape).unwrap()),
        };
        let values = match stored {
            Matrix::Dense(tensor) => tensor.view().to_f32().unwrap(),
            Matrix::Quantized { codes, scales } => {
                let mut numbers = Tensor::zeros(&stream, DType::F32, &shape).unwrap();
                let of = ops::Quantized { codes: codes.view(), scales: scales.view() };
                ops::dequantize(&stream, numbers.view_mut(), of).unwrap();
                numbers.view().read::<f32>().unwrap()
            }
        };
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        all.push((name, shape, bytes));
    }
    let views = all.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    std::fs::write(to, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// All that upstream freezes.
const FROZEN: [Part; 3] = [Part::Vision, Part::Language, Part::Head];
/// All but vision.
const ABOVE_VISION: [Part; 4] = [Part::Resampler, Part::Xattn, Part::Language, Part::Head];

fn only_vision() -> Trained {
    Trained { vision: true, ..Trained::NOTHING }
}

/// Losses and gradients are near those of the same numbers, stored as they are.
fn near(pair: &Pair, own: &mut Trainer, batch: &Batch, limit: f64, at: &str) {
    let mut dense = pair.dense(own.options().clone());
    let found = gradients(own, std::slice::from_ref(batch));
    let expected = gradients(&mut dense, std::slice::from_ref(batch));
    let (a, b) = (own.loss(), dense.loss());
    assert!((a - b).abs() < limit * b, "{at}: {a} {b}");
    assert!(expected.iter().any(|&g| g != 0.0) && !own.parameters().is_empty());
    for p in own.parameters().iter() {
        let error = relative_l2(&found[p.range.clone()], &expected[p.range.clone()]);
        // A scalar is a sum of thousands of terms of both signs.
        let limit = if p.range.len() == 1 { 20.0 * limit } else { limit };
        assert!(error <= limit, "{at} {}: {error:.2e}", p.name);
    }
}

#[test]
fn gradients_are_those_of_the_numbers_that_codes_stand_for() {
    for name in ["llama-tiny", "mpt-tiny", "neox-tiny"] {
        let model = model(name);
        for (parts, trained, bits) in [
            (&FROZEN[..], Trained::default(), Precision::Int8),
            // Gradients pass through codes of every part.
            (&ABOVE_VISION, only_vision(), Precision::Int8),
            (&ABOVE_VISION, only_vision(), Precision::Int4),
        ] {
            let pair = Pair::new(&model, "f32", bits, parts);
            let at = format!("{name} {}", bits.name());
            let dtype = if bits == Precision::Int8 { DType::I8 } else { DType::U8 };
            assert!(pair.count(dtype) > 0, "{at}");
            let mut own = pair.quantized(options(trained), 2);
            let batch = batch(&model, &own, 1);
            near(&pair, &mut own, &batch, 1e-5, &at);
        }
    }
}

/// In bf16 the numbers of backward are rounded once more.
#[test]
fn bf16_gradients_of_codes_are_near_those_of_f32() {
    let model = model("llama-tiny");
    let pair = Pair::new(&model, "bf16", Precision::Int8, &FROZEN);
    let mut own = pair.quantized(options(Trained::default()), 2);
    let batch = batch(&model, &own, 1);
    near(&pair, &mut own, &batch, 0.15, "bf16");
}

#[test]
fn bits_depend_neither_on_threads_nor_on_what_is_kept_nor_on_an_interruption() {
    let model = model("llama-tiny");
    for (dtype, bits) in [("f32", 32), ("bf16", 8)] {
        let pair = Pair::new(&model, dtype, Precision::Int8, &FROZEN);
        let mut how = options(Trained::default());
        how.optimizer.bits = bits;
        let mut whole = pair.quantized(how.clone(), 2);
        let mut others: Vec<Trainer> = [Recompute::Blocks, Recompute::All]
            .into_iter()
            .map(|recompute| pair.quantized(TrainOptions { recompute, ..how.clone() }, 1))
            .collect();
        let mut resumed = pair.quantized(how, 3);
        for i in 0..4 {
            let batch = [batch(&model, &whole, i)];
            if i == 2 {
                restore(&mut resumed, &whole);
            }
            let report = whole.step(&batch).unwrap();
            let mut same = |other: &mut Trainer| {
                let own = other.step(&batch).unwrap();
                assert_eq!((own.loss, own.grad_norm), (report.loss, report.grad_norm), "{dtype}");
            };
            others.iter_mut().for_each(&mut same);
            if i >= 2 {
                same(&mut resumed);
            }
        }
        let expected = saved(&whole);
        assert!(others.iter().chain([&resumed]).all(|other| saved(other) == expected), "{dtype}");
    }
}

/// There is no copy of the model in its own type, and nothing is allocated twice.
#[test]
fn codes_need_no_more_memory_than_elements() {
    let model = model("llama-tiny");
    let pair = Pair::new(&model, "f32", Precision::Int8, &FROZEN);
    let of = |mut trainer: Trainer| {
        let batch = [batch(&model, &trainer, 1)];
        held(&mut trainer, &batch)
    };
    let how = || options(Trained::default());
    assert_eq!(of(pair.quantized(how(), 2)), of(pair.dense(how())));
}

#[test]
fn codes_in_what_is_trained_are_refused_by_name() {
    let model = model("llama-tiny");
    let language = Trained { language: true, ..Trained::NOTHING };
    let blocks = "--parts vision,language,head";
    for (part, trained, needles) in [
        (Part::Xattn, Trained::default(), ["xattn.", "train.trained.gated_blocks", blocks]),
        (Part::Resampler, Trained::default(), ["resampler.", "train.trained.resampler", blocks]),
        (Part::Language, language, ["language.layers.", "train.trained.language", "xattn"]),
        (Part::Head, language, ["language.head.weight", "train.trained.language", "vision"]),
        (Part::Vision, Trained::ALL, ["vision.", "train.trained.vision", "quantised from"]),
    ] {
        let pair = Pair::new(&model, "f32", Precision::Int8, &[part]);
        let mut weights = Weights::open(&pair.quantized).unwrap();
        let (stream, how) = (Stream::host(1), options(trained));
        let bytes = Preprocess::clip(pair.config.vision.image_size);
        let refused = Trainer::new(stream, &mut weights, &pair.config, &bytes, how, None);
        let message = refused.err().unwrap().to_string();
        for needle in needles.into_iter().chain(["i8 codes"]) {
            assert!(message.contains(needle), "{needle}: {message}");
        }
        assert_eq!(message.contains("--parts"), trained != Trained::ALL, "{message}");
    }
}
