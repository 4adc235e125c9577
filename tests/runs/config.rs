//! What is read, what is filled in, and what is refused.

use medflamingo::Result;
use medflamingo::run::RunConfig;
use medflamingo::train::data::{LabelRules, Rules};
use serde_json::Value;
use std::path::Path;

const SMALL: &str = r#"
[run]
folder = "out"
steps = 10
[model]
folder = "model"
[train.schedule]
warmup_steps = 2
[[source]]
name = "pairs"
form = "pairs"
shards = ["pairs/{00..03}.tar"]
weight = 0.2
"#;

fn parse(text: &str) -> Result<RunConfig> {
    RunConfig::parse(text, Path::new("/data"))
}

#[test]
fn what_is_not_given_is_upstreams_and_written_back() {
    let config = parse(SMALL).unwrap();
    assert_eq!(config.run.folder, Path::new("/data/out"));
    assert_eq!(config.sources[0].shards, ["/data/pairs/{00..03}.tar"]);
    assert_eq!(config.sources[0].max_tokens, Some(32));
    assert_eq!(config.train.loss_weights, [0.2]);
    assert_eq!((config.train.seed, config.train.schedule.total_steps), (42, 10));
    assert_eq!((config.train.schedule.lr, config.train.optimizer.weight_decay), (1e-4, 0.1));
    let text = config.to_toml().unwrap();
    let again = RunConfig::parse(&text, Path::new("/elsewhere")).unwrap();
    assert_eq!(again, config, "{text}");
    assert_eq!(config.sources[0].rules(), Rules::pairs(LabelRules::V2));
}

/// The example has every key that there is, and what it calls a default is one.
#[test]
fn the_example_has_every_key() {
    let text = include_str!("../../examples/train.toml");
    let example = parse(text).unwrap();
    fn keys(value: &Value, all: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                all.push(key.clone());
                keys(value, all);
            }),
            Value::Array(list) => list.iter().for_each(|value| keys(value, all)),
            _ => {}
        }
    }
    let mut all = Vec::new();
    keys(&example.to_json().unwrap(), &mut all);
    for key in all.iter().filter(|k| !["loss_weights", "seed"].contains(&k.as_str())) {
        assert!(text.contains(&format!("{key} = ")) || text.contains(&format!("{key}]")), "{key}");
    }
    let mut bare = parse(&text.replace("warmup_steps = 1875", "warmup_steps = 1")).unwrap();
    let is_kept = |line: &&str| {
        let is_default = !line.contains("default ") && !line.contains("no default");
        let wanted =
            ["name =", "form =", "file =", "images =", "shards =", "folder =", "prompt =", "["];
        !is_default || wanted.iter().any(|w| line.starts_with(w))
    };
    let short: Vec<&str> = text.lines().filter(is_kept).collect();
    let short = parse(&short.join("\n").replace("= 1875", "= 1")).unwrap();
    bare.samples = short.samples.clone();
    assert_eq!(short, bare);
}

#[test]
fn mistakes_name_the_key_and_what_it_may_be() {
    let with = |from: &str, to: &str| {
        assert!(SMALL.contains(from));
        parse(&SMALL.replacen(from, to, 1)).unwrap_err().to_string()
    };
    for (from, to, needles) in [
        ("steps = 10", "steps = 10\nstep = 3", &["line 5", "`step`", "micro_batches"][..]),
        ("steps = 10", "steps = \"x\"", &["line 4, `steps = \"x\"`", "string"]),
        ("steps = 10", "steps = 0", &["run.steps: expected 1 to"]),
        ("steps = 10", "steps = 10\nmicro_batches = 0", &["run.micro_batches: expected 1 to"]),
        ("steps = 10", "steps = 10\ndevice = \"gpu\"", &["run.device", "cuda:N", "`gpu`"]),
        ("steps = 10", "steps = 2", &["train.schedule.warmup_steps", "run.steps = 2"]),
        ("folder = \"out\"\n", "", &["missing field `folder`"]),
        ("form = \"pairs\"", "form = \"pair\"", &["`pair`", "`interleaved`"]),
        ("weight = 0.2", "weight = -1.0", &["[[source]] pairs: weight", "-1"]),
        ("weight = 0.2", "flip = 2.0", &["flip: expected 0 to 1, found 2"]),
        ("weight = 0.2", "batch = 0", &["batch: expected 1 to"]),
        ("name = \"pairs\"", "name = \"a/b\"", &["name: expected 1 to 64", "`a/b`"]),
        ("form = \"pairs\"", "form = \"lines\"", &["file and images"]),
        ("[model]\nfolder", "[model]\npreset", &["model: preset", "med-flamingo-9b"]),
        ("[run]", "[run", &["line 2"]),
        ("[train.schedule]", "[train.schedule]\nkind = \"sine\"", &["`sine`", "`cosine`"]),
        ("[train.schedule]", "[train]\nmask_mode = \"v3\"\n[train.schedule]", &["v1-augmented"]),
    ] {
        let message = with(from, to);
        for needle in needles {
            assert!(message.contains(needle), "{to}: {needle}: {message}");
        }
    }
    let twice = format!("{SMALL}\n{}", &SMALL[SMALL.find("[[source]]").unwrap()..]);
    assert!(parse(&twice).unwrap_err().to_string().contains("`pairs` twice"));
}

#[test]
fn a_resumed_run_may_change_what_nothing_depends_on() {
    let before = parse(SMALL).unwrap().to_json().unwrap();
    let changed = |from: &str, to: &str| {
        parse(&SMALL.replacen(from, to, 1)).unwrap().difference(&before).unwrap()
    };
    // With warm-up and a constant rate, the number of steps is in the schedule, too.
    let fixed = "[train.schedule]\ntotal_steps = 10";
    let longer = SMALL.replacen("[train.schedule]", fixed, 1).replacen("= 10", "= 20", 1);
    assert_eq!(parse(&longer).unwrap().difference(&before).unwrap(), None);
    assert_eq!(changed("steps = 10", "steps = 10\nthreads = 2\nlog_every = 5"), None);
    let (key, was, is) = changed("weight = 0.2", "weight = 0.5").unwrap();
    assert_eq!((was.as_str(), is.as_str()), ("0.2", "0.5"));
    assert!(key.contains("loss_weights") || key == "source[0].weight", "{key}");
    let (key, ..) = changed("{00..03}", "{00..04}").unwrap();
    assert_eq!(key, "source[0].shards[0]");
    let (key, was, is) = changed("steps = 10", "steps = 10\nseed = 1").unwrap();
    assert!(key.ends_with("seed") && was == "42" && is == "1", "{key}");
}
