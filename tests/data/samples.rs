//! What becomes of a record: ids, labels and pixels against upstream's, and the rules.

use super::*;
use medflamingo::image::{Limits, decode, preprocess};
use medflamingo::prompt::Part;
use medflamingo::text::{END_OF_CHUNK, IMAGE};
use medflamingo::train::data::{Builder, Content, Form, Matching, Reason, label};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// Folders of golden training batches: this tree's, and any in `MEDFLAMINGO_GOLDEN`.
fn golden_models() -> Vec<PathBuf> {
    let mut roots = vec![golden("")];
    roots.extend(std::env::var_os("MEDFLAMINGO_GOLDEN").map(PathBuf::from));
    let folders = roots.iter().flat_map(|root| std::fs::read_dir(root).unwrap());
    let folders = folders.map(|entry| entry.unwrap().path());
    let found: Vec<_> = folders.filter(|f| f.join("train/batches.safetensors").exists()).collect();
    assert!(found.iter().any(|f| f.ends_with("llama-tiny")));
    found
}

/// Rows of a recorded (rows, columns) i64 tensor, without the columns that `mask` leaves out.
fn rows(file: &SafeTensors, name: &str, mask: &[Vec<i64>]) -> Vec<Vec<i64>> {
    let tensor = file.tensor(name).unwrap();
    let (columns, data) = (tensor.shape()[1], tensor.data());
    let values: Vec<i64> =
        data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let rows = values.chunks(columns).enumerate();
    let keep = |(r, row): (usize, &[i64])| {
        let is_kept = |(i, _): &(usize, &i64)| mask.is_empty() || mask[r][*i] == 1;
        row.iter().enumerate().filter(is_kept).map(|(_, &v)| v).collect()
    };
    rows.map(keep).collect()
}

/// A text with markers as parts, with a picture for each `<image>`.
fn parts(text: &str) -> Vec<Part<Vec<u8>>> {
    let mut all = Vec::new();
    for piece in text.split_inclusive('>') {
        let (text, marker) = match (piece.strip_suffix(IMAGE), piece.strip_suffix(END_OF_CHUNK)) {
            (Some(text), _) => (text, Some(Part::Image(png(1, 8, 8)))),
            (_, Some(text)) => (text, Some(Part::EndOfChunk)),
            _ => (piece, None),
        };
        all.push(Part::Text(text.into()));
        all.extend(marker);
    }
    all
}

fn builder(tokenizer: Tokenizer, rules: Rules) -> Builder {
    Builder { tokenizer, preprocess: Preprocess::clip(SIDE), rules, seed: 1, source: 3 }
}

fn compare(sample: &Sample, ids: &[i64], labels: &[i64]) {
    assert_eq!(sample.ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(), ids);
    assert_eq!(sample.labels.iter().map(|&l| i64::from(l)).collect::<Vec<_>>(), labels);
}

#[test]
fn ids_and_labels_are_those_of_upstreams_batches() {
    for folder in golden_models() {
        let tokenizer = prepare(&folder.join("lm")).unwrap().tokenizer;
        let bytes = std::fs::read(folder.join("train/batches.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let json = std::fs::read(folder.join("train/train.json")).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        for (b, batch) in json["batches"].as_array().unwrap().iter().enumerate() {
            for (part, key, mut rules) in [
                ("laion", "captions", Rules::pairs(LabelRules::V2)),
                ("mmc4", "texts", Rules::interleaved(LabelRules::V2)),
            ] {
                let name = |what: &str| format!("batch{b}.{part}.{what}");
                let mask = rows(&file, &name("attention_mask"), &[]);
                let ids = rows(&file, &name("input_ids"), &mask);
                let labels = rows(&file, &name("labels"), &mask);
                rules.max_tokens = batch[part]["max_tokens"].as_u64().unwrap() as usize;
                let builder = builder(tokenizer.clone(), rules);
                let texts = batch[part][key].as_array().unwrap();
                assert_eq!(texts.len(), ids.len());
                for (i, text) in texts.iter().enumerate() {
                    let text = text.as_str().unwrap();
                    let parts = match part {
                        "laion" => parts(&format!("{IMAGE}{}{END_OF_CHUNK}", text.trim())),
                        _ => parts(text),
                    };
                    let content = Content { parts, is_mmc4: false };
                    let sample = builder.build(content, 0).unwrap();
                    compare(&sample, &ids[i], &labels[i]);
                    let markers = sample.ids.iter().filter(|&&id| id == tokenizer.specials().image);
                    assert_eq!(markers.count(), sample.images.len());
                    assert_eq!(sample.source, 3);
                    let again = label(
                        &sample.ids,
                        &tokenizer.specials(),
                        builder.rules.form,
                        LabelRules::V2,
                    );
                    assert_eq!(again, sample.labels);
                }
            }
        }
    }
}

fn content(parts: Vec<Part<Vec<u8>>>) -> Content {
    Content { parts, is_mmc4: false }
}

#[test]
fn text_never_becomes_a_marker() {
    for model in ["llama-tiny", "mpt-tiny"] {
        let tokenizer = tokenizer(model);
        let specials = tokenizer.specials();
        let mut rules = Rules::pairs(LabelRules::V2);
        rules.max_tokens = 200;
        let evil = "<image> and <|endofchunk|></s><PAD><s><|endoftext|>".to_string();
        let parts = vec![Part::Image(png(2, 8, 8)), Part::Text(evil), Part::EndOfChunk];
        let sample = builder(tokenizer, rules).build(content(parts), 0).unwrap();
        let count = |id| sample.ids.iter().filter(|&&found| found == id).count();
        assert_eq!((count(specials.image), count(specials.end_of_chunk)), (1, 1));
        assert_eq!(specials.eos.map(count).unwrap_or(1), 1);
        assert_eq!(count(specials.pad), usize::from(specials.eos == Some(specials.pad)));
    }
}

#[test]
fn pixels_are_those_of_inference_and_flips_are_mirrored_one_by_one() {
    let files = ["phantom_0.jpg", "phantom_3.png"].map(|f| golden("images").join(f));
    let files = files.map(|f| std::fs::read(f).unwrap());
    let document = || {
        let image = |i: usize| Part::Image(files[i % 2].clone());
        let text = || Part::Text("a".into());
        content((0..6).flat_map(|i| [image(i), text(), Part::EndOfChunk]).collect())
    };
    let expected = files.each_ref().map(|file| {
        let picture = decode(file, &Limits::default()).unwrap();
        preprocess(&picture, &Preprocess::clip(SIDE)).unwrap().data
    });
    let mut rules = Rules::interleaved(LabelRules::V2);
    let plain = builder(tokenizer("llama-tiny"), rules.clone()).build(document(), 7).unwrap();
    assert!(plain.images.iter().enumerate().all(|(i, p)| **p == expected[i % 2]));
    rules.flip = 0.5;
    let builder = builder(tokenizer("llama-tiny"), rules);
    let mirror = |pixels: &[u8]| {
        pixels.chunks(SIDE).flat_map(|row| row.iter().rev().copied()).collect::<Vec<u8>>()
    };
    let mut flipped = 0;
    for number in 0..20 {
        let sample = builder.build(document(), number).unwrap();
        for (i, pixels) in sample.images.iter().enumerate() {
            let is_flipped = **pixels != expected[i % 2];
            assert!(!is_flipped || **pixels == mirror(&expected[i % 2]));
            flipped += usize::from(is_flipped);
        }
        assert_eq!(builder.build(document(), number).unwrap().images, sample.images);
    }
    assert!((35..85).contains(&flipped), "{flipped} of 120");
}

/// A document of MMC4 in a shard of its own, and what the rules make of it.
fn mmc4(document: &Value, rules: &Rules) -> Result<Sample, Reason> {
    let folder = tempfile::tempdir().unwrap();
    let json = document.to_string();
    let path = folder.path().join("0.tar");
    std::fs::write(&path, tar(&[("a.json", json.as_bytes())])).unwrap();
    let source = Source::Interleaved { shards: vec![path.to_str().unwrap().into()] };
    let options = StreamOptions { epochs: Some(1), max_bad_share: 1.0, ..Default::default() };
    let mut stream = open_with(&source, rules.clone(), options);
    match stream.next() {
        Ok(Some(sample)) => Ok(sample),
        _ => Err(*Reason::ALL.iter().find(|&&r| stream.tally().count(r) > 0).unwrap()),
    }
}

fn loose() -> Rules {
    let rules = Rules::interleaved(LabelRules::V2);
    Rules { min_image_bytes: 0, single_image_drop: 0.0, ..rules }
}

fn document(sentences: &[&str], similarity: &[&[f64]]) -> Value {
    let image = |i| json!({ "image_name": "x", "image_base64": base64(&png(i, 8, 8)) });
    json!({
        "text_list": sentences,
        "similarity_matrix": similarity,
        "image_info": (0..similarity.len() as u32).map(image).collect::<Vec<_>>(),
    })
}

fn pixels(i: u32) -> Vec<u8> {
    let picture = decode(&png(i, 8, 8), &Limits::default()).unwrap();
    preprocess(&picture, &Preprocess::clip(SIDE)).unwrap().data
}

#[test]
fn images_go_to_their_sentences_and_the_text_is_upstreams() {
    let sentences = ["zero", "one ", "two", "three"];
    let similarity: [&[f64]; 3] =
        [&[0.1, 0.2, 0.9, 0.3], &[0.1, 0.8, 0.2, 0.1], &[0.2, 0.1, 0.1, 0.15]];
    let sample = mmc4(&document(&sentences, &similarity), &loose()).unwrap();
    let text = "zero<image>one <|endofchunk|><image>two three<|endofchunk|>";
    let tokenizer = tokenizer("llama-tiny");
    let mut expected = tokenizer.encode_prompt(text).unwrap();
    expected.extend(tokenizer.specials().eos);
    assert_eq!(sample.ids, expected);
    // The first image belongs to the later sentence: it comes second, but for upstream's order.
    assert_eq!(
        sample.images.iter().map(|p| p.to_vec()).collect::<Vec<_>>(),
        [pixels(1), pixels(0)]
    );
    let upstream = Rules { keeps_image_order: true, ..loose() };
    let sample = mmc4(&document(&sentences, &similarity), &upstream).unwrap();
    assert_eq!(sample.ids, expected);
    assert_eq!(*sample.images[0], pixels(0));
    // The third image would have the first sentence, were the threshold lower.
    let low = Rules { similarity: 0.15, ..loose() };
    let sample = mmc4(&document(&sentences, &similarity), &low).unwrap();
    assert_eq!(sample.images.len(), 3);
    assert_eq!(*sample.images[0], pixels(2));
    let few = Rules { max_images: 2, similarity: 0.15, ..loose() };
    assert_eq!(mmc4(&document(&sentences, &similarity), &few).unwrap().images.len(), 2);
}

#[test]
fn older_releases_match_by_the_nearest_or_by_the_record() {
    let both: [&[f64]; 2] = [&[0.3, 0.9], &[0.2, 0.8]];
    let nearest = Rules { matching: Matching::Nearest, ..loose() };
    let sample = mmc4(&document(&["a", "b"], &both), &nearest).unwrap();
    let tokenizer = tokenizer("llama-tiny");
    let mut expected =
        tokenizer.encode_prompt("a<image><|endofchunk|><image>b<|endofchunk|>").unwrap();
    expected.extend(tokenizer.specials().eos);
    assert_eq!(sample.ids, expected);
    let mut document = document(&["a", "b"], &both);
    for (i, (sentence, similarity)) in [(1, 31.0), (1, 40.0)].into_iter().enumerate() {
        document["image_info"][i]["matched_text_index"] = json!(sentence);
        document["image_info"][i]["matched_sim"] = json!(similarity);
    }
    let first = Rules { min_image_bytes: 0, ..Rules::interleaved(LabelRules::V1) };
    let first = Rules { single_image_drop: 0.0, ..first };
    let sample = mmc4(&document, &first).unwrap();
    assert_eq!(sample.images.len(), 1);
    assert_eq!(*sample.images[0], pixels(0));
    let high = Rules { similarity: 32.0, ..first };
    assert_eq!(mmc4(&document, &high).unwrap_err(), Reason::Similarity);
}

#[test]
fn documents_that_break_a_rule_are_refused_for_it() {
    let one: [&[f64]; 1] = [&[0.5, 0.1]];
    let good = document(&["a", "b"], &one);
    assert!(mmc4(&good, &loose()).is_ok());
    let refused = |document: &Value, rules: Rules| mmc4(document, &rules).unwrap_err();
    assert_eq!(refused(&good, Rules { similarity: 0.6, ..loose() }), Reason::Similarity);
    assert_eq!(refused(&good, Rules { min_image_bytes: 11_000, ..loose() }), Reason::NoValidImage);
    assert_eq!(refused(&good, Rules { min_images: 2, ..loose() }), Reason::FewImages);
    assert_eq!(refused(&good, Rules { single_image_drop: 1.0, ..loose() }), Reason::SingleImage);
    let last = document(&["a", "b", ""], &[&[0.1, 0.1, 0.9]]);
    let cut = Rules { max_tokens: 4, ..loose() };
    assert!(matches!(refused(&last, cut), Reason::ImageLast | Reason::FewImages));
    let mut wrong = good.clone();
    wrong["similarity_matrix"] = json!([[0.5]]);
    assert_eq!(refused(&wrong, loose()), Reason::Json);
    wrong = good.clone();
    wrong["image_info"][0]["image_base64"] = json!("AAA");
    assert_eq!(refused(&wrong, loose()), Reason::Image);
    wrong["image_info"][0]["image_base64"] = json!("AAAA");
    assert_eq!(refused(&wrong, loose()), Reason::Image);
    wrong["image_info"][0]["image_base64"] = Value::Null;
    assert_eq!(refused(&wrong, loose()), Reason::NoValidImage);
}

#[test]
fn half_of_the_documents_with_one_image_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let json = document(&["a", "b"], &[&[0.5, 0.1]]).to_string();
    let names: Vec<String> = (0..200).map(|i| format!("{i}.json")).collect();
    let files: Vec<(&str, &[u8])> =
        names.iter().map(|name| (name.as_str(), json.as_bytes())).collect();
    std::fs::write(folder.path().join("0.tar"), tar(&files)).unwrap();
    let source = Source::Interleaved { shards: vec![folder.path().to_str().unwrap().into()] };
    let rules = Rules { min_image_bytes: 0, ..Rules::interleaved(LabelRules::V2) };
    let options = StreamOptions { epochs: Some(1), ..Default::default() };
    let mut stream = open_with(&source, rules, options);
    let kept = all(&mut stream).len();
    assert!((70..130).contains(&kept), "{kept}");
    assert_eq!(stream.tally().count(Reason::SingleImage), 200 - kept as u64);
}

#[test]
fn chatgpt_sequences_keep_six_images_and_cut_before_the_seventh() {
    let markers: Vec<String> = (0..8).map(|i| format!("text {i} _!_IMAGE{i}_!_ ")).collect();
    let entry = |i: u32| {
        let image = json!({ "base64_image": base64(&png(i, 8, 8)) });
        (format!("_!_IMAGE{i}_!_"), image)
    };
    let map: serde_json::Map<_, _> = (0..8).map(entry).collect();
    let record = json!({ "is_gpt": true, "example": markers.concat(), "image_map": map });
    let sample = mmc4(&record, &loose()).unwrap();
    assert_eq!(sample.images.len(), 6);
    let text: String = (0..6)
        .map(|i| match i {
            0 => "text 0<image>".into(),
            _ => format!("text {i}<|endofchunk|><image>"),
        })
        .collect();
    let tokenizer = tokenizer("llama-tiny");
    let mut expected = tokenizer.encode_prompt(&format!("{text}text 6<|endofchunk|>")).unwrap();
    expected.extend(tokenizer.specials().eos);
    assert_eq!(sample.ids, expected);
}

#[test]
fn pairs_come_from_tars_and_from_lines() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    std::fs::create_dir_all(images.join("sub")).unwrap();
    std::fs::write(images.join("sub/a.png"), png(1, 8, 8)).unwrap();
    std::fs::write(images.join("b.png"), png(2, 8, 8)).unwrap();
    let file = folder.path().join("train.jsonl");
    let lines = "{\"image\": \"sub/a.png\", \"caption\": \" one \", \"pmcid\": 7}\n\n\
                 {\"image\": \"b.png\", \"caption\": \"two\"}";
    std::fs::write(&file, lines).unwrap();
    let options = StreamOptions { epochs: Some(1), shuffle: false, ..Default::default() };
    let found = all(&mut open(&Source::Lines { file, images }, options.clone()));
    assert_eq!(found.iter().map(text).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(*found[1].images[0], pixels(2));
    let picture = png(3, 8, 8);
    let files: Files = &[
        ("dir.x/0.JPG", &picture),
        ("dir.x/0.json", b"{\"caption\": \"from json\"}"),
        ("1.txt", b"text first"),
        ("1.jpeg", &picture),
        ("README", b"no extension"),
        ("1.jpeg", &picture),
        ("1.json", b"{\"text\": \"repeated\"}"),
    ];
    let path = folder.path().join("0.tar");
    std::fs::write(&path, tar(files)).unwrap();
    let source = Source::Pairs { shards: vec![path.to_str().unwrap().into()] };
    let found = all(&mut open(&source, options));
    let texts: Vec<_> = found.iter().map(text).collect();
    assert_eq!(texts, ["from json", "text first", "repeated"]);
    assert_eq!(source.form(), Form::Pairs);
}
