//! Recordings for people: a table by kernel, and a trace for ui.perfetto.dev or chrome://tracing.

use super::Ceilings;
use crate::device::{Cost, Launched, Recording};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The launches of one entry together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    pub entry: String,
    pub launches: usize,
    pub us: f64,
    pub bytes: f64,
    pub flops: f64,
    /// Of the time of all launches.
    pub share_of_time: f64,
    /// Least time at the ceilings over the time taken; absent if they were not measured.
    pub share_of_roofline: Option<f64>,
}

/// Lines by entry, the one that took longest first.
pub fn summary(recording: &Recording, ceilings: Option<&Ceilings>) -> Vec<Line> {
    let mut lines: BTreeMap<&str, (Line, f64)> = BTreeMap::new();
    let total: f64 = recording.launches.iter().map(|l| l.us).sum();
    for l in &recording.launches {
        let empty = || {
            let line = Line {
                entry: l.entry.clone(),
                launches: 0,
                us: 0.0,
                bytes: 0.0,
                flops: 0.0,
                share_of_time: 0.0,
                share_of_roofline: None,
            };
            (line, 0.0)
        };
        let (line, least) = lines.entry(&l.entry).or_insert_with(empty);
        line.launches += 1;
        line.us += l.us;
        line.bytes += l.cost.bytes;
        line.flops += l.cost.flops;
        *least += ceilings.map_or(0.0, |c| c.us(l.cost));
    }
    let mut lines: Vec<Line> = lines
        .into_values()
        .map(|(line, least)| Line {
            share_of_time: if total > 0.0 { line.us / total } else { 0.0 },
            share_of_roofline: ceilings.filter(|_| line.us > 0.0).map(|_| least / line.us),
            ..line
        })
        .collect();
    lines.sort_by(|a, b| b.us.total_cmp(&a.us));
    lines
}

/// The recording in the Trace Event Format: phases on one track, launches on another, each with its
/// bytes, operations, rates and percent of the roofline.
pub fn chrome(recording: &Recording, ceilings: Option<&Ceilings>, device: &str) -> Value {
    let name = |kind: &str, tid: u32, name: &str| {
        let args = json!({"name": name});
        json!({"ph": "M", "pid": 1, "tid": tid, "name": kind, "args": args})
    };
    let mut events = vec![
        name("process_name", 0, device),
        name("thread_name", 1, "phases"),
        name("thread_name", 2, "launches"),
    ];
    for phase in &recording.phases {
        let launches = &recording.launches[phase.begin..phase.end];
        if let (Some(first), Some(last)) = (launches.first(), launches.last()) {
            let us = last.start_us + last.us - first.start_us;
            let args = json!({"launches": launches.len()});
            events.push(span(1, &phase.name, first.start_us, us, args));
        }
    }
    events.extend(recording.launches.iter().map(|l| launch(l, ceilings)));
    json!({
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {"device": device, "ceilings": ceilings},
    })
}

fn span(tid: u32, name: &str, start_us: f64, us: f64, args: Value) -> Value {
    json!({"ph": "X", "pid": 1, "tid": tid, "name": name, "ts": start_us, "dur": us, "args": args})
}

fn launch(l: &Launched, ceilings: Option<&Ceilings>) -> Value {
    let Cost { bytes, flops } = l.cost;
    let per_us = |work: f64| if l.us > 0.0 { work / l.us } else { 0.0 };
    let args = json!({
        "kernel": l.kernel,
        "bytes": bytes,
        "flops": flops,
        "GB/s": per_us(bytes) / 1e3,
        "TFLOP/s": per_us(flops) / 1e6,
        "% of roofline": ceilings.map(|c| 100.0 * c.share(l.cost, l.us)),
        "grid": l.grid,
        "threads": l.threads,
        "shared": l.shared,
    });
    span(2, &l.entry, l.start_us, l.us, args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Phase;

    fn recording() -> Recording {
        let launch = |kernel: &'static str, start_us: f64, us: f64, bytes: f64| Launched {
            kernel,
            entry: format!("{kernel}_bf16"),
            grid: [1, 2, 3],
            threads: 128,
            shared: 0,
            cost: Cost { bytes, flops: 0.0 },
            start_us,
            us,
        };
        Recording {
            launches: vec![
                launch("gemm", 0.0, 10.0, 1e4),
                launch("rope", 12.0, 5.0, 1e3),
                launch("gemm", 20.0, 30.0, 2e4),
            ],
            phases: vec![Phase { name: "decode".into(), begin: 1, end: 3 }],
        }
    }

    const CEILINGS: Ceilings = Ceilings { copy: 1e9, read: 2e9, product: 1e12 };

    #[test]
    fn lines_add_up() {
        let lines = summary(&recording(), Some(&CEILINGS));
        let gemm = &lines[0];
        assert_eq!((gemm.entry.as_str(), gemm.launches), ("gemm_bf16", 2));
        assert_eq!((gemm.us, gemm.bytes), (40.0, 3e4));
        assert!((gemm.share_of_roofline.unwrap() - 15.0 / 40.0).abs() < 1e-9);
        assert!((lines.iter().map(|l| l.share_of_time).sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(summary(&recording(), None)[0].share_of_roofline, None);
        assert_eq!(summary(&Recording::default(), None), []);
    }

    #[test]
    fn a_trace_has_every_launch_and_phase() {
        let trace = chrome(&recording(), Some(&CEILINGS), "cpu");
        let events = trace["traceEvents"].as_array().unwrap();
        let spans = |tid: u32| events.iter().filter(move |e| e["ph"] == "X" && e["tid"] == tid);
        assert_eq!(spans(2).count(), 3);
        let phase = spans(1).next().unwrap();
        assert_eq!((&phase["ts"], &phase["dur"]), (&json!(12.0), &json!(38.0)));
        let last = spans(2).next_back().unwrap();
        assert_eq!((&last["name"], &last["dur"]), (&json!("gemm_bf16"), &json!(30.0)));
        assert!((last["args"]["% of roofline"].as_f64().unwrap() - 100.0 / 3.0).abs() < 1e-6);
    }
}
