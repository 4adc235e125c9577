//! The rules of the house that a compiler does not check, read off the sources themselves.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

struct Source {
    path: PathBuf,
    /// Of `src`, with `/`: `ops/gemm.rs`.
    name: String,
    text: String,
}

impl Source {
    /// The part that is built into the product.
    fn shipped(&self) -> &str {
        self.text.split("\n#[cfg(test)]\nmod ").next().unwrap()
    }

    /// Numbered lines of `text` without comments.
    fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
        let code = |line| str::split(line, "//").next().unwrap_or("");
        (1..).zip(text.lines().map(code))
    }
}

fn sources(folder: &str, ending: &str) -> Vec<Source> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for path in entries.map(|e| e.unwrap().path()) {
            if path.is_dir() {
                walk(&path, ending, found);
            } else if path.extension().is_some_and(|e| e == ending) {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths = Vec::new();
    walk(&root, ending, &mut paths);
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
            Source { name, text: std::fs::read_to_string(&path).unwrap(), path }
        })
        .collect()
}

/// Fails with all of them, so that one run shows what there is to do.
fn none(what: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{what}:\n  {}", offences.join("\n  "));
}

/// The floor of a top-level module; None for what is re-exported at the crate's root.
fn floor(module: &str) -> Option<u32> {
    Some(match module {
        "error" | "dtype" | "contracts" => 1,
        "device" => 2,
        "tensor" | "text" | "image" | "checkpoint" => 3,
        "ops" | "phantom" | "weights" | "prompt" => 4,
        "model" | "comm" => 5,
        "engine" | "train" => 6,
        "books" | "convert" | "eval" | "profile" | "quality" | "run" => 7,
        "main" | "commands" => 8,
        _ => return None,
    })
}

/// The modules in the paths `crate::a` and `crate::{a::b, c}` of a line.
fn imports(line: &str) -> Vec<String> {
    let word =
        |s: &str| s.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(String::from);
    let mut modules = Vec::new();
    for rest in line.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(list) => modules.extend(list.split(", ").filter_map(word)),
            None => modules.extend(word(rest)),
        }
    }
    modules
}

#[test]
fn modules_use_floors_below_only() {
    assert_eq!(
        imports("use crate::{DType, ops::gemm}; crate::text::x()"),
        ["DType", "ops", "text"]
    );
    let mut offences = Vec::new();
    for source in sources("src", "rs") {
        let module = source.name.split(['/', '.']).next().unwrap();
        let own = match floor(module) {
            Some(own) => own,
            None if module == "lib" => continue,
            None => panic!("src/{}: on which floor is it?", source.name),
        };
        for (n, line) in Source::code(source.shipped()) {
            for used in imports(line) {
                let is_legal = used == module
                    || floor(&used).is_none_or(|used| used < own)
                    || (own == 8 && floor(&used) == Some(8));
                if !is_legal {
                    offences.push(format!("src/{}:{n}: floor {own} uses {used}", source.name));
                }
            }
        }
    }
    none("uses of the same floor or one above", offences);
}

#[test]
fn unsafe_stays_on_its_floors_and_says_why() {
    let may = |name: &str| {
        ["device/", "ops/", "checkpoint/"].iter().any(|folder| name.starts_with(folder))
            || ["weights.rs", "tensor.rs"].contains(&name)
    };
    let mut offences = Vec::new();
    for source in sources("src", "rs") {
        let shipped: Vec<&str> = source.shipped().lines().collect();
        for (n, line) in Source::code(source.shipped()) {
            if !line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe") {
                continue;
            }
            if !may(&source.name) {
                offences.push(format!("src/{}:{n}: may not be unsafe", source.name));
            } else if line.contains("unsafe {") || line.contains("unsafe impl") {
                let before = &shipped[n.saturating_sub(9)..n];
                if !before.iter().any(|line| line.contains("SAFETY")) {
                    offences.push(format!("src/{}:{n}: without // SAFETY:", source.name));
                }
            }
        }
    }
    none("unsafe code", offences);
}

#[test]
fn nothing_shipped_unwraps_or_leaves_work_for_later() {
    let mut offences = Vec::new();
    for source in sources("src", "rs").into_iter().chain(sources("tools", "rs")) {
        for (n, line) in Source::code(source.shipped()) {
            for word in [".unwrap()", "todo!(", "unimplemented!(", "dbg!("] {
                if line.contains(word) {
                    offences.push(format!("{}:{n}: {word}", source.path.display()));
                }
            }
        }
    }
    none("shipped code", offences);
}

#[test]
fn launches_and_cudarc_stay_in_their_rooms() {
    let mut offences = Vec::new();
    for source in sources("src", "rs") {
        let is_device = source.name.starts_with("device/");
        for (n, line) in Source::code(source.shipped()) {
            if line.contains(".launch(") && !is_device && !source.name.starts_with("ops/") {
                offences.push(format!("src/{}:{n}: only ops launches", source.name));
            }
            if line.contains("cudarc") && !is_device {
                offences.push(format!("src/{}:{n}: only device knows cudarc", source.name));
            }
        }
    }
    none("calls", offences);
}

#[test]
fn files_lines_and_functions_are_short_and_well_named() {
    let folders = ["src", "tests", "tools", "bench"];
    let mut offences = Vec::new();
    for source in folders.into_iter().flat_map(|folder| sources(folder, "rs")) {
        let path = source.path.display();
        if source.name == "contracts.rs" && source.text.starts_with("//! Made by bindgen") {
            continue;
        }
        offences.extend(too_long(&source));
        let lines: Vec<&str> = source.text.lines().collect();
        if !source.path.components().any(|c| c.as_os_str() == "bench") {
            let long = long_functions(&lines);
            offences.extend(long.map(|(n, len)| format!("{path}:{n}: {len} lines")));
        }
        for word in ["utils", "helpers", "common", "manager", "misc"] {
            if source.name.split(['/', '.', '_']).any(|part| part == word) {
                offences.push(format!("{path}: `{word}` says nothing"));
            }
        }
    }
    let others = ["kernels", "tests", "tools"].into_iter().flat_map(cuda_sources);
    offences.extend(others.flat_map(|source| too_long(&source)));
    none("too long, or named for nothing", offences);
}

/// More than 600 lines, or lines of more than 100 columns.
fn too_long(source: &Source) -> Vec<String> {
    let path = source.path.display();
    let widths = (1..).zip(source.text.lines().map(|line| line.chars().count()));
    let wide = widths.filter(|(_, width)| *width > 100);
    let mut offences: Vec<_> = wide.map(|(n, w)| format!("{path}:{n}: {w} columns")).collect();
    let lines = source.text.lines().count();
    if lines > 600 {
        offences.push(format!("{path}: {lines} lines"));
    }
    offences
}

/// Functions of more than 60 lines, in formatted code: from `fn` to the brace below it.
fn long_functions<'a>(lines: &'a [&'a str]) -> impl Iterator<Item = (usize, usize)> + 'a {
    let is_function = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let before = |w: &&str| w.starts_with("pub") || ["const", "unsafe", "async"].contains(w);
        words.iter().find(|w| !before(w)).is_some_and(|w| *w == "fn") && !line.ends_with(';')
    };
    lines.iter().enumerate().filter(move |(_, line)| is_function(line)).filter_map(|(i, line)| {
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = lines[i..].iter().position(|l| l.strip_prefix(indent) == Some("}"))?;
        (end >= 60 && !line.ends_with('}')).then_some((i + 1, end + 1))
    })
}

/// `kernels/<stem>.h`: every kernel has a WHAT block, is in `ops::ALL`, and its stem has a room in
/// `src/ops` and in `tests/kernels`.
#[test]
fn every_kernel_has_its_rooms() {
    let listed: BTreeSet<&str> = medflamingo::ops::ALL.iter().map(|e| e.name).collect();
    let mut described = BTreeSet::new();
    let headers = sources("kernels", "h");
    let mut offences = Vec::new();
    let is_contract = |name: &str| name != "contracts.h" && !name.starts_with("lib/");
    for header in headers.iter().filter(|h| is_contract(&h.name)) {
        let stem = header.name.trim_end_matches(".h");
        for room in [format!("src/ops/{stem}.rs"), format!("tests/kernels/{stem}.rs")] {
            if !Path::new(env!("CARGO_MANIFEST_DIR")).join(&room).exists() {
                offences.push(format!("{room} is missing"));
            }
        }
        for block in header.text.split("/** `").skip(1) {
            let (name, rest) = block.split_once('`').unwrap();
            let what = rest.split("*/").next().unwrap();
            described.insert(name.to_string());
            if !what.contains("Source  ") || !what.contains(&format!("Entries   {name}_{{f32,")) {
                offences.push(format!("kernels/{}: `{name}` needs Source, Entries", header.name));
            }
        }
        let structs = header.text.matches("Params;").count();
        if structs != header.text.matches("/** `").count() {
            offences.push(format!("kernels/{}: one block per Params", header.name));
        }
    }
    let described: BTreeSet<&str> = described.iter().map(String::as_str).collect();
    let missing = listed.symmetric_difference(&described);
    offences.extend(missing.map(|name| format!("`{name}` is not both in kernels/ and ops::ALL")));
    none("kernels", offences);
}

/// Sources that nvcc or the host's C++ compiler reads.
fn cuda_sources(folder: &str) -> impl Iterator<Item = Source> + '_ {
    ["cu", "cuh", "h", "cpp"].into_iter().flat_map(move |ending| sources(folder, ending))
}

/// `kernels/*.cu`: says first what a block does, how it is laid out, what it moves and what was not
/// worth it; its entries are of kernels in `ops::ALL`, and every kernel has some.
#[test]
fn every_cuda_source_says_how_and_has_its_entries() {
    let listed: BTreeSet<&str> = medflamingo::ops::ALL.iter().map(|e| e.name).collect();
    let (mut defined, mut offences) = (BTreeSet::new(), Vec::new());
    for source in sources("kernels", "cu") {
        let how = source.text.split("*/").next().unwrap();
        for word in
            ["/*  `", " *  Idea      ", " *  Geometry  ", " *  Traffic   ", " *  Rejected  "]
        {
            if !how.contains(word) {
                offences.push(format!("kernels/{}: its HOW block needs `{word}`", source.name));
            }
        }
        for (n, line) in Source::code(&source.text) {
            for word in ["KERNEL(", "KERNEL_EARLY(", "KERNEL_TMA("] {
                let Some((before, after)) = line.split_once(word) else { continue };
                if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                    continue;
                }
                let entry = after.split([',', '#']).next().unwrap();
                // The longest name: `attention_decode_f32` is no entry of `attention`.
                let own =
                    |name: &&&str| entry.strip_prefix(**name).is_some_and(|r| r.starts_with('_'));
                match listed.iter().filter(own).max_by_key(|name| name.len()) {
                    Some(name) => drop(defined.insert(*name)),
                    None => offences.push(format!(
                        "kernels/{}:{n}: `{entry}` is of no kernel in ops::ALL",
                        source.name
                    )),
                }
            }
        }
    }
    let missing = listed.difference(&defined);
    offences.extend(missing.map(|name| format!("`{name}` has no entry in kernels/*.cu")));
    none("CUDA sources", offences);
}

#[test]
fn assembly_and_shared_memory_stay_where_the_emulator_sees_them() {
    let mut offences = Vec::new();
    for source in cuda_sources("kernels") {
        for (n, line) in Source::code(&source.text) {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let has_asm = words.clone().any(|w| w == "asm" || w == "__asm__");
            if has_asm && source.name != "lib/ptx.cuh" {
                offences.push(format!("kernels/{}:{n}: asm belongs to lib/ptx.cuh", source.name));
            }
            if words.any(|w| w == "__shared__") && source.name != "lib/abi.h" {
                offences.push(format!("kernels/{}:{n}: SHARED of lib/abi.h", source.name));
            }
        }
    }
    none("what only the card would see", offences);
}
