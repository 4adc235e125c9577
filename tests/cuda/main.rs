//! The CUDA device without a card: the program runs against a driver of our own (`tests/driver`),
//! whose launches are the real kernels under the emulator, and which fails where it is told to.

#[path = "../golden_folder/mod.rs"]
#[allow(dead_code)]
mod golden_folder;
mod steps;
mod tiles;

use golden_folder::models;
use half::bf16;
use medflamingo::DType;
use medflamingo::device::{Device, Products, Simt, Stream};
use medflamingo::dtype::Real;
use medflamingo::engine::{self, Engine, EngineOptions, GenerateOptions};
use medflamingo::ops::{self, Activation, Epilogue, Out, gemm};
use medflamingo::tensor::Tensor;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The driver's library is in `folder`.
struct Driver {
    folder: PathBuf,
    /// Files that look like fatbins.
    fatbins: PathBuf,
    /// The emulator's library of kernels.
    kernels: PathBuf,
}

fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver");
        let fatbins = folder.join("fatbins");
        std::fs::create_dir_all(&fatbins).unwrap();
        let library = folder.join("libcuda.so.1");
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let mut command = Command::new(compiler);
        command.args(["-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]);
        command.arg(&library).arg(root.join("tests/driver/cuda.cpp")).args(["-ldl", "-pthread"]);
        assert!(command.status().unwrap().success());
        for entry in std::fs::read_dir(root.join("kernels")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "cu") {
                let name = Path::new(path.file_name().unwrap()).with_extension("fatbin");
                std::fs::write(fatbins.join(name), fatbin()).unwrap();
            }
        }
        let sum = Command::new("sh").arg(root.join("kernels/build")).arg("--contracts").output();
        std::fs::write(fatbins.join("contracts"), sum.unwrap().stdout).unwrap();
        let kernels = Simt::kernels().unwrap().path().to_path_buf();
        Driver { folder, fatbins, kernels }
    })
}

/// A command that finds the driver, which fails at `fault`.
fn with_driver(program: impl AsRef<OsStr>, fault: &str) -> Command {
    let Driver { folder, fatbins, kernels } = driver();
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", folder).env("MEDFLAMINGO_KERNELS", fatbins);
    command.env("DRIVER_KERNELS", kernels).env("DRIVER_FAULT", fault);
    command
}

/// The least that passes for a fatbin: its header and an empty body.
fn fatbin() -> Vec<u8> {
    let mut bytes = vec![0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0];
    bytes.extend(0u64.to_le_bytes());
    bytes
}

fn folder() -> PathBuf {
    models().into_iter().find(|m| m.name == "llama-tiny").unwrap().convert("f32")
}

/// `medflamingo` with the driver, failing at `fault`; `more` are variables.
fn run(arguments: &[&str], fault: &str, more: &[(&str, &str)]) -> Output {
    let mut command = with_driver(env!("CARGO_BIN_EXE_medflamingo"), fault);
    command.args(arguments).envs(more.iter().copied()).output().unwrap()
}

fn generate(device: &str, fault: &str, more: &[(&str, &str)]) -> Output {
    ask(device, "Question: Is it round? Answer:", None, 5, fault, more)
}

fn ask(
    device: &str,
    prompt: &str,
    image: Option<&str>,
    tokens: usize,
    fault: &str,
    more: &[(&str, &str)],
) -> Output {
    let (folder, tokens) = (folder(), tokens.to_string());
    let mut arguments = vec!["generate", "--model", path(&folder), "--device", device, "--json"];
    arguments.extend([
        "--prompt",
        prompt,
        "--max-new-tokens",
        &tokens,
        "--min-new-tokens",
        &tokens,
    ]);
    arguments.extend(image.iter().flat_map(|image| ["--image", image]));
    run(&arguments, fault, more)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Exit status, the needles on stderr, no panic.
fn refused(out: &Output, status: i32, needles: &[&str]) {
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{err}");
    assert!(needles.iter().all(|n| err.contains(n)), "{needles:?}: {err}");
    assert!(err.contains("error:") && !err.contains("panicked"), "{err}");
}

#[test]
fn what_is_wrong_with_a_machine_is_said() {
    refused(&generate("cuda", "no_device", &[]), 3, &["a driver but no card"]);
    let hidden = generate("cuda", "no_device", &[("CUDA_VISIBLE_DEVICES", "")]);
    refused(&hidden, 3, &["no card: CUDA_VISIBLE_DEVICES is ``"]);
    refused(&generate("cuda", "exclusive", &[]), 3, &["exclusive use by another process"]);
    refused(&generate("cuda", "old_driver", &[]), 3, &["too old", "CUDA 11.4", "12.0"]);
    refused(&generate("cuda:3", "", &[]), 3, &["cuda:3: no such card: there are 1"]);
    refused(&generate("cuda", "no_image", &[]), 3, &[".fatbin", "other cards", "sm_90"]);
    let out = generate("cuda", "memory:40000000", &[]);
    refused(&out, 3, &["not enough memory", "MiB of weights", "free"]);
    let out = generate("cuda", "memory:9000", &[]);
    refused(&out, 3, &["not enough memory", "smaller dtype"]);
}

#[test]
fn folders_of_fatbins_are_checked() {
    let Driver { fatbins, .. } = driver();
    let scratch = tempfile::tempdir().unwrap();
    let at = |folder: &Path| generate("cuda", "", &[("MEDFLAMINGO_KERNELS", path(folder))]);
    refused(&at(scratch.path()), 2, &["a fatbin of every kernel", "kernels/build"]);
    refused(&at(&scratch.path().join("away")), 2, &["away", "cannot list"]);
    for entry in std::fs::read_dir(fatbins).unwrap() {
        let file = entry.unwrap();
        std::fs::copy(file.path(), scratch.path().join(file.file_name())).unwrap();
    }
    let contracts = scratch.path().join("contracts");
    std::fs::write(&contracts, "1 2\n").unwrap();
    refused(&at(scratch.path()), 2, &["kernels for contracts", "found 1 2", "kernels/build"]);
    let out = run(&["devices"], "", &[("MEDFLAMINGO_KERNELS", path(scratch.path()))]);
    let said = text(&out.stdout);
    assert!(said.contains("not usable: ") && said.contains("found 1 2"), "{said}");
    assert!(said.contains("auto is cpu"), "{said}");
    std::fs::remove_file(&contracts).unwrap();
    refused(&at(scratch.path()), 2, &["the sum of their contracts"]);
    std::fs::copy(fatbins.join("contracts"), &contracts).unwrap();
    let gemm = scratch.path().join("gemm.fatbin");
    for (bytes, found) in [
        (b"\x7fELF and some more text".to_vec(), "another kind of file"),
        (fatbin()[..9].to_vec(), "cut off"),
        ([&fatbin()[..8], &9u64.to_le_bytes()].concat(), "cut off"),
    ] {
        std::fs::write(&gemm, bytes).unwrap();
        refused(&at(scratch.path()), 2, &["gemm.fatbin", found]);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_failed_launch_is_named_and_ends_the_engine_only() {
    refused(&generate("cuda", "launch:3", &[]), 3, &["launch of ", "_f32", "OUT_OF_RESOURCES"]);
    let late = generate("cuda", "run:5", &[]);
    refused(&late, 3, &["LAUNCH_FAILED", "at or before", "MEDFLAMINGO_SYNC=1"]);
    let named = generate("cuda", "run:5", &[("MEDFLAMINGO_SYNC", "1")]);
    refused(&named, 3, &["LAUNCH_FAILED", "_f32"]);
    assert!(!text(&named.stderr).contains("at or before"), "{}", text(&named.stderr));
}

/// What an answer says, and what the driver counted meanwhile.
fn answer(device: &str, sees: bool, tokens: usize, more: &[(&str, &str)]) -> (Value, Value) {
    let scratch = tempfile::tempdir().unwrap();
    let report = scratch.path().join("report.json");
    let more = [more, &[("DRIVER_REPORT", path(&report))]].concat();
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/images/phantom_4.jpg");
    let (prompt, image) = match sees {
        true => ("<image>Is it round?", Some(image)),
        false => ("Question: Is it round? Answer:", None),
    };
    let out = ask(device, prompt, image, tokens, "", &more);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let counted = std::fs::read(report).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap());
    (serde_json::from_slice(&out.stdout).unwrap(), counted.unwrap_or_default())
}

#[test]
fn tokens_are_the_hosts_and_steps_are_replayed() {
    let (host, _) = answer("cpu", false, 5, &[]);
    let (graphs, counted) = answer("auto", false, 5, &[]);
    let (sync, one_by_one) = answer("cuda", false, 5, &[("MEDFLAMINGO_SYNC", "1")]);
    let (a100, on_a100) = answer("cuda", false, 5, &[("DRIVER_CHIP", "a100")]);
    for answer in [&graphs, &sync, &a100] {
        assert_eq!(answer["token_ids"], host["token_ids"]);
        assert_eq!(answer["work"]["launches"], host["work"]["launches"]);
    }
    // The prompt runs as it comes; the four tokens after the first are steps. They reach another
    // page of keys, and a larger page table is another graph.
    let work = |answer: &Value| {
        let count = |name| answer["work"][name].as_u64().unwrap();
        (count("graphs"), count("replays"))
    };
    assert_eq!((work(&graphs), work(&sync)), ((2, 2), (0, 0)));
    assert_eq!(counted["replays"], 4);
    // Launches overlap on a card where each waits for the one before: those of the prompt, all but
    // the choice of a token, and those of steps.
    let overlapping = |counted: &Value| counted["overlapping"].as_i64().unwrap();
    let (_, prompt) = answer("cuda", false, 1, &[]);
    assert_eq!(overlapping(&prompt), prompt["launches"].as_i64().unwrap() - 1);
    assert!(overlapping(&counted) > overlapping(&prompt));
    assert_eq!([&on_a100, &one_by_one].map(overlapping), [0, 0]);
    for counted in [counted, one_by_one] {
        assert_eq!(counted["launches"], graphs["work"]["launches"]);
        assert_eq!((&counted["live"], &counted["bytes"]), (&0.into(), &0.into()), "all given back");
        assert_eq!(counted["misaligned"], 0);
    }
}

/// Library folders with cuBLASLt's stand-in (`tests/driver/cublaslt.cpp`) beside the driver's.
fn with_cublaslt() -> String {
    let Driver { folder, .. } = driver();
    let own = folder.join("cublaslt");
    std::fs::create_dir_all(&own).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver/cublaslt.cpp");
    let mut command = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    command.args(["-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]);
    command.arg(own.join("libcublasLt.so")).arg(source).arg(folder.join("libcuda.so.1"));
    assert!(command.status().unwrap().success());
    format!("{}:{}", path(folder), path(&own))
}

fn by_cublaslt(device: &str, more: &[(&str, &str)]) -> Output {
    let folder = folder();
    let mut arguments = vec!["generate", "--model", path(&folder), "--device", device, "--json"];
    arguments.extend(["--prompt", "Question: Is it round? Answer:", "--gemm", "cublaslt"]);
    arguments.extend(["--max-new-tokens", "5", "--min-new-tokens", "5"]);
    run(&arguments, "", more)
}

#[test]
fn cublaslt_is_a_choice_that_nothing_needs() {
    let words = "cublaslt: needs a CUDA card; the device is cpu";
    refused(&by_cublaslt("cpu", &[]), 3, &[words]);
    // SAFETY: looks for the library.
    if unsafe { libc::dlopen(c"libcublasLt.so.12".as_ptr(), libc::RTLD_NOW) }.is_null() {
        refused(&by_cublaslt("cuda", &[]), 3, &["no libcublasLt.so", "--gemm own"]);
    }
    let libraries = with_cublaslt();
    let here = ("LD_LIBRARY_PATH", libraries.as_str());
    let refusal = by_cublaslt("cuda", &[here, ("CUBLASLT_FAULT", "shape")]);
    refused(&refusal, 3, &["launch of gemm_f32_cublaslt", "CUDA_ERROR"]);

    let scratch = tempfile::tempdir().unwrap();
    let report = scratch.path().join("report.json");
    let out = by_cublaslt("cuda", &[here, ("DRIVER_REPORT", path(&report))]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let found: Value = serde_json::from_slice(&out.stdout).unwrap();
    let counted: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let (host, _) = answer("cpu", false, 5, &[]);
    assert_eq!(found["token_ids"], host["token_ids"]);
    assert_eq!(found["work"]["launches"], host["work"]["launches"]);
    assert!(counted["products"].as_i64().unwrap() > 50, "{counted}");
    assert_eq!((&counted["replays"], &counted["live"]), (&4.into(), &0.into()));

    let mut command = with_driver(std::env::current_exe().unwrap(), "");
    command.args(["--exact", "products_by_cublaslt", "--ignored", "--nocapture"]);
    let out = command.env("LD_LIBRARY_PATH", libraries).output().unwrap();
    let (said, err) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{said}{err}");
}

#[test]
#[ignore = "needs the libraries of tests/driver; run by cublaslt_is_a_choice_that_nothing_needs"]
fn products_by_cublaslt() {
    let mut card = Device::Cuda(0).open(1).unwrap();
    card.choose_products(Products::CublasLt).unwrap();
    // Which epilogues, which C; and whether they are cuBLASLt's.
    let (overwrite, accumulate) = (Out::Overwrite, Out::Accumulate);
    for (has_bias, out, f32_out, activation, is_peers) in [
        (false, overwrite, false, Activation::Identity, true),
        (true, overwrite, false, Activation::Identity, true),
        (false, accumulate, false, Activation::Identity, true),
        (true, accumulate, false, Activation::Identity, true),
        (false, overwrite, true, Activation::Identity, true),
        (true, overwrite, false, Activation::Gelu, false),
    ] {
        let [own, peers] = [Stream::host(1), card].map(|stream| {
            stream.record();
            let case = (has_bias, out, f32_out, activation);
            let cells = [product::<f32>(&stream, case), product::<bf16>(&stream, case)];
            let entries = stream.recording().unwrap().launches;
            let all = |f: fn(&str) -> bool| entries.iter().all(|l| f(&l.entry));
            let theirs = all(|e| e.ends_with("_cublaslt"));
            assert!(theirs || all(|e| !e.ends_with("_cublaslt")));
            (cells, theirs, stream)
        });
        assert_eq!((own.1, peers.1), (false, is_peers), "{has_bias} {out:?} {activation:?}");
        for ((own, peers), rounding) in own.0.iter().zip(&peers.0).zip([1e-5, 1.0 / 128.0]) {
            for (x, y) in own.iter().zip(peers) {
                assert!((x - y).abs() <= rounding * x.abs() + 1e-5, "{x}, not {y}");
            }
        }
        card = peers.2;
    }
}

/// C (7,11) of A (7,24), the second half of wider rows, and B (11,24).
fn product<T: Real>(
    stream: &Stream,
    (has_bias, out, f32_out, activation): (bool, Out, bool, Activation),
) -> Vec<f32> {
    let values = |n: usize, seed: usize| -> Vec<T> {
        (0..n).map(|i| T::from_f32(((i * 7 + seed) % 23) as f32 / 16.0 - 0.6)).collect()
    };
    let upload =
        |rows, cols, seed| Tensor::upload(stream, &values(rows * cols, seed), &[rows, cols]);
    let (a, b) = (upload(7, 48, 1).unwrap(), upload(11, 24, 5).unwrap());
    let bias = Tensor::upload(stream, &values(11, 3), &[11]).unwrap();
    let mut c = match f32_out {
        true => Tensor::upload(stream, &[0f32; 77], &[7, 11]).unwrap(),
        false => upload(7, 11, 9).unwrap(),
    };
    let bias = has_bias.then(|| bias.view());
    let epilogue = Epilogue { bias, activation, gate: None, out };
    gemm(stream, c.view_mut(), a.view().block(0..7, 24..48).unwrap(), b.view(), epilogue).unwrap();
    c.view().to_f32().unwrap()
}

#[test]
fn what_is_said_of_an_image_is_the_hosts() {
    let ((host, _), (card, _)) = (answer("cpu", true, 3, &[]), answer("cuda", true, 3, &[]));
    assert_eq!(card["token_ids"], host["token_ids"]);
    assert_eq!(card["work"]["replays"], 1);
}

/// Without the emulator, whose kernels have nothing to do with it.
#[test]
fn a_step_is_two_uploads_and_one_wait() {
    let count = |tokens| {
        let (answer, counted) = answer("cuda", true, tokens, &[("DRIVER_KERNELS", "")]);
        assert_eq!(answer["token_ids"].as_array().unwrap().len(), tokens);
        ["uploads", "waits"].map(|name| counted[name].as_u64().unwrap())
    };
    let ([uploads, waits], [more_uploads, more_waits]) = (count(5), count(9));
    // What the model reads beside weights; then how the next token is drawn.
    assert_eq!(more_uploads - uploads, 4 * 2);
    // For the token.
    assert_eq!(more_waits - waits, 4);
}

#[test]
fn devices_says_what_can_be_used() {
    let out = run(&["devices"], "", &[]);
    let said = text(&out.stdout);
    assert!(said.contains("cuda:0  Stand-in, compute 9.0, 64 GiB; kernels: sm_90a"), "{said}");
    assert!(said.contains("auto is cuda:0"), "{said}");
    let out = run(&["devices", "--json"], "", &[("DRIVER_CHIP", "a100")]);
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(value["cuda"][0]["kernels"], "sm_80");
    let out = run(&["devices", "--json"], "old_driver", &[]);
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(value["auto"]["device"], "cpu");
    assert!(value["auto"]["why_not_cuda"].as_str().unwrap().contains("too old"), "{value}");
}

#[test]
fn auto_goes_on_without_the_card_and_says_why() {
    for (fault, why) in [
        ("no_device", "no card: CUDA_VISIBLE_DEVICES is ``"),
        ("old_driver", "too old"),
        ("exclusive", "exclusive use by another process"),
        ("no_image", "other cards"),
    ] {
        let out = generate("auto", fault, &[("CUDA_VISIBLE_DEVICES", "")]);
        let said = text(&out.stderr);
        assert!(out.status.success() && said.contains("note: on the CPU: "), "{fault}: {said}");
        assert!(said.contains(why), "{fault}: {said}");
    }
}

/// Every call of the driver fails once, in a process of its own: loading, a prompt, a few tokens.
#[test]
fn no_failing_call_panics_or_leaks() {
    child("every_call_fails_once");
}

/// Runs an ignored test of this file in a process that has the driver; launches do nothing.
fn child(test: &str) {
    let mut command = with_driver(std::env::current_exe().unwrap(), "");
    command.env_remove("DRIVER_KERNELS");
    passes(command, test);
}

/// What the test said.
fn passes(mut command: Command, test: &str) -> String {
    let out = command.args(["--exact", test, "--ignored", "--nocapture"]).output().unwrap();
    let (said, err) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{said}{err}");
    said
}

#[test]
fn times_are_the_cards() {
    child("every_event_is_a_quarter_of_a_millisecond_from_the_next");
}

#[test]
#[ignore = "needs the driver of tests/driver; run by times_are_the_cards"]
fn every_event_is_a_quarter_of_a_millisecond_from_the_next() {
    let (fail_at, calls, live) = control();
    let attempt = || -> medflamingo::Result<()> {
        let stream = Device::Cuda(0).open(1)?;
        let x = Tensor::zeros(&stream, DType::F32, &[2, 16])?;
        let mut y = Tensor::zeros(&stream, DType::F32, &[2, 8])?;
        let mut twice = || {
            ops::swiglu(&stream, y.view_mut(), x.view())?;
            ops::swiglu(&stream, y.view_mut(), x.view())
        };
        assert_eq!(stream.time(&mut || stream.step(&mut twice))?, 250.0, "one graph");
        stream.record();
        twice()?;
        let launches = stream.recording()?.launches;
        let times: Vec<_> = launches.iter().map(|l| (l.start_us, l.us)).collect();
        assert_eq!(times, [(0.0, 250.0), (250.0, 250.0)]);
        Ok(())
    };
    fail_at(0);
    attempt().unwrap();
    for n in 1..=calls() {
        fail_at(n);
        let result = attempt();
        fail_at(0);
        assert_eq!(live(), 0, "after call {n}");
        assert!(result.is_ok() || result.unwrap_err().to_string().starts_with("cuda"), "call {n}");
    }
}

type Control = (extern "C" fn(i64), extern "C" fn() -> i64, extern "C" fn() -> i64);

/// The driver's own functions: fail at a call, calls so far, what was not given back.
fn control() -> Control {
    // SAFETY: the functions have these types in `tests/driver/cuda.cpp`.
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        let find = |name: &std::ffi::CStr| {
            assert!(!library.is_null(), "run by no_failing_call_panics_or_leaks");
            libc::dlsym(library, name.as_ptr())
        };
        let count = |name| std::mem::transmute::<*mut _, extern "C" fn() -> i64>(find(name));
        let fail_at = std::mem::transmute::<*mut _, extern "C" fn(i64)>(find(c"driver_fail_at"));
        (fail_at, count(c"driver_calls"), count(c"driver_live"))
    }
}

#[test]
#[ignore = "needs the driver of tests/driver; run by no_failing_call_panics_or_leaks"]
fn every_call_fails_once() {
    let (fail_at, calls, live) = control();
    let folder = folder();
    let attempt = || -> medflamingo::Result<()> {
        let device = Device::Cuda(0);
        let options = EngineOptions { device, kv_tokens: Some(64), ..EngineOptions::default() };
        let mut engine = Engine::open(&folder, &options)?;
        let mut ask = || {
            let options = GenerateOptions { max_new_tokens: 3, ..GenerateOptions::default() };
            let request = engine.request("Is it round?", Vec::new(), options)?;
            engine.generate(request, &mut |_| engine::Control::Continue).map(|_| ())
        };
        let Err(first) = ask() else { return Ok(()) };
        // A card that has failed says so again, and nothing worse.
        let again = ask().map_err(|e| e.to_string());
        assert!(again.is_ok() || again == Err(first.to_string()), "{first}: {again:?}");
        Err(first)
    };
    fail_at(0);
    attempt().unwrap();
    let (all, left) = (calls(), live());
    assert!(all > 500 && left == 0, "{all} calls, {left} left");
    for n in 1..=all {
        fail_at(n);
        let result = attempt();
        fail_at(0);
        assert_eq!(live(), 0, "after call {n} of {all}");
        let e = result.err().map(|e| e.to_string());
        assert!(e.as_ref().is_none_or(|e| e.starts_with("cuda")), "call {n}: {e:?}");
    }
}
