//! The engine from outside: caches, batches, cancelling, room, and what is refused.

#[allow(dead_code)]
mod golden_folder;

use golden_folder::{Model, models};
use medflamingo::engine::{
    Answer, Control, Engine, EngineOptions, Event, Finish, GenerateOptions, Request,
};
use medflamingo::model::MaskMode;

const SHOTS: &str = "<image>Question: Is it big? Answer: yes.<|endofchunk|>\
                     <image>Question: Is it left? Answer: no.<|endofchunk|>";

fn model() -> Model {
    models().into_iter().find(|m| m.name == "llama-tiny").unwrap()
}

fn open(options: &EngineOptions) -> Engine {
    Engine::open(&model().convert("f32"), options).unwrap()
}

fn ask(engine: &Engine, text: &str, images: &[usize], tokens: usize) -> Request {
    let model = model();
    let images = images.iter().map(|&i| model.image(engine, i)).collect();
    let options = GenerateOptions {
        max_new_tokens: tokens,
        min_new_tokens: tokens,
        logprobs: 2,
        ..Default::default()
    };
    engine.request(text, images, options).unwrap()
}

fn run(engine: &mut Engine, request: Request) -> Answer {
    engine.generate(request, &mut |_| Control::Continue).unwrap()
}

fn without_caches() -> EngineOptions {
    EngineOptions { image_cache: 0, prefixes: 0, ..EngineOptions::default() }
}

#[test]
fn engines_can_be_sent_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Engine>();
}

#[test]
fn a_second_question_reuses_images_and_shots_and_changes_nothing() {
    let mut engine = open(&EngineOptions::default());
    let mut fresh = open(&without_caches());
    let question = |q: &str| format!("{SHOTS}<image>Question: {q} Answer:");
    let first = question("Is it round?");
    let request = ask(&engine, &first, &[0, 1, 2], 8);
    let answer = run(&mut engine, request);
    assert_eq!((answer.cached_tokens, answer.cached_images), (0, 0));
    for (text, images, cached_images) in [
        (question("Where is it?"), [0, 1, 2], 3),
        (question("Is it round?"), [0, 1, 3], 2),
        (first.clone(), [0, 1, 2], 3),
        (first, [1, 0, 2], 3),
    ] {
        let request = ask(&engine, &text, &images, 8);
        let shots = request.prompt.markers()[2];
        let answer = run(&mut engine, request);
        let expected = {
            let request = ask(&fresh, &text, &images, 8);
            run(&mut fresh, request)
        };
        assert_eq!(answer.token_ids, expected.token_ids, "{text}");
        for (ours, theirs) in answer.logprobs.iter().zip(&expected.logprobs) {
            assert!((ours.logprob - theirs.logprob).abs() < 1e-4, "{text}");
        }
        assert_eq!(answer.cached_images, cached_images, "{text}");
        if images == [1, 0, 2] {
            assert!(answer.cached_tokens < request_start(&engine, &text), "other shots");
        } else {
            assert!(answer.cached_tokens >= shots, "{text}: {}", answer.cached_tokens);
        }
        assert_eq!(expected.cached_tokens, 0);
    }
}

/// Tokens before the first image marker, plus the marker itself.
fn request_start(engine: &Engine, text: &str) -> usize {
    ask(engine, text, &[0, 0, 0], 1).prompt.markers()[0] + 1
}

#[test]
fn the_same_image_twice_is_computed_once() {
    let mut engine = open(&without_caches());
    let text = "<image>A<|endofchunk|><image>A<|endofchunk|><image>B";
    let request = ask(&engine, text, &[0, 0, 0], 4);
    let answer = run(&mut engine, request);
    let mut cached = open(&EngineOptions::default());
    let request = ask(&cached, text, &[0, 0, 0], 4);
    assert_eq!(run(&mut cached, request).token_ids, answer.token_ids);
    assert!(cached.memory().images > 0 && engine.memory().images == 0);
}

#[test]
fn what_is_seen_matters() {
    let mut engine = open(&without_caches());
    let text = "<image>Question: What is it? Answer:";
    let ids: Vec<_> = [0, 1, 3]
        .iter()
        .map(|&i| {
            let request = ask(&engine, text, &[i], 1);
            run(&mut engine, request).logprobs[0].top.clone()
        })
        .collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
}

#[test]
fn with_v1_masks_no_prefix_is_reused() {
    let options = EngineOptions { mask_mode: MaskMode::V1AttendNext, ..EngineOptions::default() };
    let mut engine = open(&options);
    for _ in 0..2 {
        let request = ask(&engine, SHOTS, &[0, 1], 2);
        assert_eq!(run(&mut engine, request).cached_tokens, 0);
    }
}

#[test]
fn cancelling_at_any_event_leaves_nothing_behind() {
    let mut engine = open(&without_caches());
    let text = "<image>Question: Is it round? Answer:";
    for stop_at in 0..4 {
        let request = ask(&engine, text, &[0], 6);
        let mut events = 0;
        let answer = engine.generate(request, &mut |_| {
            events += 1;
            if events > stop_at { Control::Cancel } else { Control::Continue }
        });
        let answer = answer.unwrap();
        assert_eq!(answer.finish_reason, Finish::Cancelled);
        assert_eq!(answer.token_ids.len(), stop_at.min(4), "one token per event after prefill");
        assert_eq!(engine.memory().kv_pages, 0);
    }
}

#[test]
fn long_prompts_are_read_in_pieces_with_the_same_result() {
    let mut engine = open(&EngineOptions::default());
    let filler = "Question: Is it round or is it not round at all? Answer: no. ".repeat(24);
    let text = format!("<image>{filler}<image>Question: Is it left? Answer:");
    let request = ask(&engine, &text, &[0, 1], 4);
    assert!(request.prompt.len() > 512, "{}", request.prompt.len());
    let mut progress = Vec::new();
    let answer = engine
        .generate(request.clone(), &mut |event| {
            if let Event::Prefill { done, total } = event {
                progress.push((done, total));
            }
            Control::Continue
        })
        .unwrap();
    assert!(progress.len() >= 2 && progress.windows(2).all(|w| w[0].0 < w[1].0));
    let logits = engine.inspect(&request, &mut |_, _| {}).unwrap();
    let last = &logits[logits.len() - engine.model().config().language.vocabulary..];
    let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
    assert_eq!(answer.token_ids[0] as usize, best);
}

#[test]
fn a_full_pool_fails_the_newest_request_and_the_engine_goes_on() {
    let options = EngineOptions { kv_tokens: Some(64), prefixes: 2, ..EngineOptions::default() };
    let mut engine = open(&options);
    let short = "Question: Is it round? Answer:";
    let long = "Question: Is it round? Answer: no. ".repeat(12);
    let (first, second) = (ask(&engine, short, &[], 4), ask(&engine, &long, &[], 4));
    let answers = engine.generate_batch(vec![first, second], &mut |_, _| Control::Continue);
    assert_eq!(answers[0].as_ref().unwrap().token_ids.len(), 4);
    let error = answers[1].as_ref().unwrap_err().to_string();
    assert!(error.contains("--kv-tokens"), "{error}");
    // Remembered prompts give way to new ones.
    for text in [short, "A: b. c.", "Answer: no. yes. no. yes.", "Where is it? Is it left?"] {
        let request = ask(&engine, text, &[], 4);
        run(&mut engine, request);
    }
}

#[test]
fn stop_strings_end_the_text_before_them() {
    let mut engine = open(&EngineOptions::default());
    let text = "<image>Question: Is it round? Answer:";
    let request = ask(&engine, text, &[4], 20);
    let whole = run(&mut engine, request).text;
    let characters: Vec<char> = whole.chars().collect();
    assert!(characters.len() > 4, "{whole:?}");
    let stop: String = characters[2..4].iter().collect();
    let mut request = ask(&engine, text, &[4], 20);
    request.options.stop = vec![stop.clone()];
    let mut streamed = String::new();
    let answer = engine
        .generate(request, &mut |event| {
            if let Event::Token { text, .. } = event {
                streamed += text;
            }
            Control::Continue
        })
        .unwrap();
    assert_eq!(answer.finish_reason, Finish::Stop);
    assert_eq!(answer.text, whole[..whole.find(&stop).unwrap()]);
    assert_eq!(streamed, answer.text);
}

#[test]
fn sampling_repeats_with_its_seed_and_differs_without() {
    let mut engine = open(&EngineOptions::default());
    let mut draw = |seed| {
        let mut request = ask(&engine, "<image>Question: What?", &[2], 12);
        request.options = GenerateOptions { temperature: 3.0, seed, ..request.options };
        run(&mut engine, request).token_ids
    };
    assert_eq!(draw(1), draw(1));
    assert!((2..6).any(|seed| draw(seed) != draw(1)));
}

#[test]
fn refused_requests_say_what_was_expected() {
    let engine = open(&EngineOptions::default());
    let image = model().image(&engine, 0);
    let short = GenerateOptions { max_new_tokens: 4, ..Default::default() };
    let long = "word ".repeat(1200);
    for (text, images, options, needle) in [
        ("<image><image>x", vec![image.clone()], short.clone(), "2 <image> markers"),
        ("x", vec![image], short.clone(), "0 <image> markers"),
        ("", vec![], short.clone(), "text or an image"),
        (long.as_str(), vec![], short.clone(), "at most 1020 tokens"),
        ("x", vec![], GenerateOptions { num_beams: 17, ..short.clone() }, "num_beams"),
        ("x", vec![], GenerateOptions { max_new_tokens: 5000, ..short }, "max_new_tokens"),
    ] {
        let error = engine.request(text, images, options).unwrap_err().to_string();
        assert!(error.contains(needle), "{needle}: {error}");
    }
    assert!(engine.image(b"not a picture").is_err());
}

/// Logits that are not numbers are an error, never the argmax of NaN.
#[test]
fn poisoned_weights_are_reported() {
    let source = model().convert("f32");
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(&source).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let start = {
        let (header, meta) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        8 + header + meta.info("language.norm.weight").unwrap().data_offsets.0
    };
    bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let mut engine = Engine::open(folder.path(), &EngineOptions::default()).unwrap();
    let request = ask(&engine, "Question: Is it round?", &[], 3);
    let error = engine.generate(request, &mut |_| Control::Continue).unwrap_err();
    assert!(error.to_string().contains("NaN"), "{error}");
}
