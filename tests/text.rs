//! Tokenizers against ids recorded from transformers 4.33, and their properties on any text.

use medflamingo::prompt::{Limits, Part, Prompt};
use medflamingo::text::{
    END_OF_CHUNK, IMAGE, Names, Prepared, StopStrings, Tokenizer, from_sentencepiece, prepare,
};
use proptest::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

const MODELS: [&str; 3] = ["llama-tiny", "mpt-tiny", "neox-tiny"];
const CONTROL: [&str; 8] =
    ["<s>", "</s>", "<unk>", "<PAD>", "<|endoftext|>", "<image>", "<|endofchunk|>", "<|padding|>"];

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn sentencepiece_folder() -> PathBuf {
    golden("extras/llama_sentencepiece_tokenizer")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A folder with only the named files of `from`.
fn copy(from: &Path, files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn save(prepared: &Prepared) -> (tempfile::TempDir, Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in prepared.files().unwrap() {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    (folder, tokenizer)
}

fn all_tokenizers() -> Vec<Tokenizer> {
    let mut folders: Vec<PathBuf> = MODELS.iter().map(|m| golden(&format!("{m}/lm"))).collect();
    folders.push(sentencepiece_folder());
    folders.iter().map(|f| prepare(f).unwrap().tokenizer).collect()
}

/// True when a case holds a special token that a prompt may not contain as one.
fn has_other_special(text: &str) -> bool {
    text.contains("<PAD>")
}

#[test]
fn byte_level_ids_and_text_equal_upstream() {
    for model in MODELS {
        let prepared = prepare(&golden(&format!("{model}/lm"))).unwrap();
        let s = prepared.specials;
        assert_eq!((s.end_of_chunk, s.image, s.pad), (400, 401, 402), "{model}");
        assert_eq!((prepared.base_len, prepared.len), (400, 403), "{model}");
        let tokenizer = save(&prepared).1;
        assert_eq!(tokenizer.leading(), (model == "llama-tiny").then_some(1), "{model}");
        let cases = json(&golden(&format!("{model}/golden/tokenizer_cases.json")));
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let expected = ids(&case["ids"]);
            let name = format!("{model}: {text:?}");
            assert_eq!(tokenizer.decode(&expected, false), case["decoded"], "{name}");
            assert_eq!(tokenizer.decode(&expected, true), case["decoded_skip_special"], "{name}");
            let found = tokenizer.encode_prompt(text).unwrap();
            if has_other_special(text) {
                assert!(!found.contains(&s.pad), "{name}");
                let leading = if model == "llama-tiny" { "<s>" } else { "" };
                assert_eq!(tokenizer.decode(&found, false), format!("{leading}{text}"));
            } else {
                assert_eq!(found, expected, "{name}");
            }
        }
    }
}

#[test]
fn sentencepiece_ids_and_text_equal_the_fast_class() {
    let cases = json(&sentencepiece_folder().join("cases.json"));
    for files in [
        &["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"][..],
        &["tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"][..],
        &["tokenizer.model"][..],
    ] {
        let folder = copy(&sentencepiece_folder(), files);
        let prepared = prepare(folder.path()).unwrap();
        assert_eq!(prepared.source, files[0]);
        let s = prepared.specials;
        assert_eq!((s.end_of_chunk, s.image, s.pad), (520, 521, 522));
        assert_eq!((s.bos, s.eos, s.unk), (Some(1), Some(2), Some(0)));
        assert_eq!(prepared.len as u64, cases["vocab"].as_u64().unwrap());
        let tokenizer = save(&prepared).1;
        for case in cases["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let expected = ids(&case["fast_ids"]);
            assert_eq!(tokenizer.encode_prompt(text).unwrap(), expected, "{text:?}");
            assert_eq!(tokenizer.decode(&expected, false), case["fast_decoded"], "{text:?}");
        }
    }
}

#[test]
fn sentencepiece_model_becomes_the_json_of_transformers() {
    let bytes = std::fs::read(sentencepiece_folder().join("tokenizer.model")).unwrap();
    let ours = from_sentencepiece(&bytes).unwrap().file.to_json().unwrap();
    let ours: Value = serde_json::from_slice(&ours).unwrap();
    let mut theirs = json(&sentencepiece_folder().join("tokenizer.json"));
    theirs["model"]["ignore_merges"] = false.into();
    assert_eq!(ours["model"]["merges"], theirs["model"]["merges"]);
    assert_eq!(ours, theirs);
}

#[test]
fn leading_id_follows_the_configuration() {
    let folder = copy(&sentencepiece_folder(), &["tokenizer.json", "tokenizer.model"]);
    let config = folder.path().join("tokenizer_config.json");
    let leading = |text: &str| {
        std::fs::write(&config, text).unwrap();
        let prepared = prepare(folder.path()).unwrap();
        let saved = save(&prepared);
        assert_eq!(saved.1.leading(), prepared.leading, "{text}");
        // A converted folder that is converted again keeps its leading id.
        assert_eq!(prepare(saved.0.path()).unwrap().leading, prepared.leading, "{text}");
        let first = saved.1.encode_prompt("You").unwrap();
        assert_eq!(saved.1.decode(&first[first.len() - 1..], false), "You");
        prepared.leading
    };
    let empty = r#"{"bos_token": "", "eos_token": "", "unk_token": ""}"#;
    assert_eq!(leading(empty), Some(0));
    assert_eq!(leading(r#"{"bos_token": "<s>", "eos_token": "</s>"}"#), Some(1));
    assert_eq!(leading("{}"), Some(1));
    assert_eq!(leading(r#"{"add_bos_token": false}"#), None);
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert_eq!(leading(empty), Some(0));
    assert_eq!(leading("{}"), Some(1));
    std::fs::write(&config, r#"{"add_eos_token": true}"#).unwrap();
    assert!(prepare(folder.path()).unwrap_err().to_string().contains("add_eos_token"));
}

#[test]
fn leading_id_can_be_set() {
    let tokenizer = prepare(&sentencepiece_folder()).unwrap().tokenizer;
    let unk = tokenizer.clone().with_leading(Some(0)).unwrap();
    assert_eq!(unk.encode_prompt("<image>").unwrap(), [0, 521]);
    let none = tokenizer.clone().with_leading(None).unwrap();
    assert_eq!(none.encode_prompt("<image>").unwrap(), [521]);
    assert!(tokenizer.with_leading(Some(523)).is_err());
}

#[test]
fn padding_token_is_added_only_if_none_is_named() {
    let folder = copy(&golden("mpt-tiny/lm"), &["tokenizer.json"]);
    let config = folder.path().join("tokenizer_config.json");
    std::fs::write(&config, r#"{"pad_token": "<|endoftext|>"}"#).unwrap();
    let prepared = prepare(folder.path()).unwrap();
    assert_eq!((prepared.specials.pad, prepared.len), (0, 402));
    // A name that the vocabulary lacks takes the first new id, as in transformers.
    std::fs::write(&config, r#"{"pad_token": {"content": "<pad>"}}"#).unwrap();
    let prepared = prepare(folder.path()).unwrap();
    let s = prepared.specials;
    assert_eq!((s.pad, s.end_of_chunk, s.image, prepared.len), (400, 401, 402, 403));
    std::fs::write(&config, r#"{"pad_token": null}"#).unwrap();
    std::fs::write(folder.path().join("added_tokens.json"), r#"{"<extra>": 400}"#).unwrap();
    let prepared = prepare(folder.path()).unwrap();
    assert_eq!((prepared.specials.pad, prepared.len), (403, 404));
    std::fs::write(folder.path().join("added_tokens.json"), r#"{"<extra>": 401}"#).unwrap();
    assert!(prepare(folder.path()).unwrap_err().to_string().contains("<extra>"));
}

#[test]
fn a_folder_that_was_not_converted_is_refused() {
    let error = Tokenizer::open(&golden("llama-tiny/lm")).unwrap_err().to_string();
    assert!(error.contains("<|endofchunk|>") && error.contains("convert"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = prepare(empty.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json or tokenizer.model"), "{error}");
}

/// Text in which control strings are whole, cut, doubled and next to anything.
fn hostile_text() -> impl Strategy<Value = String> {
    let control = prop::sample::select(&CONTROL[..]);
    let cut = (control.clone(), 0..20usize, 0..20usize).prop_map(|(s, a, b)| {
        let (a, b) = (a.min(s.len()), b.min(s.len()));
        s[a.min(b)..a.max(b)].to_string()
    });
    let piece = prop_oneof![
        control.prop_map(str::to_string),
        cut,
        "[<>|s/ \u{2581}]{0,4}",
        "\\PC{0,6}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

#[test]
fn text_never_becomes_special() {
    let tokenizers = all_tokenizers();
    let limits = Limits::tokens(100_000);
    let check = |(a, b): (String, String)| {
        for tokenizer in &tokenizers {
            let ids = tokenizer.encode_text(&a).unwrap();
            prop_assert!(!ids.iter().any(|id| tokenizer.is_special(*id)), "{:?}: {:?}", a, ids);
            prop_assert_eq!(ids.is_empty(), a.is_empty());
            let parts = [Part::Text(a.clone()), Part::Text(b.clone()), Part::Image(())];
            let prompt = Prompt::from_parts(tokenizer, parts, &limits).unwrap();
            let special = prompt.ids().iter().filter(|id| tokenizer.is_special(**id)).count();
            prop_assert_eq!(special, 1 + tokenizer.leading().iter().count());
        }
        Ok(())
    };
    let (start, mut runs) = (std::time::Instant::now(), 0);
    while runs == 0 || start.elapsed() < fuzz_time() {
        runner(2000).run(&(hostile_text(), hostile_text()), check).unwrap();
        runs += 1;
    }
    println!("{} pairs of texts, no special token", 2000 * runs);
}

#[test]
fn prompts_know_the_two_markers_only() {
    let tokenizers = all_tokenizers();
    runner(2000)
        .run(&hostile_text(), |text| {
            let markers = text.matches(IMAGE).count() + text.matches(END_OF_CHUNK).count();
            for tokenizer in &tokenizers {
                let ids = tokenizer.encode_prompt(&text).unwrap();
                let body = &ids[tokenizer.leading().iter().count()..];
                let special: Vec<u32> =
                    body.iter().copied().filter(|id| tokenizer.is_special(*id)).collect();
                prop_assert_eq!(special.len(), markers, "{:?}", text);
                let s = tokenizer.specials();
                prop_assert!(special.iter().all(|id| [s.image, s.end_of_chunk].contains(id)));
                if tokenizer.specials().end_of_chunk == 400 {
                    prop_assert_eq!(tokenizer.decode(body, false), text.as_str());
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_merge_that_makes_a_special_token_is_not_used_for_text() {
    let folder = copy(&sentencepiece_folder(), &["tokenizer.json"]);
    let path = folder.path().join("tokenizer.json");
    let mut file = json(&path);
    for (token, id) in [("<", 520), (">", 521), ("s>", 522)] {
        file["model"]["vocab"][token] = id.into();
    }
    let merges = file["model"]["merges"].as_array_mut().unwrap();
    merges.insert(0, "s >".into());
    merges.insert(1, "< s>".into());
    std::fs::write(&path, file.to_string()).unwrap();
    let tokenizer = prepare(folder.path()).unwrap().tokenizer;
    let ids = tokenizer.encode_text("<s>").unwrap();
    assert!(!ids.contains(&1) && ids.ends_with(&[520, 522]), "{ids:?}");
}

fn runner(cases: u32) -> proptest::test_runner::TestRunner {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest::test_runner::TestRunner::new(config)
}

#[test]
fn streaming_equals_decoding_the_whole() {
    let tokenizers = all_tokenizers();
    let byte_or_any = prop_oneof![3u32..262, 0u32..530];
    runner(2000)
        .run(&prop::collection::vec(byte_or_any, 0..24), |ids| {
            for tokenizer in &tokenizers {
                let mut stream = tokenizer.stream();
                let parts: Vec<String> = ids.iter().filter_map(|id| stream.push(*id)).collect();
                prop_assert!(parts.iter().all(|p| !p.is_empty()));
                let joined = parts.concat() + &stream.finish();
                let whole = tokenizer.decode(&ids, true);
                prop_assert_eq!(&joined, &whole);
                let mut continued = tokenizer.continuation();
                let mut text: String = ids.iter().filter_map(|id| continued.push(*id)).collect();
                text.push_str(&continued.finish());
                let first_space_kept = text.strip_prefix(' ').unwrap_or(&text);
                prop_assert!(text == whole || first_space_kept == whole);
            }
            Ok(())
        })
        .unwrap();
}

/// A GPT-NeoX folder with what the real one has and the tiny one lacks: NFC, runs of spaces as
/// added tokens that are not special, offsets trimmed by a post-processor.
fn neox_with_space_runs() -> tempfile::TempDir {
    let folder = copy(&golden("neox-tiny/lm"), &["tokenizer_config.json"]);
    let mut file = json(&golden("neox-tiny/lm/tokenizer.json"));
    file["normalizer"] = serde_json::json!({"type": "NFC"});
    file["post_processor"] =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    for (id, spaces) in [(400, 4), (401, 3), (402, 2)] {
        file["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({
            "id": id, "content": " ".repeat(spaces), "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": true, "special": false}));
    }
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    folder
}

/// Ours beside the tokenizers crate reading the same file by itself.
fn pairs() -> Vec<(Tokenizer, tokenizers::Tokenizer)> {
    let neox = neox_with_space_runs();
    let mut folders: Vec<PathBuf> = MODELS.iter().map(|m| golden(&format!("{m}/lm"))).collect();
    folders.extend([sentencepiece_folder(), neox.path().to_path_buf()]);
    let both = |folder: &PathBuf| {
        let prepared = prepare(folder).unwrap();
        let theirs = tokenizers::Tokenizer::from_bytes(prepared.file.to_json().unwrap()).unwrap();
        (prepared.tokenizer, theirs)
    };
    folders.iter().map(both).collect()
}

#[test]
fn decoding_equals_the_tokenizers_crate() {
    let pairs = pairs();
    let byte_or_any = prop_oneof![3u32..262, 0u32..530];
    runner(2000)
        .run(&(prop::collection::vec(byte_or_any, 0..24), any::<bool>()), |(ids, skip)| {
            for (ours, theirs) in &pairs {
                prop_assert_eq!(ours.decode(&ids, skip), theirs.decode(&ids, skip).unwrap());
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn encoding_equals_the_tokenizers_crate() {
    let pairs = pairs();
    let piece = prop_oneof![
        Just(IMAGE.to_string()),
        Just(END_OF_CHUNK.to_string()),
        "[ \n]{0,6}",
        "[a-z .?]{0,12}",
        "\\PC{0,8}",
        "[aeo][\u{300}\u{301}\u{323}]{1,2}",
    ];
    runner(1000)
        .run(&prop::collection::vec(piece, 0..10), |pieces| {
            let text = pieces.concat();
            for (ours, theirs) in &pairs {
                let expected = theirs.encode(text.as_str(), true).unwrap();
                prop_assert_eq!(&ours.encode_prompt(&text).unwrap()[..], expected.get_ids());
            }
            Ok(())
        })
        .unwrap();
}

/// The first moment at which the text ends with a stop string; the longest one then.
fn naive_stop(text: &str, stops: &[String]) -> Option<usize> {
    (1..=text.len()).find_map(|end| {
        let ends = |s: &&String| text.as_bytes()[..end].ends_with(s.as_bytes());
        stops.iter().filter(ends).map(|s| end - s.len()).min()
    })
}

#[test]
fn stop_strings_equal_a_search_in_the_whole_text() {
    let letters = "[abé\n]{1,4}";
    let strategy =
        (prop::collection::vec(letters, 0..4), prop::collection::vec("[abé\n]{0,3}", 0..12));
    runner(5000)
        .run(&strategy, |(stops, pieces)| {
            let whole = pieces.concat();
            let mut watch = StopStrings::new(stops.clone()).unwrap();
            let mut text = String::new();
            for piece in &pieces {
                text.push_str(&watch.push(piece).text);
            }
            text.push_str(&watch.finish());
            let expected = naive_stop(&whole, &stops);
            prop_assert_eq!(&text, &whole[..expected.unwrap_or(whole.len())]);
            prop_assert_eq!(watch.stopped().is_some(), expected.is_some());
            Ok(())
        })
        .unwrap();
}

#[test]
fn stop_strings_are_limited() {
    assert!(StopStrings::new([""]).is_err());
    assert!(StopStrings::new(["x".repeat(64)]).is_ok());
    assert!(StopStrings::new(["x".repeat(65)]).is_err());
    assert!(StopStrings::new(vec!["x"; 16]).is_ok());
    assert!(StopStrings::new(vec!["x"; 17]).is_err());
}

#[test]
fn prompts_have_one_image_for_each_marker() {
    let tokenizer = prepare(&golden("llama-tiny/lm")).unwrap().tokenizer;
    let limits = Limits::tokens(40);
    let text = "<image>one<|endofchunk|><image>two";
    let prompt = Prompt::from_text(&tokenizer, text, vec!["a", "b"], &limits).unwrap();
    assert_eq!(prompt.images(), ["a", "b"]);
    let at = |i: usize| prompt.ids()[prompt.markers()[i]];
    assert_eq!((prompt.markers()[0], at(0), at(1)), (1, 401, 401));
    let parts = [
        Part::Image("a"),
        Part::Text("on".into()),
        Part::Text("e".into()),
        Part::EndOfChunk,
        Part::Image("b"),
        Part::Text("two".into()),
    ];
    let built = Prompt::from_parts(&tokenizer, parts, &limits).unwrap();
    assert_eq!((built.ids(), built.images()), (prompt.ids(), prompt.images()));

    let error = |images: Vec<&str>, text: &str| {
        Prompt::from_text(&tokenizer, text, images, &limits).unwrap_err().to_string()
    };
    let few = error(vec!["a"], text);
    assert!(few.contains("2 <image> markers") && few.contains("found 1 image\n"), "{few}");
    assert!(few.contains("give 1 image more"), "{few}");
    let many = error(vec!["a", "b", "c"], text);
    assert!(many.contains("found 3 images") && many.contains("leave out 1 image"), "{many}");
    assert!(error(vec![], "").contains("nothing"));
    let long = error(vec![], &"word ".repeat(40));
    assert!(long.contains("at most 40 tokens") && long.contains("tokens\n"), "{long}");
    let huge = error(vec![], &"x".repeat(3_000_000));
    assert!(huge.contains("3000000 bytes"), "{huge}");

    let surplus = Limits { surplus_markers: true, ..limits };
    let prompt = Prompt::from_text(&tokenizer, text, vec!["a"], &surplus).unwrap();
    assert_eq!((prompt.markers().len(), prompt.images().len()), (2, 1));
    assert!(Prompt::from_text(&tokenizer, "x", vec!["a"], &surplus).is_err());
    assert!(Prompt::<()>::from_ids(&tokenizer, vec![403], vec![], &limits).is_err());
    let mapped = prompt.try_map(|name| Ok(name.len())).unwrap();
    assert_eq!(mapped.images(), [1]);
}

type Edit = fn(&mut Value);

#[test]
fn unsupported_files_are_refused_by_name() {
    let change = |edit: Edit| {
        let mut file = json(&sentencepiece_folder().join("tokenizer.json"));
        edit(&mut file);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        prepare(folder.path()).unwrap_err().to_string()
    };
    let cases: [(Edit, &str); 9] = [
        (
            |f| f["model"] = serde_json::json!({"type": "Unigram", "vocab": [["a", -1.0]]}),
            "Unigram",
        ),
        (|f| f["model"]["dropout"] = 0.1.into(), "dropout"),
        (|f| f["normalizer"] = serde_json::json!({"type": "Lowercase"}), "Lowercase"),
        (|f| f["pre_tokenizer"] = serde_json::json!({"type": "Whitespace"}), "ByteLevel"),
        (|f| f["model"]["vocab"]["gap"] = 900.into(), "gap"),
        (|f| f["model"]["vocab"]["twice"] = 7.into(), "twice"),
        (|f| f["model"]["merges"][0] = "no such".into(), "`no`"),
        (|f| f["post_processor"]["single"][1] = serde_json::json!({}), "single"),
        (
            |f| {
                f["model"]["vocab"].as_object_mut().unwrap().remove("<0x41>");
                f["model"]["vocab"]["<0xzz>"] = 68.into();
            },
            "<0x41>",
        ),
    ];
    for (edit, word) in cases {
        let error = change(edit);
        assert!(error.contains(word) && error.contains("tokenizer.json"), "{word}: {error}");
    }
}

fn fuzz_time() -> std::time::Duration {
    let seconds = std::env::var("MEDFLAMINGO_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    std::time::Duration::from_secs_f64(seconds.unwrap_or(3.0))
}

/// Deletes, repeats, overwrites and flips parts of `bytes`, a few times.
fn mutate(bytes: &mut Vec<u8>, mut random: impl FnMut(usize) -> usize) {
    for _ in 0..1 + random(4) {
        let (at, length) = (random(bytes.len().max(1)), 1 + random(24));
        let end = (at + length).min(bytes.len());
        match random(5) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at.min(end)..end)),
            2 => {
                let part = bytes[at.min(end)..end].to_vec();
                let to = random(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            3 if at < bytes.len() => bytes[at] ^= 1 << random(8),
            _ if at < bytes.len() => {
                let interesting = [0u8, 0xff, b'"', b'{', b'[', b'0', b'9', b',', 0x80, b'<'];
                bytes[at] = interesting[random(interesting.len())];
            }
            _ => {}
        }
    }
}

#[test]
fn mutated_files_never_panic() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n as u64) as usize
    };
    let json = std::fs::read(sentencepiece_folder().join("tokenizer.json")).unwrap();
    let bytes = std::fs::read(golden("mpt-tiny/lm/tokenizer.json")).unwrap();
    let model = std::fs::read(sentencepiece_folder().join("tokenizer.model")).unwrap();
    let (start, mut read, mut encoded, mut runs) = (std::time::Instant::now(), 0, 0, 0);
    while start.elapsed() < fuzz_time() {
        let mut bytes = [&json, &bytes, &model][runs % 3].clone();
        mutate(&mut bytes, &mut random);
        let file = match runs % 3 {
            2 => from_sentencepiece(&bytes).map(|s| s.file),
            _ => medflamingo::text::file::TokenizerFile::parse(&bytes),
        };
        let made = file.and_then(|mut file| {
            let mut names = Names::default();
            medflamingo::text::add_flamingo_specials(&mut file, &mut names)?;
            Tokenizer::new(file, &names)
        });
        if let Ok(tokenizer) = made {
            read += 1;
            // A vocabulary whose plain text makes special tokens may refuse such a prompt.
            if let Ok(ids) = tokenizer.encode_prompt("Is <image> nor\u{301}mal?\n</s>\u{2581}日") {
                encoded += 1;
                tokenizer.decode(&ids, true);
            }
        }
        runs += 1;
    }
    println!("{runs} mutated files, {read} still tokenizers, {encoded} took the prompt, no panic");
    assert!(runs > 10 && encoded > 0);
}
