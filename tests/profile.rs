//! `medflamingo profile`, run as a user runs it: its summary, its trace, and what a profiler hears.

#[allow(dead_code)]
mod golden_folder;

use golden_folder::models;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn profile(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_medflamingo"));
    command.args(["profile", "--device", "cpu", "--threads", "1"]).args(arguments);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeeded(out: Output) -> Value {
    assert!(out.status.success(), "{}", text(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn question() -> (PathBuf, PathBuf) {
    let model = models().into_iter().find(|m| m.name == "llama-tiny").unwrap().convert("f32");
    (model, Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images/phantom_0.jpg"))
}

const PROMPT: &str = "<image>Question: Is it round? Answer:";

fn spans(trace: &Value, track: u32) -> Vec<&Value> {
    let events = trace["traceEvents"].as_array().unwrap().iter();
    events.filter(|e| e["ph"] == "X" && e["tid"] == track).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// The summary and the trace of [`PROMPT`] with its image and so many tokens.
fn traced(tokens: &str) -> (Value, Value) {
    let (model, image) = question();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    let out = profile(&["--model", model.to_str().unwrap(), "--prompt", PROMPT])
        .args(["--image", image.to_str().unwrap(), "--max-new-tokens", tokens, "--json", "--trace"])
        .arg(&path)
        .output();
    let report = succeeded(out.unwrap());
    (report, serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap())
}

/// After the last attention only what gets logits goes on: of a prompt its last token.
#[test]
fn the_last_layer_computes_what_is_asked_for() {
    let (_, trace) = traced("1");
    let launches = spans(&trace, 2);
    let of_mlps = launches.iter().filter(|l| l["args"]["kernel"] == "swiglu");
    let rows: Vec<_> = of_mlps.map(|l| number(&l["args"]["flops"])).collect();
    let [first, second, third, last] = rows[..] else { panic!("{rows:?}") };
    assert_eq!((second, third, last), (first, first, first / 14.0));
}

#[test]
fn a_request_becomes_a_summary_and_a_trace_that_agree() {
    let (report, trace) = traced("3");
    let (phases, launches) = (spans(&trace, 1), spans(&trace, 2));
    assert_eq!(launches.len() as u64, report["launches"].as_u64().unwrap());
    let names: Vec<_> = phases.iter().map(|p| p["name"].as_str().unwrap()).collect();
    let step = ["decode", "sampling"];
    let expected = [&["vision", "resampler", "media", "prefill", "sampling"], &step[..], &step];
    assert_eq!(names, expected.concat());
    let covered: u64 = phases.iter().map(|p| p["args"]["launches"].as_u64().unwrap()).sum();
    assert_eq!(covered, launches.len() as u64, "every launch belongs to a phase");
    for pair in launches.windows(2) {
        assert!(number(&pair[1]["ts"]) >= number(&pair[0]["ts"]) + number(&pair[0]["dur"]) - 1e-3);
    }
    let lines = report["lines"].as_array().unwrap();
    for key in ["bytes", "flops"] {
        let by_line: f64 = lines.iter().map(|l| number(&l[key])).sum();
        let by_launch: f64 = launches.iter().map(|l| number(&l["args"][key])).sum();
        assert!(by_launch > 0.0 && (by_line / by_launch - 1.0).abs() < 1e-9, "{key}");
    }
    let us: f64 = launches.iter().map(|l| number(&l["dur"])).sum();
    assert!((lines.iter().map(|l| number(&l["us"])).sum::<f64>() / us - 1.0).abs() < 1e-6);
    assert!(number(&report["ceilings"]["read"]) > 1e8);
    assert!(launches.iter().all(|l| number(&l["args"]["% of roofline"]) > 0.0));
}

#[test]
fn a_kernel_is_launched_as_often_as_asked() {
    let arguments = ["--kernel", "swiglu", "--case", "lm_64", "--quick", "--launches", "5"];
    let report = succeeded(profile(&arguments).arg("--json").output().unwrap());
    assert_eq!(report["launches"], 5);
    assert_eq!(report["lines"][0]["entry"], "swiglu_bf16");
    let out = profile(&arguments).output().unwrap();
    assert!(text(&out.stdout).contains("swiglu_bf16"), "{}", text(&out.stdout));
}

#[test]
fn what_cannot_be_profiled_is_said() {
    let refused = |arguments: &[&str], needle: &str| {
        let out = profile(arguments).output().unwrap();
        let err = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{err}");
        assert!(err.contains(needle) && out.stdout.is_empty(), "{needle}: {err}");
    };
    refused(&[], "--model <DIR>");
    refused(&["--kernel", "nothing"], "--kernel: expected one of ");
    refused(&["--kernel", "gemm", "--case", "x"], "--case: expected one of lm_qkv_1, ");
    refused(&["--kernel", "gemm", "--launches", "0"], "0 is not in 1..=4096");
    refused(&["--kernel", "gemm", "--model", "x"], "cannot be used with");
}

/// A profiler's library as NVTX loads it: it writes down the ranges it is told of.
const LISTENER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
typedef void *(*export_table)(unsigned);
struct callbacks { size_t size; int (*module)(int, void ***, unsigned *); };
static FILE *out;
static int push(const char *name) { return fprintf(out, "push %s\n", name), fflush(out); }
static int pop(void) { return fprintf(out, "pop\n"), fflush(out); }
int InitializeInjectionNvtx2(export_table get) {
  struct callbacks *callbacks = get(1);
  void **table; unsigned size;
  out = fopen(getenv("LISTENER_OUT"), "w");
  for (int module = 1; module <= 6; module++)
    if (!callbacks->module(module, &table, &size)) return 0;
  if (!out || !callbacks->module(1, &table, &size) || size != 16 || table[0]) return 0;
  *(void **)table[9] = (void *)push;
  *(void **)table[11] = (void *)pop;
  return 1;
}
"#;

#[test]
fn a_profiler_hears_names_and_nothing_else_is_launched() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("listener.c"), LISTENER).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([at("listener.so"), at("listener.c")])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", text(&compiled.stderr));
    let arguments = ["--kernel", "rope", "--case", "lm_1", "--quick", "--launches", "2", "--json"];
    let out = profile(&arguments)
        .env("NVTX_INJECTION64_PATH", at("listener.so"))
        .env("LISTENER_OUT", at("heard"))
        .output();
    let report = succeeded(out.unwrap());
    assert_eq!(report["ceilings"], Value::Null);
    let heard = std::fs::read_to_string(at("heard")).unwrap();
    assert_eq!(heard, "push rope_bf16\npop\n".repeat(2));
    // A library that is not one is no reason to fail.
    let out = profile(&arguments).env("NVTX_INJECTION64_PATH", at("listener.c")).output();
    assert!(succeeded(out.unwrap())["ceilings"].is_object());
}
