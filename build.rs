//! Compiles `kernels/*.cu` into the binary with `kernels/build`, if this machine has nvcc, and
//! writes `$OUT_DIR/kernels.rs` with what came out. Without nvcc the list is empty and the build
//! goes on: the engine then runs on the host alone. Nothing is downloaded here.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const SCRIPT: &str = "kernels/build";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["MEDFLAMINGO_NVCC", "MEDFLAMINGO_REQUIRE_CUDA", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let is = |name: &str, value: &str| std::env::var_os(name).is_some_and(|v| v == value);
    println!("cargo:rerun-if-changed=kernels");
    let (modules, version) = match find_nvcc() {
        Ok((nvcc, version)) => (compile(&nvcc, &version, &out.join("fatbins")), version),
        Err(why) if is("MEDFLAMINGO_REQUIRE_CUDA", "1") => fail(&why),
        Err(why) => {
            if !is("MEDFLAMINGO_NVCC", "none") {
                println!("cargo:warning=no GPU kernels in this build: {why}");
            }
            (Vec::new(), String::new())
        }
    };
    fs::write(out.join("kernels.rs"), listing(&modules, &version)).expect("OUT_DIR is writable");
}

fn fail(why: &str) -> ! {
    println!("cargo::error={}", why.trim().replace('\n', "\ncargo::error="));
    exit(1)
}

/// The compiler and its version, as `kernels/build` finds them.
fn find_nvcc() -> Result<(String, String), String> {
    let text = ask("--find")?;
    let (nvcc, version) = text.split_once('\n').ok_or(format!("{SCRIPT}: {text}"))?;
    Ok((nvcc.to_string(), version.trim().to_string()))
}

/// What `kernels/build` prints.
fn ask(what: &str) -> Result<String, String> {
    let said = Command::new("sh").args([SCRIPT, what]).output();
    let said = said.map_err(|e| format!("sh: {e}"))?;
    match said.status.success() {
        true => Ok(String::from_utf8_lossy(&said.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&said.stderr).trim().to_string()),
    }
}

/// Stem and fatbin of every kernel source. Files are named by what went into them, so only what
/// changed is compiled.
fn compile(nvcc: &str, version: &str, folder: &Path) -> Vec<(String, PathBuf)> {
    fs::create_dir_all(folder).expect("OUT_DIR is writable");
    let mut modules = Vec::new();
    let mut stale: Vec<PathBuf> = Vec::new();
    for source in sources() {
        let stem = stem(&source);
        let fatbin = folder.join(format!("{stem}.{:016x}.fatbin", key(&source, version)));
        if !fatbin.exists() {
            stale.push(source);
        }
        modules.push((stem, fatbin));
    }
    if !stale.is_empty() {
        // Cargo's other jobs wait for this script: two at a time is what a small machine has.
        let mut build = Command::new("sh");
        build.args([SCRIPT, "--jobs", "2", "--nvcc", nvcc]).arg(folder).args(&stale);
        let result = build.output().unwrap_or_else(|e| fail(&format!("{SCRIPT}: {e}")));
        if !result.status.success() {
            fail(&format!(
                "{}{}",
                String::from_utf8_lossy(&result.stdout),
                String::from_utf8_lossy(&result.stderr)
            ));
        }
    }
    for (stem, fatbin) in &modules {
        let fresh = folder.join(format!("{stem}.fatbin"));
        if fresh.exists() {
            fs::rename(fresh, fatbin).expect("OUT_DIR is writable");
        }
    }
    let kept: BTreeSet<&Path> = modules.iter().map(|(_, fatbin)| fatbin.as_path()).collect();
    for old in fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()) {
        if !kept.contains(old.as_path()) {
            let _ = fs::remove_file(old);
        }
    }
    modules
}

/// `kernels/*.cu`, in order.
fn sources() -> Vec<PathBuf> {
    let entries = fs::read_dir("kernels").expect("kernels/ is there").flatten();
    let mut sources: Vec<PathBuf> = entries.map(|e| e.path()).collect();
    sources.retain(|path| path.extension() == Some(OsStr::new("cu")));
    sources.sort();
    sources
}

fn stem(source: &Path) -> String {
    source.file_stem().expect("it ends in .cu").to_string_lossy().into_owned()
}

/// Of a source, every header it reaches, the command line and the compiler.
fn key(source: &Path, version: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    version.hash(&mut hasher);
    fs::read(SCRIPT).expect("the script ran").hash(&mut hasher);
    let mut waiting = vec![source.to_path_buf()];
    let mut seen = BTreeSet::new();
    while let Some(path) = waiting.pop() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if !seen.insert(path.clone()) {
            continue;
        }
        text.hash(&mut hasher);
        let includes = text.lines().filter_map(|l| l.trim().strip_prefix("#include \""));
        for name in includes.filter_map(|rest| rest.split('"').next()) {
            waiting.push(Path::new("kernels").join(name));
            waiting.push(path.with_file_name(name));
        }
    }
    hasher.finish()
}

/// The Rust source of the table. The driver wants an image at an aligned address.
fn listing(modules: &[(String, PathBuf)], version: &str) -> String {
    let mut text = String::from(
        "/// Stem and fatbin of every kernel source; empty in a build without nvcc.\n\
         pub static MODULES: &[(&str, &[u8])] = &[\n",
    );
    for (stem, fatbin) in modules {
        let path = fatbin.display().to_string();
        let _ = writeln!(text, "    ({stem:?}, &Aligned(*include_bytes!({path:?})).0),");
    }
    let contracts = ask("--contracts").unwrap_or_else(|e| fail(&e));
    let contracts = contracts.trim();
    let stems: Vec<_> = sources().iter().map(|source| stem(source)).collect();
    let _ = write!(
        text,
        "];\n\
         /// Stem of every kernel source, compiled or not.\n\
         pub static STEMS: &[&str] = &{stems:?};\n\
         /// Sum of their contracts; a folder of fatbins has the same one.\n\
         pub static CONTRACTS: &str = {contracts:?};\n\
         /// Version of the nvcc behind them; empty without.\n\
         pub static TOOLKIT: &str = {version:?};\n"
    );
    if !modules.is_empty() {
        text.push_str("#[repr(C, align(64))]\nstruct Aligned<const N: usize>([u8; N]);\n");
    }
    text
}
