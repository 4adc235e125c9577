//! Tables of tiles at run time: which one a card uses, and what it changes.

use super::{generate, path, refused, run, text, with_driver};
use medflamingo::DType;
use medflamingo::device::{Chip, Device};
use medflamingo::ops::{Epilogue, TileTable, gemm};
use medflamingo::tensor::Tensor;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A table of one row by which `chip` computes (64,1024) by (512,1024)^T.
fn table(folder: &Path, chip: &str, tile: &str) -> PathBuf {
    let path = folder.join("tiles.txt");
    let text = format!("chip {chip}\nmeasured Stand-in, today\n64 512 1024 {tile} 1.0\n");
    std::fs::write(&path, text).unwrap();
    path
}

const H200: &str = "90 132 232448";
const A100: &str = "80 108 166912";

#[test]
fn devices_says_which_tiles_a_card_uses() {
    let folder = tempfile::tempdir().unwrap();
    let said = |card: &str, given: &Path| {
        let more = [("DRIVER_CHIP", card), ("MEDFLAMINGO_TILES", path(given))];
        let out = run(&["devices", "--json"], "", &more);
        let value: Value = serde_json::from_slice(&out.stdout).unwrap();
        let tiles = value["cuda"][0]["tiles"].as_str().unwrap().to_string();
        let line = text(&run(&["devices"], "", &more).stdout);
        assert!(line.contains(&format!("; tiles: {tiles}")), "{line}");
        tiles
    };
    let measured = "measured on NVIDIA H200, 2026-11-27, built in";
    assert_eq!(said("h200", Path::new("")), measured);
    assert_eq!(said("a100", Path::new("")), "predicted, built in");
    let own = table(folder.path(), H200, "_64x64 2");
    assert_eq!(said("h200", &own), format!("measured on Stand-in, today, {}", own.display()));
    let other = said("a100", &own);
    let expected = format!("predicted, built in; {} is for another chip", own.display());
    assert!(other.starts_with(&expected) && other.contains("132 multiproc"), "{other}");
    let none = said("h200", &table(folder.path(), H200, "_64x64 5"));
    assert!(none.starts_with("not usable: ") && none.contains("tiles.txt: line 3"), "{none}");
}

#[test]
fn a_table_that_cannot_be_used_is_an_error_of_opening() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let bad = table(folder.path(), A100, "_sm90_64x128 1");
    let given = ("MEDFLAMINGO_TILES", path(&bad));
    for device in ["cuda", "auto"] {
        let out = generate(device, "", &[given, ("DRIVER_REPORT", path(&report))]);
        refused(&out, 2, &["tiles.txt: line 3", "a tile of this chip", "medflamingo-tools tiles"]);
        let counted: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        assert_eq!((&counted["launches"], &counted["live"]), (&0.into(), &0.into()));
    }
    refused(&generate("cuda", "", &[("MEDFLAMINGO_TILES", "/away")]), 2, &["/away: cannot read"]);
    // The host has no tiles.
    assert!(generate("cpu", "", &[given]).status.success());
}

#[test]
fn a_given_row_chooses_the_tile_of_its_chip() {
    let folder = tempfile::tempdir().unwrap();
    let entry = |given: &Path| {
        let mut command = with_driver(std::env::current_exe().unwrap(), "");
        command.env_remove("DRIVER_KERNELS").env("MEDFLAMINGO_TILES", given);
        command.args(["--exact", "tiles::a_product_says_its_entry", "--ignored", "--nocapture"]);
        let out = command.output().unwrap();
        let said = text(&out.stdout);
        assert!(out.status.success(), "{said}{}", text(&out.stderr));
        said.lines().find_map(|l| Some(l.split_once("entry: ")?.1.to_string())).unwrap()
    };
    let built_in = "gemm_bf16_sm90_64x64 in 1";
    assert_eq!(entry(Path::new("")), built_in);
    assert_eq!(entry(&table(folder.path(), H200, "_64x64 2")), "gemm_bf16_64x64 in 2");
    assert_eq!(entry(&table(folder.path(), A100, "_64x64 2")), built_in);
}

#[test]
#[ignore = "needs the driver of tests/driver; run by a_given_row_chooses_the_tile_of_its_chip"]
fn a_product_says_its_entry() {
    let stream = Device::Cuda(0).open(1).unwrap();
    let zeros = |rows, cols| Tensor::zeros(&stream, DType::BF16, &[rows, cols]).unwrap();
    let (mut c, a, b) = (zeros(64, 512), zeros(64, 1024), zeros(512, 1024));
    stream.record();
    gemm(&stream, c.view_mut(), a.view(), b.view(), Epilogue::default()).unwrap();
    let launch = &stream.recording().unwrap().launches[0];
    println!("entry: {} in {}", launch.entry, launch.grid[2]);
}

#[test]
fn tiles_are_measured_into_a_table_that_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiles.txt");
    let mut command = with_driver(env!("CARGO_BIN_EXE_medflamingo-tools"), "");
    command.args(["tiles", "--device", "cuda:0", "--all", "--output", path(&file)]);
    // Every tile has its turn: no table is asked.
    command.env("MEDFLAMINGO_TILES", "/away").env_remove("DRIVER_KERNELS");
    let out = command.output().unwrap();
    assert!(out.status.success() && out.stdout.is_empty(), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("38 of 38: 8192 22016 4096 _"), "{}", text(&out.stderr));
    let table = TileTable::parse("tiles", &std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((table.chip(), table.rows().len()), (&Chip::H200, 38));
    // Every launch takes this long there, and the first of equals is the fastest.
    assert!(table.rows().iter().all(|r| r.us == 250.0 && r.variant() == "_sm90_128x256"));
    let said = text(&run(&["devices"], "", &[("MEDFLAMINGO_TILES", path(&file))]).stdout);
    assert!(said.contains("tiles: measured on cuda:0, Stand-in, compute 9.0, 2"), "{said}");
}
