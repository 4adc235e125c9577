//! What a run says of itself: one JSON object a line for programs, event files for TensorBoard.

use super::disk::Disk;
use super::tensorboard::EventFile;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The file of lines in a run's folder.
pub const LINES: &str = "metrics.jsonl";
/// The folder of event files in a run's folder.
pub const EVENTS: &str = "tensorboard";

/// Both, open.
pub struct Metrics {
    lines: File,
    path: PathBuf,
    events: EventFile,
}

impl Metrics {
    /// Goes on at `step` in a run's folder: lines of later steps, which a run that was interrupted
    /// wrote after its last checkpoint, are taken out.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(folder: &Path, step: u64, disk: &Disk) -> Result<Self> {
        let path = folder.join(LINES);
        if path.exists() {
            let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
            let is_kept = |line: &&str| {
                let value: Option<Value> = serde_json::from_str(line).ok();
                value.and_then(|v| v["step"].as_u64()).is_some_and(|s| s <= step)
            };
            let kept: Vec<&str> = text.lines().filter(is_kept).collect();
            if kept.len() != text.lines().count() || !(text.is_empty() || text.ends_with('\n')) {
                let text: String = kept.iter().flat_map(|line| [line, "\n"]).collect();
                disk.replace(&path, text.as_bytes())?;
            }
        }
        let lines = OpenOptions::new().create(true).append(true).open(&path);
        let lines = lines.map_err(|e| Error::io("open", &path, e))?;
        let events = EventFile::create(&folder.join(EVENTS), step + 1)?;
        Ok(Metrics { lines, path, events })
    }

    /// Numbers of `kind` (`train`, `validation`) at `step`. A number that is none becomes null.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn numbers(&mut self, kind: &str, step: u64, numbers: &[(String, f64)]) -> Result<()> {
        let mut line = Map::new();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        line.insert("kind".into(), json!(kind));
        line.insert("step".into(), json!(step));
        line.insert("time".into(), json!((now * 1e3).round() / 1e3));
        for (name, value) in numbers {
            line.insert(name.clone(), json!(value));
            self.events.scalar(step, &format!("{kind}/{name}"), *value as f32)?;
        }
        self.line(&Value::Object(line))
    }

    /// Something that happened at `step`, in words.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn event(&mut self, kind: &str, step: u64, what: &str) -> Result<()> {
        self.line(&json!({"kind": kind, "step": step, "what": what}))
    }

    /// Text that is shown beside the numbers, and stays out of the lines.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<()> {
        self.events.text(step, tag, text)
    }

    fn line(&mut self, value: &Value) -> Result<()> {
        // One write: a line is there or it is not, unless the process ends in the middle.
        let written = self.lines.write_all(format!("{value}\n").as_bytes());
        written.map_err(|e| Error::io("write", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_after_the_checkpoint_go_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        let mut metrics = Metrics::open(folder.path(), 0, &disk).unwrap();
        for step in 1..=6 {
            let numbers = [("loss".into(), 1.0 / step as f64), ("odd".into(), f64::NAN)];
            metrics.numbers("train", step, &numbers).unwrap();
        }
        metrics.event("note", 4, "something").unwrap();
        drop(metrics);
        let path = folder.path().join(LINES);
        // A process that was killed may leave half a line.
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"kind\":\"tra");
        std::fs::write(&path, text).unwrap();
        let mut metrics = Metrics::open(folder.path(), 4, &disk).unwrap();
        metrics.numbers("train", 5, &[("loss".into(), 7.0)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let steps: Vec<u64> = lines.iter().map(|l| l["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [1, 2, 3, 4, 4, 5]);
        assert_eq!((&lines[1]["loss"], &lines[1]["odd"]), (&json!(0.5), &Value::Null));
        assert_eq!(lines[5]["loss"], json!(7.0));
        assert_eq!(std::fs::read_dir(folder.path().join(EVENTS)).unwrap().count(), 2);
    }
}
