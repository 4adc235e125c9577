//! Shards that are cut off, lie about sizes, name paths, or hold what cannot be read.

use super::*;
use medflamingo::train::data::{Reason, Refusal, expand, tar::Walk};
use serde_json::json;
use std::io::Cursor;

fn walk(bytes: &[u8]) -> Result<Vec<String>, Refusal> {
    let mut walk = Walk::new(Cursor::new(bytes), 0, bytes.len() as u64).unwrap();
    let mut names = Vec::new();
    while let Some(entry) = walk.next_file()? {
        assert!(entry.data.end <= bytes.len() as u64 && entry.data.start <= entry.data.end);
        names.push(entry.name);
        assert!(names.len() < 100);
    }
    Ok(names)
}

fn small() -> Vec<u8> {
    tar(&[("0.txt", b"caption"), ("0.png", &[7; 700]), ("1.txt", b"")])
}

#[test]
fn every_prefix_is_read_to_its_damage_and_no_further() {
    let whole = small();
    let names = walk(&whole).unwrap();
    assert_eq!(names, ["0.txt", "0.png", "1.txt"]);
    for n in 0..whole.len() {
        match walk(&whole[..n]) {
            Ok(found) => assert_eq!(found, names[..found.len()]),
            Err(refusal) => assert_eq!(refusal.reason, Reason::Shard),
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed_in_a_header_and_harmless_in_content() {
    let whole = small();
    for bit in 0..8 * whole.len() {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let found = walk(&bytes);
        if let Err(refusal) = &found {
            assert_eq!(refusal.reason, Reason::Shard);
        }
        // Spaces and zeros around the checksum's digits are equal.
        if bit < 8 * 148 || (8 * 156..8 * 512).contains(&bit) {
            assert!(found.is_err(), "bit {bit}");
        }
    }
}

/// A header with these fields and a right checksum.
fn header(name: &str, size: &[u8], kind: u8) -> Vec<u8> {
    let mut block = tar(&[(name, b"")])[..512].to_vec();
    block[124..124 + size.len()].copy_from_slice(size);
    block[156] = kind;
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[test]
fn sizes_that_lie_are_refused_before_anything_is_allocated() {
    let huge: [&[u8]; 5] = [
        b"77777777777\0",
        &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0xff; 12],
        b"00000009000\0",
    ];
    for size in huge {
        for kind in [b'0', b'x', b'L', b'g'] {
            let refusal = walk(&header("a.txt", size, kind)).unwrap_err();
            assert_eq!(refusal.reason, Reason::Shard, "{size:?}");
        }
    }
    let pax = |record: &str| {
        let size = format!("{:011o}\0", record.len());
        let mut bytes = header("pax", size.as_bytes(), b'x');
        bytes.extend(record.as_bytes());
        bytes.resize(1024, 0);
        bytes.extend(small());
        walk(&bytes)
    };
    for bad in ["29 size=18446744073709551615\n", "99 path=a\n", "x path=a\n", "9 size=a\n", "1 "] {
        assert_eq!(pax(bad).unwrap_err().reason, Reason::Shard, "{bad}");
    }
    assert_eq!(pax("17 path=long.txt\n").unwrap()[0], "long.txt");
    let endless: Vec<u8> = (0..50).flat_map(|_| header("g", b"00000000000\0", b'g')).collect();
    assert_eq!(walk(&endless).unwrap_err().reason, Reason::Shard);
}

#[test]
fn links_devices_and_folders_are_passed_over_and_long_names_read() {
    let mut bytes = Vec::new();
    for kind in b'1'..=b'6' {
        bytes.extend(header("evil.txt", b"77777777777\0", kind));
    }
    let long = format!("{}.txt", "n".repeat(300));
    bytes.extend(header("././@LongLink", format!("{:011o}\0", long.len()).as_bytes(), b'L'));
    bytes.extend(long.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(small());
    let names = walk(&bytes).unwrap();
    assert_eq!((names.len(), &names[0]), (3, &long));
}

fn one(form: &str, files: Files, rules: Option<Rules>) -> (usize, Stream) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.tar");
    std::fs::write(&path, tar(files)).unwrap();
    let shards = vec![path.to_str().unwrap().to_string()];
    let (source, default) = match form {
        "pairs" => (Source::Pairs { shards }, Rules::pairs(LabelRules::V2)),
        _ => (Source::Interleaved { shards }, Rules::interleaved(LabelRules::V2)),
    };
    let options = StreamOptions { epochs: Some(1), max_bad_share: 1.0, ..Default::default() };
    let mut stream = open_with(&source, rules.unwrap_or(default), options);
    let mut kept = 0;
    while let Ok(Some(_)) = stream.next() {
        kept += 1;
    }
    (kept, stream)
}

/// Names are keys: nothing is written, wherever they lead.
#[test]
fn names_that_lead_out_of_the_shard_are_only_names() {
    let picture = png(1, 8, 8);
    let files: Files = &[
        ("../../../tmp/medflamingo-escape.txt", b"x"),
        ("../../../tmp/medflamingo-escape.png", &picture),
        ("/etc/medflamingo-escape.txt", b"y"),
        ("/etc/medflamingo-escape.png", &picture),
    ];
    let (kept, _) = one("pairs", files, None);
    assert_eq!(kept, 2);
    assert!(!Path::new("/tmp/medflamingo-escape.txt").exists());
}

#[test]
fn damaged_pairs_are_counted_by_reason_and_the_others_kept() {
    let picture = png(1, 8, 8);
    let mut bomb = picture.clone();
    // The header says 16384 x 16384; its checksum is left wrong.
    bomb[16..24].copy_from_slice(&[0, 0, 0x40, 0, 0, 0, 0x40, 0]);
    let files: Files = &[
        ("0.txt", b"good"),
        ("0.png", &picture),
        ("1.txt", b"no image"),
        ("2.png", &picture),
        ("3.txt", b"\xff\xfe"),
        ("3.png", &picture),
        ("4.txt", b"cut"),
        ("4.png", &picture[..picture.len() / 2]),
        ("5.txt", b"bomb"),
        ("5.png", &bomb),
        ("6.txt", b" \n "),
        ("6.png", &picture),
        ("7.json", b"{\"caption\": "),
        ("7.png", &picture),
        ("8.json", b"{\"title\": \"x\"}"),
        ("8.jpg", &picture),
        ("9.txt", b"html"),
        ("9.jpg", b"<html>"),
        ("a.txt", b"good"),
        ("a.jpg", &picture),
    ];
    let (kept, stream) = one("pairs", files, None);
    let count = |reason| stream.tally().count(reason);
    assert_eq!(kept, 2);
    assert_eq!(count(Reason::NoImage), 1);
    assert_eq!(count(Reason::NoText), 2);
    assert_eq!(count(Reason::Text), 1);
    assert_eq!(count(Reason::Image), 3);
    assert_eq!(count(Reason::EmptyText), 1);
    assert_eq!(count(Reason::Json), 1);
}

#[test]
fn documents_that_mean_harm_are_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let many = json!({
        "text_list": vec!["a"; 5000], "similarity_matrix": [], "image_info": [],
    });
    let images = json!({
        "text_list": ["a"], "similarity_matrix": [], "image_info": vec![json!({}); 300],
    });
    let outside = json!({
        "text_list": ["a"], "similarity_matrix": [[0.5]],
        "image_info": [{ "image_base64": base64(&png(1, 8, 8)), "matched_text_index": 1u64 << 40,
                         "matched_sim": 99.0 }],
    });
    let rules = Rules { min_image_bytes: 0, ..Rules::interleaved(LabelRules::V1) };
    let escape = json!({
        "format": "medflamingo-segment-1", "book": "x", "parts": [{ "image": "../../etc/passwd" }],
    });
    let cases: [(String, Reason, Option<Rules>); 8] = [
        (deep, Reason::Json, None),
        ("{}".into(), Reason::Json, None),
        ("null".into(), Reason::Json, None),
        (many.to_string(), Reason::TooLarge, None),
        (images.to_string(), Reason::TooLarge, None),
        (outside.to_string(), Reason::Similarity, Some(rules)),
        (escape.to_string(), Reason::NoImage, None),
        (r#"{"format": "other-2"}"#.into(), Reason::Json, None),
    ];
    for (json, reason, rules) in cases {
        let (kept, stream) = one("interleaved", &[("a.json", json.as_bytes())], rules);
        let shown = &json[..json.len().min(60)];
        assert_eq!((kept, stream.tally().count(reason)), (0, 1), "{shown} {:?}", stream.tally());
    }
    let (_, stream) = one("interleaved", &[("a.txt", b"x")], None);
    assert_eq!(stream.tally().count(Reason::NoText), 1);
}

fn lines(folder: &Path, text: &[u8], options: StreamOptions) -> Stream {
    let file = folder.join("train.jsonl");
    std::fs::write(&file, text).unwrap();
    std::fs::create_dir_all(folder.join("images")).unwrap();
    open(&Source::Lines { file, images: folder.join("images") }, options)
}

#[test]
fn image_paths_do_not_leave_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    std::fs::create_dir_all(&images).unwrap();
    std::fs::write(folder.path().join("secret.png"), png(1, 8, 8)).unwrap();
    std::fs::write(images.join("in.png"), png(1, 8, 8)).unwrap();
    let secret = folder.path().join("secret.png");
    std::os::unix::fs::symlink(&secret, images.join("link.png")).unwrap();
    std::os::unix::fs::symlink("in.png", images.join("inside.png")).unwrap();
    let names = [
        "in.png",
        "inside.png",
        "../secret.png",
        secret.to_str().unwrap(),
        "link.png",
        "a\\..\\b.png",
        "x\0.png",
        "",
        "missing.png",
        ".",
    ];
    let text: Vec<String> =
        names.iter().map(|n| json!({ "image": n, "caption": "c" }).to_string()).collect();
    let options = StreamOptions { epochs: Some(1), max_bad_share: 1.0, ..Default::default() };
    let mut stream = lines(folder.path(), text.join("\n").as_bytes(), options);
    assert_eq!(all(&mut stream).len(), 2);
    assert_eq!(stream.tally().count(Reason::Path), 7);
    assert_eq!(stream.tally().count(Reason::NoImage), 1);
}

#[test]
fn lines_that_are_too_long_or_no_json_cost_only_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    std::fs::create_dir_all(&images).unwrap();
    std::fs::write(images.join("in.png"), png(1, 8, 8)).unwrap();
    let good = "{\"image\": \"in.png\", \"caption\": \"c\"}\n";
    let mut text = good.repeat(3);
    text.push_str(&"x".repeat(3 << 20));
    text.push('\n');
    text.push_str("{\"image\": 7}\n");
    text.push_str(&good.repeat(2000));
    let options = StreamOptions { epochs: Some(1), ..Default::default() };
    let mut stream = lines(folder.path(), text.as_bytes(), options);
    assert_eq!(all(&mut stream).len(), 2003);
    assert_eq!(stream.tally().count(Reason::TooLarge), 1);
    assert_eq!(stream.tally().count(Reason::Json), 1);
}

#[test]
fn too_many_damaged_records_stop_the_run_and_name_the_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let text = "{\"image\": \"gone.png\", \"caption\": \"c\"}\n{}\n".repeat(50);
    let options = StreamOptions { judged_after: 10, ..Default::default() };
    let mut stream = lines(folder.path(), text.as_bytes(), options);
    let error = stream.next().unwrap_err().to_string();
    assert!(error.contains("source 0: expected at most 1.0 % damaged records"), "{error}");
    assert!(error.contains("of 10:"), "{error}");
    assert!(error.contains("no-image (first: ") && error.contains("bad-json"), "{error}");
    assert!(error.contains("train.jsonl at byte "), "{error}");
}

#[test]
fn a_source_that_gives_nothing_ends_after_an_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::Pairs { shards: vec![folder.path().to_str().unwrap().into()] };
    std::fs::write(folder.path().join("0.tar"), tar(&[])).unwrap();
    let error = open(&source, StreamOptions::default()).next().unwrap_err().to_string();
    assert!(error.contains("no records"), "{error}");
    let picture = png(1, 8, 8);
    let files: Files = &[("0.txt", b" "), ("0.png", &picture)];
    std::fs::write(folder.path().join("0.tar"), tar(files)).unwrap();
    let error = open(&source, StreamOptions::default()).next().unwrap_err().to_string();
    assert!(error.contains("none of 1 records usable: 1 empty-text"), "{error}");
}

#[test]
fn sources_that_are_not_there_and_options_without_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |source: Source, options: StreamOptions| {
        let (tokenizer, preprocess) = (tokenizer("llama-tiny"), Preprocess::clip(SIDE));
        let rules = Rules::pairs(LabelRules::V2);
        let opened = Stream::open(source, rules, tokenizer, preprocess, options);
        opened.err().unwrap().to_string()
    };
    let path = folder.path().to_str().unwrap().to_string();
    let shards = |pattern: &str| Source::Pairs { shards: vec![pattern.into()] };
    let default = StreamOptions::default;
    assert!(refused(shards(&path), default()).contains("folder with .tar files"));
    assert!(refused(shards(&format!("{path}/gone.tar")), default()).contains("cannot read"));
    assert!(refused(Source::Pairs { shards: vec![] }, default()).contains("1 to 1000000 shards"));
    assert!(refused(shards("/dev/zero"), default()).contains("plain file"));
    let source = pairs(folder.path(), &[1]);
    let with = |change: fn(&mut StreamOptions)| {
        let mut options = default();
        change(&mut options);
        refused(source.clone(), options)
    };
    assert!(with(|o| o.world = 0).starts_with("world"));
    assert!(with(|o| o.rank = 1).starts_with("rank"));
    assert!(with(|o| o.buffer = 0).starts_with("buffer"));
    assert!(with(|o| o.threads = 0).starts_with("threads"));
    assert!(with(|o| o.max_bad_share = f64::NAN).starts_with("max_bad_share"));
    let interleaved = Source::Interleaved { shards: vec![path] };
    assert!(refused(interleaved, default()).starts_with("rules.form"));
    assert!(expand("a{0..3").is_err());
}
