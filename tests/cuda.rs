//! The CUDA device without a card: the program runs against a driver of our own (`tests/driver`),
//! whose launches are the real kernels under the emulator, and which fails where it is told to.

#[allow(dead_code)]
mod golden_folder;

use golden_folder::models;
use medflamingo::device::Simt;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// A folder with the driver's library and one with files that look like fatbins.
fn driver() -> &'static (PathBuf, PathBuf, PathBuf) {
    static DRIVER: OnceLock<(PathBuf, PathBuf, PathBuf)> = OnceLock::new();
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
        (folder, fatbins, Simt::kernels().unwrap().path().to_path_buf())
    })
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
    let (folder, fatbins, kernels) = driver();
    let mut command = Command::new(env!("CARGO_BIN_EXE_medflamingo"));
    command.args(arguments).env("LD_LIBRARY_PATH", folder).env("MEDFLAMINGO_KERNELS", fatbins);
    command.env("DRIVER_KERNELS", kernels).env("DRIVER_FAULT", fault);
    command.envs(more.iter().copied()).output().unwrap()
}

fn generate(device: &str, fault: &str, more: &[(&str, &str)]) -> Output {
    let folder = folder();
    let model = folder.to_str().unwrap();
    let mut arguments = vec!["generate", "--model", model, "--device", device, "--json"];
    arguments.extend(["--prompt", "Question: Is it round? Answer:", "--max-new-tokens", "5"]);
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
    refused(&hidden, 3, &["CUDA_VISIBLE_DEVICES is ``"]);
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
    let (_, fatbins, _) = driver();
    let scratch = tempfile::tempdir().unwrap();
    let at = |folder: &Path| generate("cuda", "", &[("MEDFLAMINGO_KERNELS", path(folder))]);
    refused(&at(scratch.path()), 2, &["a fatbin of every kernel", "kernels/build"]);
    refused(&at(&scratch.path().join("away")), 2, &["away", "cannot list"]);
    for entry in std::fs::read_dir(fatbins).unwrap() {
        let file = entry.unwrap();
        std::fs::copy(file.path(), scratch.path().join(file.file_name())).unwrap();
    }
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

#[test]
fn tokens_are_the_hosts_and_steps_are_replayed() {
    let ids = |out: &Output| {
        assert!(out.status.success(), "{}", text(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["token_ids"].clone()
    };
    let host = ids(&generate("cpu", "", &[]));
    let report = |name: &str| Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let (graphs, plain) = (report("graphs.txt"), report("plain.txt"));
    let auto = generate("auto", "", &[("DRIVER_REPORT", path(&graphs))]);
    assert_eq!(ids(&auto), host);
    let sync = [("DRIVER_REPORT", path(&plain)), ("MEDFLAMINGO_SYNC", "1")];
    assert_eq!(ids(&generate("cuda", "", &sync)), host);
    assert_eq!(ids(&generate("cuda", "", &[("DRIVER_CHIP", "a100")])), host);
    let numbers = |file| -> Vec<u64> {
        let text = std::fs::read_to_string(file).unwrap();
        text.split(' ').filter_map(|w| w.parse().ok()).collect()
    };
    let (graphs, plain) = (numbers(graphs), numbers(plain));
    assert_eq!(graphs[0], plain[0], "as many launches run either way");
    assert!(graphs[1] >= 3 && plain[1] == 0, "{graphs:?} {plain:?}");
    assert_eq!((graphs[2], plain[2]), (0, 0), "all memory is given back");
}

#[test]
fn devices_says_what_can_be_used() {
    let out = run(&["devices"], "", &[]);
    assert!(text(&out.stdout).contains("cuda:0  Stand-in, compute 9.0, 64 GiB; kernels: sm_90a"));
    let out = run(&["devices", "--json"], "", &[("DRIVER_CHIP", "a100")]);
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(value["cuda"][0]["kernels"], "sm_80");
    let out = run(&["devices"], "old_driver", &[]);
    assert!(text(&out.stdout).contains("too old"), "{}", text(&out.stdout));
}
