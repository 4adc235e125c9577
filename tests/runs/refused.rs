//! Configurations, data and models that do not belong to a run: said by name, and nothing changes.

use super::*;

fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(tree(&path));
        } else {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}

fn edited(config: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(config).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(config, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn a_resume_with_something_else_is_refused_and_overwrites_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let config = prepared(scratch.path(), 4, "checkpoint_every = 2");
    alone(&config, false).unwrap();
    let original = std::fs::read_to_string(&config).unwrap();
    let before = tree(&scratch.path().join("out"));
    let refused = |needles: &[&str]| {
        let message = alone(&config, true).unwrap_err().to_string();
        for needle in needles {
            assert!(message.contains(needle), "{needle}: {message}");
        }
        assert!(tree(&scratch.path().join("out")) == before, "{needles:?}: something was written");
    };
    edited(&config, "lr = 0.001", "lr = 0.002");
    refused(&["train.schedule.lr", "0.002, as now", "found 0.001"]);
    std::fs::write(&config, &original).unwrap();

    let other = model(1).display().to_string();
    edited(&config, &model(0).display().to_string(), &other);
    refused(&["model", "the model folder that the run began with"]);
    std::fs::write(&config, &original).unwrap();

    let data = scratch.path().join("data/pairs.jsonl");
    let lines = std::fs::read_to_string(&data).unwrap();
    std::fs::write(&data, format!("{lines}{lines}")).unwrap();
    refused(&["data state of source 0: shards"]);
    std::fs::write(&data, &lines).unwrap();

    let message = alone(&config, false).unwrap_err().to_string();
    assert!(message.contains("one with a run") && message.contains("--resume"), "{message}");
    assert!(tree(&scratch.path().join("out")) == before);
    // More steps are no other run.
    edited(&config, "steps = 4", "steps = 6");
    assert_eq!(alone(&config, true).unwrap().step, 6);
}

#[test]
fn mistakes_in_the_configuration_end_with_status_2_before_anything_is_made() {
    let scratch = tempfile::tempdir().unwrap();
    let config = prepared(scratch.path(), 4, "");
    let original = std::fs::read_to_string(&config).unwrap();
    let missing = scratch.path().join("nothing");
    let absent = missing.display().to_string();
    for (from, to, needle) in [
        ("steps = 4", "stepz = 4", "`stepz`"),
        ("steps = 4", "steps = -4", "steps = -4"),
        ("bits = 8", "bits = 4", "optimizer.bits"),
        ("form = \"lines\"", "form = \"images\"", "`interleaved`"),
        ("data/pairs.jsonl", "data/none.jsonl", "none.jsonl"),
        (model(0).to_str().unwrap(), absent.as_str(), "a model folder"),
    ] {
        std::fs::write(&config, &original).unwrap();
        edited(&config, from, to);
        let out = command(&config).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{text}");
        assert!(text.contains(needle) && text.contains("error:"), "{needle}: {text}");
        assert!(!scratch.path().join("out/checkpoints").exists(), "{to}");
    }
    let out = command(&missing).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
}
