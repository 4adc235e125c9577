//! What a run writes besides checkpoints, what it plans, and what becomes of it.

use super::*;
use medflamingo::checkpoint::Checkpoint;
use medflamingo::convert::export::{Options, export};
use medflamingo::engine::{Engine, EngineOptions, ModelFolder};
use medflamingo::run::plan::Shape;
use medflamingo::train::{OverRanks, Recompute, Trained, Trainer};
use serde_json::Value;
use std::rc::Rc;

#[test]
fn metrics_validation_samples_and_the_whole_configuration() {
    let scratch = tempfile::tempdir().unwrap();
    let config = prepared(
        scratch.path(),
        6,
        "validate_every = 3\nsample_every = 3\nvalidation_sequences = 5",
    );
    let more = r#"
[[validation]]
name = "held-out"
form = "lines"
file = "data/pairs.jsonl"
images = "data"
batch = 2
[[sample]]
prompt = "<image>"
images = ["data/0.png"]
max_new_tokens = 4
"#;
    let text = std::fs::read_to_string(&config).unwrap() + more;
    std::fs::write(&config, text).unwrap();
    alone(&config, false).unwrap();
    let out = scratch.path().join("out");
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|l| l["kind"] == kind).collect::<Vec<_>>();
    assert_eq!(of("train").len(), 6);
    assert_eq!(of("validation").len(), 2);
    let first = of("train")[0];
    for key in [
        "loss/waves",
        "loss",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "data_wait_share",
        "sum_wait_share",
    ] {
        assert!(first[key].as_f64().is_some_and(f64::is_finite), "{key}: {first}");
    }
    assert!(of("validation")[1]["loss/held-out"].as_f64().unwrap() > 0.0);
    assert!(of("train")[5]["loss"].as_f64() < first["loss"].as_f64(), "it learns");
    let events = std::fs::read_dir(out.join("tensorboard")).unwrap().next().unwrap().unwrap();
    let events = std::fs::read(events.path()).unwrap();
    let has = |needle: &[u8]| events.windows(needle.len()).any(|w| w == needle);
    assert!(has(b"train/loss/waves") && has(b"validation/loss/held-out") && has(b"samples"));
    let whole = RunConfig::read(&out.join("config.toml")).unwrap();
    assert_eq!(whole, RunConfig::read(&config).unwrap());
}

/// The plan's activations are what a trainer holds after a step, or a little more.
#[test]
fn the_plan_is_what_a_trainer_holds() {
    let scratch = tempfile::tempdir().unwrap();
    let config = prepared(scratch.path(), 2, "");
    let mut run = RunConfig::read(&config).unwrap();
    // Large enough that what rooms round up to is little beside it.
    run.sources[0].batch = 16;
    for recompute in [Recompute::None, Recompute::Blocks, Recompute::All] {
        run.train.recompute = recompute;
        let mut folder = ModelFolder::open(&model(0)).unwrap();
        let options = run.train.clone();
        let queue = Stream::host(1);
        let ModelFolder { config, weights, preprocess, .. } = &mut folder;
        let mut trainer = Trainer::new(queue, weights, config, preprocess, options, None).unwrap();
        let source = &run.sources[0];
        let mut data = medflamingo::train::data::Stream::open(
            source.source(),
            source.rules(),
            folder.tokenizer.clone(),
            folder.preprocess,
            source.stream(1, 0, 0, 1),
        )
        .unwrap();
        let batch = data.batch(16).unwrap().unwrap();
        let mut shape = Shape::of(&run, &folder.config, 1);
        shape.size.tokens = batch.tokens();
        shape.size.targets = batch.tokens() - 32;
        trainer.step(&[batch]).unwrap();
        let (held, plan) = (trainer.memory(), shape.plan().unwrap());
        let of = |names: &[&str]| {
            let own = plan.classes.iter().filter(|c| names.iter().any(|n| c.name.starts_with(n)));
            own.map(|c| c.bytes).sum::<u64>() as f64
        };
        let near = |planned: f64, held: usize, least: f64, most: f64| {
            let ratio = planned / held as f64;
            assert!((least..most).contains(&ratio), "{recompute}: {planned} for {held}\n{plan}");
        };
        near(of(&["trained weights"]), held.parameters, 0.999, 1.001);
        near(of(&["gradients"]), held.gradients, 0.999, 1.001);
        near(of(&["moments", "master"]), held.optimizer, 0.97, 1.03);
        let passing = ["activations", "tokens of", "pixels", "working", "logits", "transposed"];
        near(of(&passing), held.activations, 0.8, 1.25);
    }
}

/// Gradients are a share and buckets; rank 0 has the largest share.
#[test]
fn the_plan_of_several_ranks_is_what_the_first_holds() {
    let scratch = tempfile::tempdir().unwrap();
    let mut run = RunConfig::read(&prepared(scratch.path(), 2, "")).unwrap();
    for (trained, world) in [(Trained::default(), 2), (Trained::ALL, 4)] {
        run.train.trained = trained;
        let mut folder = ModelFolder::open(&model(0)).unwrap();
        let (queue, options) = (Stream::host(1), run.train.clone());
        let comm = Comm::threads(world, std::time::Duration::from_secs(9)).remove(0);
        let sums = Box::new(OverRanks::new(Rc::new(comm)));
        let ModelFolder { config, weights, preprocess, .. } = &mut folder;
        let trainer =
            Trainer::new(queue, weights, config, preprocess, options, Some(sums)).unwrap();
        let plan = Shape::of(&run, config, world).plan().unwrap();
        let own = plan.classes.iter().filter(|c| c.name.starts_with("gradients"));
        let planned: u64 = own.map(|c| c.bytes).sum();
        assert_eq!(planned, trainer.memory().gradients as u64, "{plan}");
    }
}

#[test]
fn what_a_run_made_is_exported_for_others_and_for_us() {
    let scratch = tempfile::tempdir().unwrap();
    let config = prepared(scratch.path(), 3, "");
    alone(&config, false).unwrap();
    let tools = |output: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_medflamingo-tools"));
        let run = scratch.path().join("out");
        command.args(["export", run.to_str().unwrap(), "--output", output.to_str().unwrap()]);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let file = scratch.path().join("trained.pt");
    assert!(tools(&file).starts_with("step 3: "));
    let exported = Checkpoint::open(&file).unwrap();
    exported.verify().unwrap();
    let gate = "lang_encoder.model.layers.1.gated_cross_attn_layer.attn_gate";
    assert!(exported.get(gate).is_some() && exported.get("perceiver.latents").is_some());
    let folder = scratch.path().join("model");
    tools(&folder);
    let engine = Engine::open(&folder, &EngineOptions::default()).unwrap();
    drop(engine);
    let saved = scratch.path().join("out/checkpoints/step-00000003/trainable.safetensors");
    let options = Options {
        folder: model(0),
        trained: saved,
        output: scratch.path().join("again.pt"),
        parts: Vec::new(),
        dtype: None,
        max_shard: 1 << 30,
        is_forced: false,
    };
    export(&options, &|_, _| {}).unwrap();
    let bytes = |name: &str| std::fs::read(scratch.path().join(name)).unwrap();
    assert!(bytes("again.pt") == bytes("trained.pt"));
}

#[test]
fn a_plan_is_printed_and_nothing_is_made() {
    let scratch = tempfile::tempdir().unwrap();
    let config = prepared(scratch.path(), 10, "");
    let text = std::fs::read_to_string(&config).unwrap();
    let preset = text
        .replace(&format!("folder = \"{}\"", model(0).display()), "preset = \"med-flamingo-9b\"")
        .replace("bits = 8", "bits = 32");
    std::fs::write(&config, preset).unwrap();
    let plan = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_medflamingo"));
        command.args(["train", config.to_str().unwrap(), "--plan"]).args(more);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let text = plan(&["--memory", "24GB"]);
    assert!(text.contains("GB  weights") && text.contains("does not fit"), "{text}");
    let json: Value =
        serde_json::from_str(&plan(&["--json", "--memory", "80GB", "--ranks", "8"])).unwrap();
    assert_eq!((&json["ranks"], &json["card"]["fits"]), (&Value::from(8), &Value::from(true)));
    let classes = json["classes"].as_array().unwrap();
    let sum: u64 = classes.iter().map(|c| c["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json["total"].as_u64(), Some(sum));
    assert!(!scratch.path().join("out").exists());
}

/// A panel for each run, a color for each source; damaged metrics are refused by line.
#[test]
fn curves_are_drawn_from_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let (run, output) = (folder.path().join("a&b"), folder.path().join("curves.svg"));
    std::fs::create_dir(&run).unwrap();
    let curves = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_medflamingo-tools"));
        command.arg("curves").arg(&run).arg("--output").arg(&output).output().unwrap()
    };
    let step = |kind: &str, step: usize, loss: f64| {
        format!("{{\"kind\":\"{kind}\",\"step\":{step},\"loss/text\":{loss},\"loss/pairs\":1}}\n")
    };
    let metrics: String = (1..=250).map(|i| step("train", i, 4.0 / i as f64)).collect();
    let metrics = metrics + &step("validation", 250, 0.0625);
    std::fs::write(run.join("metrics.jsonl"), &metrics).unwrap();
    let out = curves();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let svg = std::fs::read_to_string(&output).unwrap();
    assert!(svg.contains(">a&amp;b: nats") && svg.contains(">text, at last 0.062<"), "{svg}");
    // Two lines of training and two of validation; at most a hundred points on each.
    assert_eq!((svg.matches("stroke-width").count(), svg.matches("<circle").count()), (4, 2));
    assert!(svg.lines().all(|line| line.matches('L').count() < 100));
    std::fs::write(run.join("metrics.jsonl"), metrics + "{").unwrap();
    let out = curves();
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(2) && err.contains("line 252"), "{err}");
}
