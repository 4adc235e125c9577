//! What a record says: text and encoded pictures in order, before any rule of length.

use super::matching::{assign, nearest};
use super::rules::{Form, Matching, Rules};
use super::shards::{Member, Record, Shards};
use super::tally::{Reason, Refusal};
use super::{Source, base64};
use crate::prompt::Part;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

/// Largest JSON of one document, in bytes.
const MAX_JSON: u64 = 128 << 20;
/// Largest caption, in bytes.
const MAX_CAPTION: u64 = 1 << 20;
/// Most images and sentences of one document.
const MAX_IMAGES: usize = 256;
const MAX_SENTENCES: usize = 4096;

/// The `format` of a segment of a book.
pub const BOOK_FORMAT: &str = "medflamingo-segment-1";

/// A picture as a file.
pub type Picture = Vec<u8>;

/// A document in reading order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Texts are joined as they are; chunks end where they say so.
    pub parts: Vec<Part<Picture>>,
    /// True if the rule for documents with one image holds for it.
    pub is_mmc4: bool,
}

/// A caption of a pair's JSON, or a line of a JSONL file.
#[derive(Deserialize)]
struct Caption {
    image: Option<String>,
    caption: Option<String>,
    text: Option<String>,
}

/// Reads the content of `record` of `source`.
pub(super) fn read(
    source: &Source,
    shards: &Shards,
    record: &Record,
    rules: &Rules,
) -> Result<Content, Refusal> {
    let read = |member: &Member, most: u64| shards.read(record, member, most);
    let content = match source {
        Source::Pairs { .. } => pair(&record.members, read),
        Source::Lines { images, .. } => line(&record.members, images, read),
        Source::Interleaved { .. } => document(&record.members, read, rules),
    };
    content.map_err(|mut e| {
        if !e.detail.starts_with(&shards.place(record)) {
            e.detail = format!("{}: {}", shards.place(record), e.detail);
        }
        e
    })
}

fn refuse<T>(reason: Reason, detail: impl std::fmt::Display) -> Result<T, Refusal> {
    Err(Refusal::new(reason, detail))
}

fn max_image() -> u64 {
    crate::image::Limits::default().max_bytes as u64
}

/// `<image>` caption `<|endofchunk|>`.
fn caption(image: Picture, caption: &str) -> Result<Content, Refusal> {
    let caption = caption.trim();
    if caption.is_empty() {
        return refuse(Reason::EmptyText, "a caption without text");
    }
    let parts = vec![Part::Image(image), Part::Text(caption.into()), Part::EndOfChunk];
    Ok(Content { parts, is_mmc4: false })
}

fn pair(
    members: &[Member],
    read: impl Fn(&Member, u64) -> Result<Vec<u8>, Refusal>,
) -> Result<Content, Refusal> {
    let find = |extensions: &[&str]| {
        extensions.iter().find_map(|e| members.iter().find(|m| m.extension == *e))
    };
    let text = if let Some(member) = find(&["txt"]) {
        let bytes = read(member, MAX_CAPTION)?;
        String::from_utf8(bytes).or_else(|_| refuse(Reason::Text, "a caption not in UTF-8"))?
    } else if let Some(member) = find(&["json"]) {
        let found: Caption = parse(&read(member, MAX_CAPTION)?)?;
        found
            .caption
            .or(found.text)
            .map_or_else(|| refuse(Reason::NoText, "JSON without caption or text"), Ok)?
    } else {
        return refuse(Reason::NoText, "neither .txt nor .json");
    };
    match find(&["jpg", "png", "jpeg"]) {
        Some(member) => caption(read(member, max_image())?, &text),
        None => refuse(Reason::NoImage, "no .jpg, .jpeg or .png"),
    }
}

fn line(
    members: &[Member],
    images: &Path,
    read: impl Fn(&Member, u64) -> Result<Vec<u8>, Refusal>,
) -> Result<Content, Refusal> {
    let Some(member) = members.first() else { return refuse(Reason::Json, "no line") };
    let found: Caption = parse(&read(member, super::shards::MAX_LINE)?)?;
    let (Some(image), Some(text)) = (found.image, found.caption) else {
        return refuse(Reason::Json, "a line without image and caption");
    };
    caption(read_inside(images, &image)?, &text)
}

/// The file `name` of `folder`; names and links that lead out of it are refused.
fn read_inside(folder: &Path, name: &str) -> Result<Picture, Refusal> {
    let is_plain = !name.is_empty()
        && !name.contains(['\\', '\0'])
        && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    if !is_plain {
        return refuse(Reason::Path, format!("{name:?} is no path inside the folder of images"));
    }
    let missing = |e: std::io::Error| Refusal::new(Reason::NoImage, format!("{name:?}: {e}"));
    let root = folder.canonicalize().map_err(missing)?;
    let path = root.join(name).canonicalize().map_err(missing)?;
    if !path.starts_with(&root) {
        return refuse(Reason::Path, format!("{name:?} links out of the folder of images"));
    }
    // A pipe would block for ever when opened.
    let found = path.metadata().map_err(missing)?;
    if !found.is_file() {
        return refuse(Reason::NoImage, format!("{name:?} is no plain file"));
    }
    if found.len() > max_image() {
        return refuse(Reason::TooLarge, format!("{name:?} has {} bytes", found.len()));
    }
    let mut bytes = Vec::with_capacity(found.len() as usize);
    let file = File::open(&path).map_err(missing)?;
    file.take(max_image()).read_to_end(&mut bytes).map_err(missing)?;
    Ok(bytes)
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Refusal> {
    // serde_json's message has a place and a rule, never more than a word of the content.
    serde_json::from_slice(bytes).map_err(|e| {
        let at = format!("line {} column {}", e.line(), e.column());
        Refusal::new(Reason::Json, format!("JSON: {:?} error at {at}", e.classify()))
    })
}

/// Which of the interleaved forms a document has.
#[derive(Deserialize)]
struct Kind {
    format: Option<String>,
    #[serde(default)]
    is_gpt: bool,
}

fn document(
    members: &[Member],
    read: impl Fn(&Member, u64) -> Result<Vec<u8>, Refusal>,
    rules: &Rules,
) -> Result<Content, Refusal> {
    let Some(member) = members.iter().find(|m| m.extension == "json") else {
        return refuse(Reason::NoText, "no .json");
    };
    let bytes = read(member, MAX_JSON)?;
    let kind: Kind = parse(&bytes)?;
    match kind.format.as_deref() {
        Some(BOOK_FORMAT) => {
            let picture = |name: &str| match members.iter().find(|m| m.extension == name) {
                Some(member) => read(member, max_image()),
                None => refuse(Reason::NoImage, format!("the segment has no file .{name:?}")),
            };
            book(parse(&bytes)?, picture, rules)
        }
        Some(_) => refuse(Reason::Json, format!("a format other than {BOOK_FORMAT}")),
        None if kind.is_gpt => sequence(parse(&bytes)?, rules),
        None => mmc4(parse(&bytes)?, rules),
    }
}

/// A segment of a book as `medflamingo-tools books` writes it: its files are beside it.
#[derive(Serialize, Deserialize)]
struct Segment {
    format: String,
    /// Which book it is from: the same for all of its segments.
    book: String,
    parts: Vec<SegmentPart>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SegmentPart {
    Text(String),
    /// The extension of the file of the picture.
    Image(String),
}

/// The files of a segment of `book`, to be written with one key: extension and bytes.
pub fn book_record(book: &str, parts: &[Part<Picture>]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut described = Vec::new();
    for part in parts {
        match part {
            Part::Text(text) => described.push(SegmentPart::Text(text.clone())),
            Part::Image(bytes) => {
                let ending = if bytes.starts_with(b"\x89PNG") { "png" } else { "jpg" };
                let name = format!("{}.{ending}", files.len());
                described.push(SegmentPart::Image(name.clone()));
                files.push((name, bytes.clone()));
            }
            Part::EndOfChunk => {}
        }
    }
    let segment = Segment { format: BOOK_FORMAT.into(), book: book.into(), parts: described };
    let json = serde_json::to_vec(&segment).unwrap_or_default();
    std::iter::once(("json".to_string(), json)).chain(files).collect()
}

fn book(
    segment: Segment,
    picture: impl Fn(&str) -> Result<Picture, Refusal>,
    rules: &Rules,
) -> Result<Content, Refusal> {
    let parts = segment.parts.into_iter().map(|part| match part {
        SegmentPart::Text(text) => Ok(Part::Text(text)),
        SegmentPart::Image(name) => picture(&name).map(Part::Image),
    });
    let parts = parts.take(2 * MAX_SENTENCES).collect::<Result<Vec<_>, _>>()?;
    Ok(Content { parts: end_chunks(parts, rules.max_images), is_mmc4: false })
}

/// Cuts before image `most` + 1, and ends a chunk before each image but the first, and at the end.
fn end_chunks(parts: Vec<Part<Picture>>, most: usize) -> Vec<Part<Picture>> {
    let (mut all, mut images) = (Vec::new(), 0);
    for part in parts {
        if matches!(part, Part::Image(_)) {
            if images == most {
                break;
            }
            if images > 0 {
                all.push(Part::EndOfChunk);
            }
            images += 1;
        }
        all.push(part);
    }
    all.push(Part::EndOfChunk);
    all
}

/// A ChatGPT sequence of MMC4: a text with `_!_IMAGE0_!_` where images are.
#[derive(Deserialize)]
struct Sequence {
    example: String,
    image_map: std::collections::HashMap<String, Encoded>,
}

#[derive(Deserialize)]
struct Encoded {
    base64_image: String,
}

fn sequence(sequence: Sequence, rules: &Rules) -> Result<Content, Refusal> {
    const OPEN: &str = "_!_IMAGE";
    const CLOSE: &str = "_!_";
    let (mut parts, mut rest) = (Vec::new(), sequence.example.as_str());
    while let Some(at) = rest.find(OPEN) {
        let body = &rest[at + OPEN.len()..];
        let Some(end) = body.find(CLOSE) else { break };
        let key = &rest[at..at + OPEN.len() + end + CLOSE.len()];
        let Some(encoded) = sequence.image_map.get(key) else {
            return refuse(Reason::NoImage, "a marker without an image");
        };
        // One space before a marker and one after it belong to the marker.
        let before = &rest[..at];
        parts.push(Part::Text(before.strip_suffix(' ').unwrap_or(before).into()));
        parts.push(Part::Image(unpack(&encoded.base64_image)?));
        rest = &rest[at + key.len()..];
        rest = rest.strip_prefix(' ').unwrap_or(rest);
        if parts.len() > 2 * MAX_IMAGES {
            return refuse(Reason::TooLarge, format!("more than {MAX_IMAGES} images"));
        }
    }
    parts.push(Part::Text(rest.into()));
    if parts.len() == 1 {
        return refuse(Reason::NoValidImage, "a sequence without images");
    }
    Ok(Content { parts: end_chunks(parts, rules.max_images), is_mmc4: true })
}

/// A document of MMC4 with the images in it, as `convert_mmc4_to_wds` writes it.
#[derive(Deserialize)]
struct Mmc4 {
    text_list: Vec<String>,
    #[serde(default)]
    similarity_matrix: Vec<Vec<f64>>,
    image_info: Vec<Info>,
}

#[derive(Deserialize)]
struct Info {
    image_base64: Option<String>,
    matched_text_index: Option<usize>,
    matched_sim: Option<f64>,
}

fn unpack(text: &str) -> Result<Picture, Refusal> {
    if text.len() as u64 / 4 * 3 > max_image() {
        return refuse(Reason::TooLarge, format!("{} characters of base64", text.len()));
    }
    base64::decode(text).map_or_else(|| refuse(Reason::Image, "an image not in base64"), Ok)
}

/// An image that takes part: its sentence, how similar they are, and its file.
struct Candidate {
    sentence: usize,
    similarity: f64,
    image: Picture,
}

fn mmc4(document: Mmc4, rules: &Rules) -> Result<Content, Refusal> {
    let sentences = document.text_list.len();
    if sentences > MAX_SENTENCES || document.image_info.len() > MAX_IMAGES {
        let detail = format!("{sentences} sentences, {} images", document.image_info.len());
        return refuse(Reason::TooLarge, detail);
    }
    let mut found = candidates(&document, rules)?;
    found.retain(|c| c.similarity >= rules.similarity);
    if found.is_empty() {
        return refuse(Reason::Similarity, "no image is as similar to a sentence as it must be");
    }
    found.truncate(rules.max_images);
    let mut markers = vec![0usize; sentences];
    found.iter().for_each(|c| markers[c.sentence] += 1);
    if !rules.keeps_image_order {
        found.sort_by_key(|c| c.sentence);
    }
    let mut images = found.into_iter().map(|c| c.image);
    let (mut parts, mut text) = (Vec::new(), String::new());
    let mut is_after_image = false;
    for (i, (sentence, count)) in document.text_list.iter().zip(markers).enumerate() {
        for image in images.by_ref().take(count) {
            flush(&mut parts, &mut text, is_after_image);
            if parts.iter().any(|part| matches!(part, Part::Image(_))) {
                parts.push(Part::EndOfChunk);
            }
            parts.push(Part::Image(image));
            is_after_image = true;
        }
        if count == 0 && i > 0 {
            text.push(' ');
        }
        text.push_str(sentence);
    }
    flush(&mut parts, &mut text, is_after_image);
    parts.push(Part::EndOfChunk);
    Ok(Content { parts, is_mmc4: true })
}

/// Appends `text`, less the one space after a marker that upstream takes away.
fn flush(parts: &mut Vec<Part<Picture>>, text: &mut String, is_after_image: bool) {
    let text = std::mem::take(text);
    let text = text.strip_prefix(' ').filter(|_| is_after_image).unwrap_or(&text);
    if !text.is_empty() {
        parts.push(Part::Text(text.into()));
    }
}

/// Every valid image with its sentence, in the order of the images.
fn candidates(document: &Mmc4, rules: &Rules) -> Result<Vec<Candidate>, Refusal> {
    let mut valid = Vec::new();
    for (i, info) in document.image_info.iter().enumerate() {
        let Some(text) = &info.image_base64 else { continue };
        let image = unpack(text)?;
        if image.len() >= rules.min_image_bytes {
            valid.push((i, image));
        }
    }
    if valid.is_empty() {
        return refuse(Reason::NoValidImage, "no image is there and large enough");
    }
    let pairs = match rules.matching {
        Matching::Recorded => recorded(document, &valid),
        Matching::Assignment => assign(&similarities(document, &valid)?),
        Matching::Nearest => nearest(&similarities(document, &valid)?),
    };
    let similarity = |image: usize, sentence: usize| match rules.matching {
        Matching::Recorded => document.image_info[image].matched_sim.unwrap_or(f64::MIN),
        _ => document.similarity_matrix[image][sentence],
    };
    let mut pairs = pairs.into_iter().peekable();
    let mut found = Vec::new();
    for (row, (i, image)) in valid.into_iter().enumerate() {
        if let Some((_, sentence)) = pairs.next_if(|&(r, _)| r == row) {
            found.push(Candidate { sentence, similarity: similarity(i, sentence), image });
        }
    }
    Ok(found)
}

/// The sentences that the record names: the first image of each.
fn recorded(document: &Mmc4, valid: &[(usize, Picture)]) -> Vec<(usize, usize)> {
    let mut is_taken = vec![false; document.text_list.len()];
    let named = valid.iter().enumerate().filter_map(|(row, (i, _))| {
        let sentence = document.image_info[*i].matched_text_index?;
        let taken = is_taken.get_mut(sentence)?;
        (!std::mem::replace(taken, true)).then_some((row, sentence))
    });
    named.collect()
}

/// The rows of the valid images.
fn similarities(document: &Mmc4, valid: &[(usize, Picture)]) -> Result<Vec<Vec<f64>>, Refusal> {
    let is_square = document.similarity_matrix.len() == document.image_info.len()
        && document.similarity_matrix.iter().all(|row| row.len() == document.text_list.len());
    if !is_square || document.similarity_matrix.iter().flatten().any(|s| !s.is_finite()) {
        let detail = "a similarity_matrix that is not images by sentences";
        return refuse(Reason::Json, detail);
    }
    Ok(valid.iter().map(|(i, _)| document.similarity_matrix[*i].clone()).collect())
}

impl Source {
    /// The form of its samples.
    pub fn form(&self) -> Form {
        match self {
            Source::Pairs { .. } | Source::Lines { .. } => Form::Pairs,
            Source::Interleaved { .. } => Form::Interleaved,
        }
    }
}
