//! `src/contracts.rs` is what bindgen makes of `kernels/contracts.h`, and the C++ compiler agrees
//! with every size and offset in it.
//!
//! `MEDFLAMINGO_BLESS=1 cargo test --test contracts` rewrites it. Regeneration needs libclang
//! (`LIBCLANG_PATH`); the layout check needs a C++ compiler only.

use std::path::Path;

const GENERATED: &str = "src/contracts.rs";

/// Member comments are written `/**< ... */` in C; rustdoc wants them without the marker.
#[derive(Debug)]
struct Docs;

impl bindgen::callbacks::ParseCallbacks for Docs {
    fn process_comment(&self, comment: &str) -> Option<String> {
        Some(comment.trim_start_matches("< ").replace('[', "\\[").replace(']', "\\]"))
    }
}

fn generate() -> Option<String> {
    let attempt = std::panic::catch_unwind(|| {
        bindgen::Builder::default()
            .header("kernels/contracts.h")
            .clang_args(["-x", "c++", "-std=c++17"])
            .derive_copy(true)
            .derive_debug(true)
            .use_core()
            .disable_header_comment()
            .parse_callbacks(Box::new(Docs))
            .raw_line("//! Made by bindgen from `kernels/contracts.h`; see `tests/contracts.rs`.")
            .raw_line("#![allow(missing_docs, rustdoc::all, clippy::all)]")
            .allowlist_file(".*/?kernels/.*")
            .generate()
            .map(|b| b.to_string())
    });
    match attempt {
        Ok(Ok(text)) => Some(text),
        Ok(Err(e)) => panic!("bindgen: {e}"),
        Err(_) => {
            eprintln!(
                "SKIPPED: no libclang found (set LIBCLANG_PATH); {GENERATED} not regenerated"
            );
            None
        }
    }
}

#[test]
fn generated_file_is_current() {
    let Some(fresh) = generate() else { return };
    if std::env::var_os("MEDFLAMINGO_BLESS").is_some() {
        std::fs::write(GENERATED, &fresh).unwrap();
    }
    let kept = std::fs::read_to_string(GENERATED).unwrap();
    assert!(kept == fresh, "{GENERATED} is stale: MEDFLAMINGO_BLESS=1 cargo test --test contracts");
}

/// Turns bindgen's layout assertions into C++ ones, so that stale bindings cannot pass anywhere.
#[test]
fn cpp_compiler_agrees_with_every_layout() {
    let text = std::fs::read_to_string(GENERATED).unwrap();
    let mut probe = String::from("#include \"contracts.h\"\n#include <cstddef>\n");
    let mut count = 0;
    // Lines look like: ["Size of X"][size_of::<X>() - 24usize];
    // ["Offset of field: X::f"][.. - 8usize];
    for piece in text.split("[\"").skip(1) {
        let Some((label, rest)) = piece.split_once("\"]") else { continue };
        let number: String = rest
            .split("- ")
            .nth(1)
            .unwrap_or("")
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        let claim = if let Some(name) = label.strip_prefix("Size of ") {
            format!("sizeof({name}) == {number}")
        } else if let Some(name) = label.strip_prefix("Alignment of ") {
            format!("alignof({name}) == {number}")
        } else if let Some((name, field)) =
            label.strip_prefix("Offset of field: ").and_then(|l| l.split_once("::"))
        {
            format!("offsetof({name}, {field}) == {number}")
        } else {
            continue;
        };
        probe += &format!("static_assert({claim}, \"{label}\");\n");
        count += 1;
    }
    assert!(count > 60, "only {count} layout assertions found in {GENERATED}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("probe.cpp");
    std::fs::write(&file, probe).unwrap();
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cc::Build::new();
    let compiler = build.cpp(true).target(&host).host(&host).opt_level(0).get_compiler();
    let out = compiler
        .to_command()
        .args(["-std=c++17", "-fsyntax-only", "-I"])
        .arg(Path::new("kernels").canonicalize().unwrap())
        .arg(&file)
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", compiler.path().display()));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// Steps whose launches have equal params are replayed: bytes that no field owns would make equal
/// launches differ.
#[test]
fn no_struct_has_gaps() {
    let text = std::fs::read_to_string(GENERATED).unwrap();
    for block in text.split("pub struct ").skip(1) {
        let (name, rest) = block.split_once(" {").unwrap();
        let fields = rest.split_once("\n}").unwrap().0;
        let fields = fields.lines().filter_map(|l| l.trim().strip_prefix("pub "));
        let fields: usize = fields.map(|field| bytes(&text, field)).sum();
        assert_eq!(fields, size_of_struct(&text, name), "{name}: add a `reserved` field");
    }
}

fn size_of_struct(text: &str, name: &str) -> usize {
    let size = text.split(&format!("size_of::<{name}>() - ")).nth(1).unwrap();
    size.split("usize").next().unwrap().parse().unwrap()
}

/// Of a field such as `rows: i64,`.
fn bytes(text: &str, field: &str) -> usize {
    size_of_type(text, field.trim_end_matches(',').split_once(": ").unwrap().1)
}

fn size_of_type(text: &str, name: &str) -> usize {
    if let Some((element, count)) = name.strip_prefix('[').and_then(|n| n.rsplit_once("; ")) {
        let count: usize = count.trim_end_matches("usize]").parse().unwrap();
        return size_of_type(text, element) * count;
    }
    match name {
        "i64" | "u64" | "f64" => 8,
        "i32" | "u32" | "f32" => 4,
        "i8" | "u8" => 1,
        pointer if pointer.starts_with('*') => 8,
        other => size_of_struct(text, other),
    }
}
