//! The whole chain against recordings of the original PyTorch implementation: upstream's files are
//! converted by the converter itself, then every case of every model is compared, from pixels to
//! generated ids.
//!
//! Folders: `tests/golden`, and `MEDFLAMINGO_GOLDEN=DIR`.

mod golden_folder;

use golden_folder::{Case, close, device, models, relative_l2};
use medflamingo::device::{Chip, Device, Stream};
use medflamingo::engine::{Control, Engine, EngineOptions, Finish, GenerateOptions, ModelFolder};
use medflamingo::model::{Flamingo, MaskMode, Origin, Probe, Rows, Session, Step};
use medflamingo::tensor::Arena;
use std::collections::BTreeMap;

/// Relative error of the logits of a case, as the project promises for f32.
const LOGITS: f64 = 1e-4;

fn options(mode: MaskMode) -> EngineOptions {
    let device = device();
    EngineOptions { mask_mode: mode, surplus_markers: true, device, ..EngineOptions::default() }
}

/// Greedy ids as upstream returns them: one row of a batch is filled up with `<|endofchunk|>`.
fn without_filling(row: &[u32], end: u32) -> &[u32] {
    let ended = row.iter().position(|&id| id == end);
    ended.map_or(row, |at| &row[..=at])
}

#[test]
fn prompts_tokenise_and_pixels_agree_exactly() {
    for model in models() {
        let engine = Engine::open(&model.convert("f32"), &options(MaskMode::V2)).unwrap();
        for case in model.cases() {
            for row in 0..case.rows() {
                let request = model.request(&engine, &case, row, GenerateOptions::default());
                assert_eq!(request.prompt.ids(), case.ids(row), "{} {}", model.name, case.name);
                for (i, pixels) in request.prompt.images().iter().enumerate() {
                    let expected = model.pixels(case.image_indices(row)[i]);
                    assert!(
                        pixels.pixels().data == expected,
                        "{} {} image {i}",
                        model.name,
                        case.name
                    );
                }
            }
        }
    }
}

#[test]
fn intermediates_and_logits_agree_in_f32() {
    for model in models() {
        let mut engine = Engine::open(&model.convert("f32"), &options(MaskMode::V2)).unwrap();
        for case in model.cases() {
            for row in 0..case.rows() {
                let request = model.request(&engine, &case, row, GenerateOptions::default());
                let mut seen: BTreeMap<String, Vec<f32>> = BTreeMap::new();
                let logits = engine
                    .inspect(&request, &mut |name, view| {
                        seen.insert(name, view.to_f32().unwrap());
                    })
                    .unwrap();
                let at = format!("{} {} row {row}", model.name, case.name);
                compare_intermediates(&case, row, &seen, &at);
                let expected = case.tail("logits", row, request.prompt.len());
                let error = relative_l2(&logits, &expected);
                assert!(error <= LOGITS, "{at}: logits differ by {error:.2e}");
                close(&logits, &expected, 3e-4, 1e-4, &format!("{at} logits"));
                compare_logprobs(&case, row, &logits, request.prompt.ids(), &at);
            }
        }
    }
}

/// Every tensor that the case recorded has been shown by the engine, and agrees.
fn compare_intermediates(case: &Case, row: usize, seen: &BTreeMap<String, Vec<f32>>, at: &str) {
    let mut compared = 0;
    for name in case.tensor_names() {
        let is_vision = name.starts_with("vision") || name.starts_with("resampler");
        let is_language = name.starts_with("lm.");
        if !is_vision && !is_language || case.image_indices(row).is_empty() && is_vision {
            continue;
        }
        let Some(ours) = seen.get(&name) else { panic!("{at}: {name} was not shown") };
        let expected = if is_vision {
            case.head(&name, row, case.image_indices(row).len())
        } else {
            case.tail(&name, row, case.ids(row).len())
        };
        close(ours, &expected, 1e-4, 1e-4, &format!("{at} {name}"));
        compared += 1;
    }
    assert!(compared >= 5, "{at}: only {compared} tensors compared");
}

fn compare_logprobs(case: &Case, row: usize, logits: &[f32], ids: &[u32], at: &str) {
    let vocabulary = logits.len() / ids.len();
    let ours: Vec<f32> = logits
        .chunks(vocabulary)
        .zip(&ids[1..])
        .map(|(l, &next)| log_softmax(l)[next as usize])
        .collect();
    let expected = case.tail("token_logprobs", row, ids.len() - 1);
    close(&ours, &expected, 5e-4, 1e-4, &format!("{at} token_logprobs"));
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| ((x - most) as f64).exp()).sum();
    logits.iter().map(|&x| x - most - sum.ln() as f32).collect()
}

#[test]
fn greedy_ids_are_identical_alone_in_a_batch_and_without_caches() {
    for model in models() {
        let folder = model.convert("f32");
        let uncached = EngineOptions { image_cache: 0, prefixes: 0, ..options(MaskMode::V2) };
        for how in [options(MaskMode::V2), uncached] {
            let mut engine = Engine::open(&folder, &how).unwrap();
            let mut all = Vec::new();
            for case in model.cases() {
                let Some(greedy) = case.greedy() else { continue };
                let greedy_options = GenerateOptions {
                    max_new_tokens: greedy.max_new_tokens,
                    logprobs: 1,
                    ..GenerateOptions::default()
                };
                for (row, ids) in greedy.new_ids.iter().enumerate() {
                    let request = model.request(&engine, &case, row, greedy_options.clone());
                    let expected = without_filling(ids, model.end_of_chunk());
                    let at = format!("{} {} row {row}", model.name, case.name);
                    let answer =
                        engine.generate(request.clone(), &mut |_| Control::Continue).unwrap();
                    assert_eq!(answer.token_ids, expected, "{at}");
                    let ended = expected.last() == Some(&model.end_of_chunk());
                    let finish = if ended { Finish::EndOfChunk } else { Finish::Length };
                    assert_eq!(answer.finish_reason, finish, "{at}");
                    compare_scores(&case, row, &answer, &at);
                    all.push((request, expected.to_vec(), at));
                }
            }
            let requests = all.iter().map(|(request, ..)| request.clone()).collect();
            let answers = engine.generate_batch(requests, &mut |_, _| Control::Continue);
            for (answer, (_, expected, at)) in answers.into_iter().zip(&all) {
                assert_eq!(answer.unwrap().token_ids, *expected, "{at} in a batch");
            }
        }
    }
}

/// Log-probabilities of the generated tokens follow from upstream's logits of every step.
fn compare_scores(case: &Case, row: usize, answer: &medflamingo::engine::Answer, at: &str) {
    let Some(scores) = case.maybe("greedy.scores") else { return };
    let (steps, vocabulary) = (scores.shape[1], scores.shape[2]);
    for (i, chosen) in answer.logprobs.iter().enumerate() {
        let start = (row * steps + i) * vocabulary;
        let expected = log_softmax(&scores.data[start..start + vocabulary])[chosen.id as usize];
        assert!((chosen.logprob - expected).abs() < 1e-3, "{at} step {i}");
    }
}

#[test]
fn beam_ids_and_scores_are_identical() {
    for model in models() {
        let mut engine = Engine::open(&model.convert("f32"), &options(MaskMode::V2)).unwrap();
        for case in model.cases() {
            for beam in case.beams() {
                for (row, ids) in beam.new_ids.iter().enumerate() {
                    let options = GenerateOptions {
                        max_new_tokens: beam.max_new_tokens,
                        num_beams: beam.num_beams,
                        length_penalty: beam.length_penalty,
                        ..GenerateOptions::default()
                    };
                    let mut request = model.request(&engine, &case, row, options);
                    request.left_pads = case.left_pads(row);
                    let at = format!(
                        "{} {} row {row} length penalty {}",
                        model.name, case.name, beam.length_penalty
                    );
                    let answer = engine.generate(request, &mut |_| Control::Continue).unwrap();
                    let expected = without_filling(ids, model.end_of_chunk());
                    assert_eq!(answer.token_ids, expected, "{at}");
                    let (score, recorded) = (answer.score.unwrap(), beam.sequences_scores[row]);
                    assert!((score - recorded).abs() <= 1e-4 * recorded.abs(), "{at}: {score}");
                }
            }
        }
    }
}

#[test]
fn continuations_of_a_shared_context_score_as_upstream() {
    for model in models() {
        let Some(case) = model.cached_media() else { continue };
        let folder = ModelFolder::open(&model.convert("f32")).unwrap();
        let stream = Stream::host(0);
        let flamingo =
            Flamingo::load(&stream, &folder.weights, &folder.config, &folder.preprocess).unwrap();
        let (mut arena, mut pool) =
            (Arena::new(&stream, 0).unwrap(), flamingo.kv_pool(&stream, 512).unwrap());
        let pixels: Vec<_> = case.image_indices(0).iter().map(|&i| model.pixels(i)).collect();
        let pixels: Vec<_> = pixels.iter().map(Vec::as_slice).collect();
        let media = flamingo.see(&stream, &mut arena, &pixels, &mut Probe::none()).unwrap();
        let markers = pixels.len();
        let mut context = Session::new(&folder.config, MaskMode::V2, markers, media);
        let mut forward = |session: &mut Session, ids: &[u32], origin| {
            let mut steps = [Step { session, ids, origin, logits: Rows::All }];
            let probe = &mut Probe::none();
            let logits = flamingo.forward(&stream, &mut arena, &mut pool, &mut steps, probe);
            logits.unwrap().view().to_f32().unwrap()
        };
        let ours = forward(&mut context, &case.ids(0), Origin::Prompt);
        let at = format!("{} cached_media", model.name);
        close(&ours, &case.tensor("context.logits").data, 3e-4, 1e-4, &at);
        let last = ours[ours.len() - folder.config.language.vocabulary..].to_vec();
        for k in 0.. {
            let Some(ids) = case.maybe(&format!("tail{k}.input_ids")) else { break };
            let ids: Vec<u32> = ids.data.iter().map(|&id| id as u32).collect();
            let mut fork = context.fork();
            let logits = forward(&mut fork, &ids, Origin::Generated);
            let expected = case.tensor(&format!("tail{k}.logits")).data;
            close(&logits, &expected, 3e-4, 1e-4, &format!("{at} tail {k}"));
            let rows: Vec<_> = [&last[..]].into_iter().chain(logits.chunks(last.len())).collect();
            let ours: Vec<f32> =
                ids.iter().zip(rows).map(|(&id, row)| log_softmax(row)[id as usize]).collect();
            let expected = case.tensor(&format!("tail{k}.token_logprobs")).data;
            close(&ours, &expected, 5e-4, 1e-4, &format!("{at} tail {k} logprobs"));
        }
    }
}

#[test]
fn release_0_0_2_is_reproduced_by_its_mask_mode() {
    let mut checked = 0;
    for model in models() {
        let folder = model.convert("f32");
        let mut engine = Engine::open(&folder, &options(MaskMode::V1AttendNext)).unwrap();
        for (case, old) in model.cases_of_0_0_2() {
            for (row, ids) in old.greedy_new_ids.iter().enumerate() {
                let at = format!("{} 0.0.2 {} row {row}", model.name, case.name);
                let greedy = GenerateOptions { max_new_tokens: 20, ..GenerateOptions::default() };
                let request = model.request(&engine, &case, row, greedy);
                let logits = engine.inspect(&request, &mut |_, _| {}).unwrap();
                let expected = old.case.tail("logits", row, request.prompt.len());
                close(&logits, &expected, 3e-4, 1e-4, &at);
                let answer = engine.generate(request, &mut |_| Control::Continue).unwrap();
                let expected = without_filling(ids, model.end_of_chunk());
                assert_eq!(answer.token_ids, expected, "{at}");
                checked += 1;
            }
        }
    }
    assert!(checked >= 8, "only {checked} cases of release 0.0.2");
}

/// PyTorch's own bf16 run is the measure: our bf16 logits are as close to its f32 ones.
#[test]
fn bf16_logits_are_as_close_as_pytorch_bf16() {
    for model in models() {
        let mut engine = Engine::open(&model.convert("bf16"), &options(MaskMode::V2)).unwrap();
        for case in model.cases() {
            let Some(theirs) = case.bfloat16_rms() else { continue };
            let (mut squares, mut count) = (0.0, 0);
            for row in 0..case.rows() {
                let request = model.request(&engine, &case, row, GenerateOptions::default());
                let logits = engine.inspect(&request, &mut |_, _| {}).unwrap();
                let expected = case.tail("logits", row, request.prompt.len());
                let pairs = logits.iter().zip(&expected);
                squares += pairs.map(|(a, b)| ((a - b) as f64).powi(2)).sum::<f64>();
                count += logits.len();
            }
            let ours = (squares / count as f64).sqrt();
            assert!(ours <= 1.25 * theirs, "{} {}: {ours} {theirs}", model.name, case.name);
        }
    }
}

/// The whole engine on the real kernels, under the emulator.
#[test]
fn emulated_kernels_give_the_hosts_tokens() {
    let models = models();
    let model = models.iter().find(|m| m.name == "llama-tiny").expect("a small model");
    let case = model.cases().into_iter().find(|c| !c.image_indices(0).is_empty());
    let case = case.expect("a case with images");
    for (dtype, chip) in [("f32", Chip::A100), ("bf16", Chip::H200)] {
        let folder = model.convert(dtype);
        let [host, emulated] = [Device::Host, Device::Simt(chip)].map(|device| {
            let how = EngineOptions { device, ..options(MaskMode::V2) };
            let mut engine = Engine::open(&folder, &how).unwrap();
            let few = GenerateOptions { max_new_tokens: 3, ..GenerateOptions::default() };
            let request = model.request(&engine, &case, 0, few);
            engine.stream().record();
            let ids = engine.generate(request, &mut |_| Control::Continue).unwrap().token_ids;
            let launches = engine.stream().recording().unwrap().launches;
            // Whatever a patch is, its embedding is a product that 16-byte copies can reach.
            let plain = launches.iter().find(|l| l.entry == "gemm_bf16_plain");
            assert!(plain.is_none(), "{plain:?}");
            ids
        });
        assert!(!host.is_empty() && emulated == host, "{dtype}: {emulated:?}, not {host:?}");
    }
}
