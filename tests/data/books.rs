//! Textbooks made here: HTML, EPUB, and books that mean harm.

use super::*;
use flate2::{Compression, write::DeflateEncoder};
use medflamingo::books::{BookReport, Options, Report, make};
use medflamingo::train::data::tar::Walk;
use std::io::{Cursor, Write};

/// A zip archive; `is_packed` deflates. Sizes can be made to lie with `declare`.
fn zip(files: &[(&str, Vec<u8>)], is_packed: bool, declare: Option<u32>) -> Vec<u8> {
    let (mut out, mut central) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let mut hash = flate2::Crc::new();
        hash.update(content);
        let (packed, method) = match is_packed && *name != "mimetype" {
            true => {
                let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(content).unwrap();
                (encoder.finish().unwrap(), 8u16)
            }
            false => (content.clone(), 0),
        };
        let size = declare.filter(|_| method == 8).unwrap_or(content.len() as u32);
        let offset = out.len() as u32;
        let mut fields = Vec::new();
        fields.extend([20u16, 0, method, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
        let numbers = [hash.sum(), packed.len() as u32, size];
        fields.extend(numbers.iter().flat_map(|v| v.to_le_bytes()));
        fields.extend([name.len() as u16, 0].iter().flat_map(|v| v.to_le_bytes()));
        out.extend(0x0403_4b50u32.to_le_bytes());
        out.extend(&fields);
        out.extend(name.as_bytes());
        out.extend(packed);
        central.extend(0x0201_4b50u32.to_le_bytes());
        central.extend(20u16.to_le_bytes());
        central.extend(&fields);
        central.extend([0u8; 10]);
        central.extend(offset.to_le_bytes());
        central.extend(name.as_bytes());
    }
    let (count, start) = (files.len() as u16, out.len() as u32);
    let size = central.len() as u32;
    out.extend(central);
    out.extend(0x0605_4b50u32.to_le_bytes());
    out.extend([0, 0, count, count].iter().flat_map(|v: &u16| v.to_le_bytes()));
    out.extend(size.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

const CONTAINER: &str = "<container><rootfiles><rootfile full-path='OEBPS/book.opf'/>\
    </rootfiles></container>";
const PACKAGE: &str = "<?xml version='1.0'?><opf:package><opf:manifest>\
    <opf:item id='n' href='nav.xhtml' properties='nav'/><opf:item id='b' href='text/b.xhtml'/>\
    <opf:item id='a' href='text/a%20a.xhtml'/></opf:manifest><opf:spine>\
    <opf:itemref idref='n'/><opf:itemref idref='a'/><opf:itemref idref='b'/>\
    <opf:itemref idref='gone'/></opf:spine></opf:package>";

fn epub_files() -> Vec<(&'static str, Vec<u8>)> {
    let page = |body: &str| {
        format!("<?xml version='1.0'?><html><head><title/></head><body>{body}</body></html>")
            .into_bytes()
    };
    vec![
        ("mimetype", b"application/epub+zip".to_vec()),
        ("META-INF/container.xml", CONTAINER.into()),
        ("OEBPS/book.opf", PACKAGE.into()),
        ("OEBPS/nav.xhtml", page("<p>Contents</p>")),
        (
            "OEBPS/text/a a.xhtml",
            page(
                "<h1>The chest</h1><p>Look here.</p><figure><img src='../images/one.png'/>\
                  <figcaption>A nodule.</figcaption></figure>",
            ),
        ),
        ("OEBPS/text/b.xhtml", page("<p>Next page.</p><img src='../images/two.png'/>")),
        ("OEBPS/images/one.png", png(11, 70, 70)),
        ("OEBPS/images/two.png", png(12, 80, 70)),
    ]
}

fn run(files: &[(&str, Vec<u8>)], change: impl FnOnce(&mut Options)) -> (Report, Vec<Vec<String>>) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    for (name, bytes) in files {
        let path = input.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let output = folder.path().join("out");
    let mut options = Options { validation: 0.0, ..Options::new(input, output.clone()) };
    change(&mut options);
    let report = make(&options, &|_, _| {}).unwrap();
    let json = std::fs::read(output.join("report.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["train"]["segments"], report.train.segments);
    assert!(std::fs::read_to_string(output.join("report.txt")).unwrap().contains("train: "));
    let read = |name: &String| segments(&std::fs::read(output.join(name)).unwrap());
    let shards = report.shards.iter().map(read).collect();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else was made");
    (report, shards)
}

/// The segments of a shard as text; `[]` is an image that is there.
fn segments(shard: &[u8]) -> Vec<String> {
    let mut walk = Walk::new(Cursor::new(shard), 0, shard.len() as u64).unwrap();
    let mut files = Vec::new();
    while let Some(entry) = walk.next_file().unwrap() {
        let bytes = &shard[entry.data.start as usize..entry.data.end as usize];
        files.push((entry.name, bytes));
    }
    let json = files.iter().filter(|(name, _)| name.ends_with(".json"));
    let show = |(name, bytes): &(String, &[u8])| {
        let value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        let part = |part: &serde_json::Value| match part["text"].as_str() {
            Some(text) => text.to_string(),
            None => {
                let ending = part["image"].as_str().unwrap();
                let image = name.replace("json", ending);
                assert!(files.iter().any(|(name, bytes)| *name == image && !bytes.is_empty()));
                "[]".into()
            }
        };
        value["parts"].as_array().unwrap().iter().map(part).collect::<String>()
    };
    json.map(show).collect()
}

fn page(body: &str) -> Vec<u8> {
    format!("<html><body>{body}</body></html>").into_bytes()
}

#[test]
fn an_epub_is_read_in_the_order_of_its_spine() {
    for is_packed in [false, true] {
        let book = zip(&epub_files(), is_packed, None);
        let (report, shards) = run(&[("a/book.epub", book)], |_| {});
        assert_eq!(report.books[0].error, None);
        let expected = ["The chest\nLook here.[]A nodule.", "Next page.[]"];
        assert_eq!(shards, [expected]);
        assert_eq!(report.books[0].name, "a/book.epub");
        assert_eq!(report.train.dropped_pages.get("table of contents"), 1);
        assert_eq!(report.train.dropped_pages.get("missing file"), 1);
    }
}

#[test]
fn what_is_left_out_is_counted_by_reason() {
    let long = "Shadows of the ribs cross the lungs and must not be taken for lesions of the lungs \
                by readers who are in a hurry to be done with the many films of a long day at work";
    let body = format!(
        "<header>Site</header><h2>One</h2><p>{long}.</p><img src=a.png><p>{long}!</p>\
         <p>{long} now</p><img src=a.png><img src=same.png><img src=tiny.png><img src=blank.png>\
         <img src=gone.png><img src=http://x/y.png><img src=../../../etc/passwd>\
         <img src=page.gif><img src=cut.png><p>Page 7</p><p>All rights reserved.</p>\
         <h2>References</h2><p>Smith</p><h2>Two</h2><p>No image here.</p>"
    );
    let picture = png(5, 100, 90);
    let mut flat = Vec::new();
    let mut encoder = png::Encoder::new(&mut flat, 80, 80);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&[9; 6400]).unwrap();
    // The same pixels in other bytes: a chunk of text is in front of them.
    let mut same = picture[..33].to_vec();
    same.extend([0, 0, 0, 3]);
    same.extend(b"tEXta\0b");
    let mut hash = flate2::Crc::new();
    hash.update(b"tEXta\0b");
    same.extend(hash.sum().to_be_bytes());
    same.extend(&picture[33..]);
    let files = [
        ("book/1.html", page(&body)),
        ("book/a.png", picture.clone()),
        ("book/same.png", same),
        ("book/tiny.png", png(6, 63, 200)),
        ("book/blank.png", flat),
        ("book/page.gif", b"GIF89a".to_vec()),
        ("book/cut.png", picture[..200].to_vec()),
    ];
    let (report, shards) = run(&files, |_| {});
    assert_eq!(shards, [[format!("One\n{long}.[]")]]);
    let BookReport { dropped_images, dropped_paragraphs, characters, .. } = &report.train;
    for (reason, n) in [
        ("duplicate", 1),
        ("near-duplicate", 1),
        ("tiny", 1),
        ("blank", 1),
        ("missing file", 1),
        ("external address", 1),
        ("outside of the book", 1),
        ("neither JPEG nor PNG", 1),
        ("damaged or too large", 1),
    ] {
        assert_eq!(dropped_images.get(reason), n, "{reason}: {dropped_images}");
    }
    for (reason, n) in [
        ("duplicate", 1),
        ("near-duplicate", 1),
        ("page number or no letters", 1),
        ("copyright notice", 1),
        ("references and lists", 2),
    ] {
        assert_eq!(dropped_paragraphs.get(reason), n, "{reason}: {dropped_paragraphs}");
    }
    assert_eq!(characters.get("boilerplate"), 4);
    assert_eq!(dropped_paragraphs.get("segment without an image"), 1);
}

#[test]
fn books_not_segments_are_divided_and_the_same_way_each_time() {
    let picture = |i: u32| format!("data:image/png;base64,{}", base64(&png(i + 40, 70, 70)));
    let names: Vec<String> = (0..10).map(|i| format!("{i}.html")).collect();
    let files: Vec<(&str, Vec<u8>)> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let (a, b) = (picture(2 * i as u32), picture(2 * i as u32 + 1));
            let body = format!("<h1>t</h1><p>{i}<img src='{a}'>");
            (name.as_str(), page(&format!("{body}<h1>u</h1>v{i}<img src='{b}'>")))
        })
        .collect();
    let (first, shards) = run(&files, |o| o.validation = 0.2);
    assert_eq!(first.books.iter().filter(|b| b.is_validation).count(), 2);
    assert_eq!((first.train.segments, first.validation.segments), (16, 4));
    assert_eq!(first.shards, ["train-00000.tar", "validation-00000.tar"]);
    assert_eq!(shards.iter().map(Vec::len).collect::<Vec<_>>(), [16, 4]);
    assert_eq!(run(&files, |o| o.validation = 0.2).0, first);
    let (other, _) = run(&files, |o| (o.validation, o.seed) = (0.2, 3));
    assert_ne!(other, first);
    let (many, shards) = run(&files, |o| o.max_shard = 1);
    assert_eq!((many.shards.len(), shards.concat().len()), (20, 20));
    assert_eq!(run(&files, |o| o.validation = 0.01).0.validation.segments, 2);
}

#[test]
fn segments_of_books_train() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    std::fs::create_dir(&input).unwrap();
    std::fs::write(input.join("b.epub"), zip(&epub_files(), true, None)).unwrap();
    let output = folder.path().join("out");
    let tokenizer = tokenizer("llama-tiny");
    let options = Options {
        tokenizer: Some(tokenizer.clone()),
        validation: 0.0,
        ..Options::new(input, output.clone())
    };
    make(&options, &|_, _| {}).unwrap();
    let source = Source::Interleaved { shards: vec![output.to_str().unwrap().into()] };
    let options = StreamOptions { epochs: Some(1), shuffle: false, ..Default::default() };
    let found = all(&mut open(&source, options));
    let texts =
        ["The chest\nLook here.<image>A nodule.<|endofchunk|>", "Next page.<image><|endofchunk|>"];
    assert_eq!(found.len(), 2);
    for (sample, text) in found.iter().zip(texts) {
        let mut ids = tokenizer.encode_prompt(text).unwrap();
        ids.extend(tokenizer.specials().eos);
        assert_eq!((&sample.ids, sample.images.len()), (&ids, 1));
    }
}

#[test]
fn books_that_mean_harm_are_refused_and_the_others_kept() {
    let good = || ("good.epub", zip(&epub_files(), true, None));
    let error = |bytes: Vec<u8>| {
        let (report, shards) = run(&[("bad.epub", bytes), good()], |_| {});
        assert_eq!(shards.concat().len(), 2);
        report.books[0].error.clone().unwrap_or_default()
    };
    let whole = zip(&epub_files(), true, None);
    assert!(error(whole[..whole.len() - 9].to_vec()).contains("end record"));
    assert!(error(Vec::new()).contains("end record"));
    let mut twice = epub_files();
    twice.push(("mimetype", b"again".to_vec()));
    assert!(error(zip(&twice, true, None)).contains("twice"));
    // Sizes that lie, and a bomb of zeros.
    assert!(error(zip(&epub_files(), true, Some(10))).contains("damaged archive member"));
    assert!(error(zip(&epub_files(), true, Some(u32::MAX - 1))).contains("too large"));
    let mut bomb = epub_files();
    bomb[2].1 = vec![b' '; 15 << 20];
    assert!(error(zip(&bomb, true, None)).contains("too large"));
    let mut escape = epub_files();
    escape[1].1 = CONTAINER.replace("OEBPS/", "../../").into();
    assert!(error(zip(&escape, true, None)).contains("rootfile"));
    let mut flipped = whole.clone();
    let at = whole.windows(4).position(|w| w == b"book").unwrap() + 30;
    flipped[at] ^= 0xff;
    assert!(!error(flipped).is_empty());
}

/// Links lead anywhere; they are not followed.
#[test]
fn links_in_a_folder_are_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    std::fs::create_dir_all(input.join("book")).unwrap();
    let secret = folder.path().join("secret.png");
    std::fs::write(&secret, png(9, 90, 90)).unwrap();
    std::os::unix::fs::symlink(&secret, input.join("book/link.png")).unwrap();
    std::os::unix::fs::symlink(folder.path(), input.join("book/up")).unwrap();
    std::fs::write(input.join("book/1.html"), page("text<img src=link.png>")).unwrap();
    let options = Options::new(input.clone(), output.clone());
    let report = make(&options, &|_, _| {}).unwrap();
    assert_eq!(report.train.dropped_images.get("outside of the book"), 1);
    assert_eq!((report.books.len(), report.train.segments), (1, 0));
    let error = make(&options, &|_, _| {}).unwrap_err().to_string();
    assert!(error.contains("does not exist yet"), "{error}");
    let empty = Options::new(folder.path().join("out"), folder.path().join("other"));
    let error = make(&empty, &|_, _| {}).unwrap_err().to_string();
    assert!(error.contains("EPUB, HTML or XHTML"), "{error}");
    let wrong = Options { max_tokens: 3, ..options };
    assert!(make(&wrong, &|_, _| {}).unwrap_err().to_string().starts_with("max tokens"));
}
