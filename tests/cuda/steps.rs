//! Steps that are known by their form: what runs is what would have been collected.

use super::{child, folder, models, passes, with_driver};
use medflamingo::DType;
use medflamingo::device::{Device, Form, Products, Stream};
use medflamingo::engine::{
    Answer, Control, Engine, EngineOptions, Event, GenerateOptions, Request, Work,
};
use medflamingo::ops::swiglu;
use medflamingo::tensor::Tensor;
use std::cell::Cell;
use std::sync::Arc;

#[test]
fn a_form_stands_for_a_whole_step() {
    child("steps::what_is_collected");
}

#[test]
#[ignore = "needs the driver of tests/driver; run by a_form_stands_for_a_whole_step"]
fn what_is_collected() {
    let mut stream = Device::Cuda(0).open(1).unwrap();
    let x = Tensor::zeros(&stream, DType::F32, &[2, 16]).unwrap();
    let y = Cell::new(Some(Tensor::zeros(&stream, DType::F32, &[2, 8]).unwrap()));
    let (ours, theirs, collected) = (Arc::new(()), Arc::new(()), Cell::new(0));
    let step = |stream: &Stream, maker, number, is_read| {
        let body = || {
            collected.set(collected.get() + 1);
            let mut out = y.take().unwrap();
            swiglu(stream, out.view_mut(), x.view())?;
            if is_read {
                out.view().read::<f32>()?;
            }
            swiglu(stream, out.view_mut(), x.view())?;
            y.set(Some(out));
            Ok(())
        };
        stream.step_of(Form::new(maker, vec![number]), body).unwrap();
        collected.replace(0)
    };
    assert_eq!((step(&stream, &ours, 1, false), step(&stream, &ours, 1, false)), (1, 0));
    assert_eq!((stream.launches(), stream.graphs()), (4, (1, 1)));
    // Another number, another maker: until they are known too.
    assert_eq!((step(&stream, &ours, 2, false), step(&stream, &ours, 2, false)), (1, 0));
    assert_eq!((step(&stream, &theirs, 2, false), step(&stream, &theirs, 2, false)), (1, 0));
    // What a read has cut in two is not all in a graph.
    assert_eq!((step(&stream, &ours, 3, true), step(&stream, &ours, 3, true)), (1, 1));
    stream.record();
    assert_eq!(step(&stream, &theirs, 2, false), 1, "launches are written down");
    assert_eq!(stream.recording().unwrap().launches.len(), 2);
    assert_eq!(step(&stream, &theirs, 2, false), 0);
    stream.choose_products(Products::Own).unwrap();
    assert_eq!(step(&stream, &theirs, 2, false), 1, "products may be others");
}

#[test]
fn a_known_step_says_what_the_host_says() {
    let mut command = with_driver(std::env::current_exe().unwrap(), "");
    command.env("MODEL", folder());
    passes(command, "steps::what_is_said_while_everything_changes");
}

#[test]
#[ignore = "needs the driver of tests/driver; run by a_known_step_says_what_the_host_says"]
fn what_is_said_while_everything_changes() {
    let [(host, none), (card, work)] = [Device::Host, Device::Cuda(0)].map(conversation);
    assert_eq!((host.len(), none.replays), (card.len(), 0));
    for (ours, theirs) in card.iter().zip(&host) {
        assert_eq!(ours.token_ids, theirs.token_ids);
        assert_eq!(ours.finish_reason, theirs.finish_reason);
        for (ours, theirs) in ours.logprobs.iter().zip(&theirs.logprobs) {
            assert!((ours.logprob - theirs.logprob).abs() < 1e-4, "{ours:?}, not {theirs:?}");
        }
    }
    assert!(work.replays > work.graphs, "{work:?}");
}

/// Without the emulator: every token is the first, but the launches are all there.
#[test]
fn a_known_step_is_as_many_launches_as_one_collected_anew() {
    let launches = |sync: &str| -> Vec<String> {
        let mut command = with_driver(std::env::current_exe().unwrap(), "");
        command.env("DRIVER_KERNELS", "").env("MODEL", folder()).env("MEDFLAMINGO_SYNC", sync);
        let said = passes(command, "steps::what_is_launched_while_everything_changes");
        said.lines().filter(|line| line.starts_with("launches ")).map(String::from).collect()
    };
    let (known, anew) = (launches("0"), launches("1"));
    assert_eq!((known.len(), &known), (10, &anew));
}

#[test]
#[ignore = "needs the driver of tests/driver; run by a_known_step_is_as_many_launches_as_one_..."]
fn what_is_launched_while_everything_changes() {
    let (answers, _) = conversation(Device::Cuda(0));
    for answer in answers {
        println!("\nlaunches {}", answer.work.launches);
    }
}

/// Between two tokens a card does not wait for the host, unless the host must know the one to say
/// how the other is chosen.
#[test]
fn a_step_is_launched_before_the_token_before_it_is_read() {
    let mut command = with_driver(std::env::current_exe().unwrap(), "");
    command.env("DRIVER_KERNELS", "").env("MODEL", folder());
    passes(command, "steps::what_is_launched_ahead");
}

#[test]
#[ignore = "needs the driver of tests/driver; run by a_step_is_launched_before_the_token_..."]
fn what_is_launched_ahead() {
    let device = Device::Cuda(0);
    let options = EngineOptions { device, prefixes: 0, ..EngineOptions::default() };
    let mut engine = Engine::open(std::env::var_os("MODEL").unwrap().as_ref(), &options).unwrap();
    // Launches for an answer of `most` tokens, of which the last that is wanted is `last`.
    let mut launches = |most, last, repetition_penalty| {
        let options =
            GenerateOptions { max_new_tokens: most, min_new_tokens: most, ..Default::default() };
        let options = GenerateOptions { repetition_penalty, ..options };
        let request = engine.request("Is it round?", Vec::new(), options).unwrap();
        let (before, mut tokens) = (engine.work().launches, 0);
        let answer = engine.generate(request, &mut |event| {
            tokens += usize::from(matches!(event, Event::Token { .. }));
            if tokens == last { Control::Cancel } else { Control::Continue }
        });
        assert_eq!(answer.unwrap().token_ids.len(), last);
        engine.work().launches - before
    };
    let [three, four] = [3, 4].map(|tokens| launches(tokens, tokens, 1.0));
    assert!(four > three + 2);
    assert_eq!(launches(9, 3, 1.0), four, "that of the fourth has been launched");
    assert_eq!(launches(9, 1, 1.0) + 2 * (four - three), three, "the first is the prompt's");
    assert_eq!(launches(9, 3, 1.5), three, "the penalty of the fourth is for the third");
}

/// What shapes a step changes, and changes back.
fn conversation(device: Device) -> (Vec<Answer>, Work) {
    let options = EngineOptions { device, kv_tokens: Some(512), ..EngineOptions::default() };
    let mut engine = Engine::open(std::env::var_os("MODEL").unwrap().as_ref(), &options).unwrap();
    let model = models().into_iter().find(|m| m.name == "llama-tiny").unwrap();
    let ask = |engine: &Engine, text: &str, images: &[usize], tokens, num_beams| {
        // Of several at once some are drawn, each from its own numbers.
        let temperature = if tokens % 4 == 2 && num_beams == 1 { 0.8 } else { 0.0 };
        let images = images.iter().map(|&i| model.image(engine, i)).collect();
        let options = GenerateOptions {
            max_new_tokens: tokens,
            min_new_tokens: tokens,
            temperature,
            num_beams,
            ..GenerateOptions::default()
        };
        let options = GenerateOptions { logprobs: usize::from(num_beams == 1), ..options };
        engine.request(text, images, options).unwrap()
    };
    let mut answers = Vec::new();
    let mut say = |engine: &mut Engine, requests: Vec<Request>, cancelled: usize| {
        let mut events = 0;
        let said = engine.generate_batch(requests, &mut |i, _| {
            events += usize::from(i == cancelled);
            if events == 3 { Control::Cancel } else { Control::Continue }
        });
        answers.extend(said.into_iter().map(Result::unwrap));
    };
    let (one, two) = ("<image>Is it round?", "<image>A<|endofchunk|><image>Is it round?");
    // Tables of one page each, then of two.
    let requests = ["Is it round?", "Where is it?"].map(|text| ask(&engine, text, &[], 10, 1));
    say(&mut engine, requests.into(), 9);
    // Images come, others come, one goes.
    for (text, images) in [(one, &[0][..]), (two, &[0, 1]), (one, &[1])] {
        let requests = vec![ask(&engine, text, images, 3, 1)];
        say(&mut engine, requests, 9);
    }
    // Sequences end apart; one is cancelled. Beams share pages and part.
    let requests = [(one, &[1][..], 2), ("Is it round?", &[], 9), (two, &[1, 0], 4)]
        .map(|(text, images, tokens)| ask(&engine, text, images, tokens, 1));
    say(&mut engine, requests.into(), 1);
    for beams in [2, 1] {
        let requests = vec![ask(&engine, "Is it round?", &[], 3, beams)];
        say(&mut engine, requests, 9);
    }
    let work = engine.work();
    (answers, work)
}
