//! Pages as paragraphs and pictures in reading order.
//!
//! Tags are read as they come, without a tree: nothing nests here, so nothing can nest too deep.

use html5gum::{DefaultEmitter, StartTag, Token, Tokenizer};

/// Most blocks of one page.
const MAX_BLOCKS: usize = 1 << 20;
/// Elements whose content is not part of the text.
const NO_TEXT: [&str; 21] = [
    "script", "style", "noscript", "template", "title", "svg", "math", "iframe", "object", "audio",
    "video", "canvas", "form", "button", "select", "textarea", "nav", "dialog", "map", "rp", "rt",
];
/// Elements that stand on lines of their own.
const BLOCKS: [&str; 41] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "caption",
    "center",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "html",
    "li",
    "main",
    "ol",
    "p",
    "pre",
    "section",
    "summary",
    "table",
    "tbody",
    "tfoot",
    "thead",
    "tr",
    "ul",
    "head",
    "legend",
    "hgroup",
];
/// Elements without an end tag.
const VOID: [&str; 13] = [
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track",
    "wbr",
];
/// What `epub:type` and `role` call parts that are not for reading.
const APPARATUS: [&str; 21] = [
    "toc",
    "landmarks",
    "loi",
    "lot",
    "index",
    "bibliography",
    "copyright-page",
    "colophon",
    "footnotes",
    "endnotes",
    "rearnotes",
    "footnote",
    "endnote",
    "pagebreak",
    "titlepage",
    "halftitlepage",
    "dedication",
    "acknowledgments",
    "navigation",
    "banner",
    "contentinfo",
];
/// Words of `class` and `id` that mean the same.
const APPARATUS_WORDS: [&str; 13] = [
    "toc",
    "navbar",
    "nav",
    "navigation",
    "breadcrumb",
    "breadcrumbs",
    "footer",
    "copyright",
    "references",
    "bibliography",
    "footnotes",
    "endnotes",
    "pagination",
];
/// Elements that are left out for their class: those whose end tags are not optional.
const CONTAINERS: [&str; 10] =
    ["div", "section", "article", "aside", "ol", "ul", "dl", "table", "body", "header"];

/// A paragraph or a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Text without breaks; `level` is 1 to 6 for headings, else 0.
    Text { text: String, level: u8 },
    /// The address of a picture.
    Image(String),
}

/// The start of an element.
pub(super) struct Tag {
    pub name: String,
    attributes: Vec<(String, String)>,
    is_self_closing: bool,
}

impl Tag {
    fn new(tag: StartTag<()>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let attributes = tag.attributes.iter().map(|(k, v)| (text(k), text(v))).collect();
        Tag { name: text(&tag.name), attributes, is_self_closing: tag.self_closing }
    }

    /// The value of an attribute.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// True for parts that are not for reading.
    fn is_apparatus(&self, is_inside: bool) -> bool {
        let name = self.name.as_str();
        if NO_TEXT.contains(&name) || (!is_inside && ["header", "footer"].contains(&name)) {
            return true;
        }
        let named = |attribute, list: &[&str], ends: fn(char) -> bool| {
            let value = self.get(attribute).unwrap_or_default().to_ascii_lowercase();
            value.split(ends).any(|word| list.contains(&word.trim_start_matches("doc-")))
        };
        let is_end = |c: char| c.is_whitespace();
        let is_word_end = |c: char| !c.is_ascii_alphanumeric();
        named("epub:type", &APPARATUS, is_end)
            || named("role", &APPARATUS, is_end)
            || (CONTAINERS.contains(&name)
                && (named("class", &APPARATUS_WORDS, is_word_end)
                    || named("id", &APPARATUS_WORDS, is_word_end)))
    }
}

/// The start tags of an XML file: enough for the lists of an EPUB.
pub(super) fn tags(bytes: &[u8]) -> Vec<Tag> {
    let text = String::from_utf8_lossy(bytes);
    let tokens = Tokenizer::new(&*text).map(|Ok(token)| token);
    let start = |token| if let Token::StartTag(tag) = token { Some(Tag::new(tag)) } else { None };
    tokens.filter_map(start).collect()
}

/// The blocks of a page, and the number of characters in parts that are not for reading.
///
/// # Errors
/// An encoding that is none of UTF-8 and Windows-1252, or too many blocks.
pub(super) fn blocks(bytes: &[u8], page: &str) -> Result<(Vec<Block>, u64), &'static str> {
    let text = decode(bytes)?;
    let is_xml = page.ends_with(".xhtml") || is_xml(&text);
    let mut emitter = DefaultEmitter::default();
    // In XML `<script/>` is whole; in HTML it would swallow the rest of the page.
    emitter.naively_switch_states(!is_xml);
    let mut reader = Reader { is_xml, ..Reader::default() };
    for Ok(token) in Tokenizer::new_with_emitter(&*text, emitter) {
        match token {
            Token::StartTag(tag) => reader.start(&Tag::new(tag)),
            Token::EndTag(tag) => reader.end(&String::from_utf8_lossy(&tag.name)),
            Token::String(text) => reader.text(&String::from_utf8_lossy(&text)),
            _ => {}
        }
        if reader.blocks.len() > MAX_BLOCKS {
            return Err("too many paragraphs");
        }
    }
    reader.flush();
    Ok((reader.blocks, reader.dropped))
}

/// True for what declares itself XML, as the pages of an EPUB do whatever their names end with.
fn is_xml(text: &str) -> bool {
    let start: String = text.trim_start().chars().take(1000).collect();
    start.starts_with("<?xml") || start.contains("xmlns=\"http://www.w3.org/1999/xhtml\"")
}

#[derive(Default)]
struct Reader {
    is_xml: bool,
    blocks: Vec<Block>,
    text: String,
    level: u8,
    /// The element that is left out, and how many of its name are open in it.
    skipped: Option<(String, usize)>,
    /// Open articles and sections: headers inside of them are titles.
    sections: usize,
    dropped: u64,
}

impl Reader {
    fn start(&mut self, tag: &Tag) {
        let name = tag.name.as_str();
        let is_whole = VOID.contains(&name) || (self.is_xml && tag.is_self_closing);
        if let Some((skipped, depth)) = &mut self.skipped {
            *depth += usize::from(skipped == name && !is_whole);
            return;
        }
        if tag.is_apparatus(self.sections > 0) {
            self.flush_at(name);
            if !is_whole {
                self.skipped = Some((name.to_string(), 1));
            }
            return;
        }
        self.flush_at(name);
        match name {
            "img" => {
                self.flush();
                let source = tag.get("src").unwrap_or_default().to_string();
                self.blocks.push(Block::Image(source));
            }
            "br" | "td" | "th" | "wbr" => self.text.push(' '),
            "article" | "section" if !is_whole => self.sections += 1,
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => self.level = name.as_bytes()[1] - b'0',
            _ => {}
        }
    }

    fn end(&mut self, name: &str) {
        if let Some((skipped, depth)) = &mut self.skipped {
            *depth -= usize::from(skipped == name);
            if *depth == 0 {
                self.skipped = None;
            }
            return;
        }
        self.flush_at(name);
        if ["article", "section"].contains(&name) {
            self.sections = self.sections.saturating_sub(1);
        }
    }

    fn text(&mut self, text: &str) {
        match self.skipped {
            Some(_) => self.dropped += text.split_whitespace().map(count).sum::<u64>(),
            None => self.text.push_str(text),
        }
    }

    fn flush_at(&mut self, name: &str) {
        if BLOCKS.contains(&name) {
            self.flush();
            self.level = 0;
        }
    }

    /// Ends the paragraph.
    fn flush(&mut self) {
        let text = collapse(&std::mem::take(&mut self.text));
        if !text.is_empty() {
            self.blocks.push(Block::Text { text, level: self.level });
        }
    }
}

fn count(text: &str) -> u64 {
    text.chars().count() as u64
}

/// One space for any white space; no characters that are not seen.
fn collapse(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let is_unseen = c.is_control()
            || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_whitespace() {
            if !out.ends_with(' ') {
                out.push(' ');
            }
        } else if !is_unseen {
            out.push(c);
        }
    }
    out.trim().to_string()
}

/// UTF-8, or what browsers take other bytes for.
fn decode(bytes: &[u8]) -> Result<String, &'static str> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("unknown encoding");
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.contains(&0) {
        return Err("unknown encoding");
    }
    Ok(match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().map(|&b| windows_1252(b)).collect(),
    })
}

fn windows_1252(byte: u8) -> char {
    const UPPER: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9f => UPPER[usize::from(byte) - 0x80],
        _ => char::from(byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XHTML: &str = "<html xmlns=\"http://www.w3.org/1999/xhtml\">";

    fn read(html: &str, page: &str) -> (Vec<String>, u64) {
        let (blocks, dropped) = blocks(html.as_bytes(), page).unwrap();
        let show = |block: Block| match block {
            Block::Text { text, level: 0 } => text,
            Block::Text { text, level } => format!("{level}: {text}"),
            Block::Image(source) => format!("[{source}]"),
        };
        (blocks.into_iter().map(show).collect(), dropped)
    }

    #[test]
    fn paragraphs_and_pictures_come_in_reading_order() {
        let html = "<html><head><title>T</title></head><body><h2>A <b>head</b></h2>\n<p>One&nbsp;
            &amp; <i>two</i><img src='a.png' alt=x>three<p>four<br>five</p><table><tr><td>c1<td>c2
            <tr><td>c3</table><ul><li>x<li>y</ul>&lt;image&gt; end";
        let found = read(html, "a.html").0;
        let expected = [
            "2: A head",
            "One & two",
            "[a.png]",
            "three",
            "four five",
            "c1 c2",
            "c3",
            "x",
            "y",
            "<image> end",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn parts_that_are_not_for_reading_are_left_out_and_counted() {
        let html = "<header>site</header><nav>menu <nav>in</nav> menu</nav><main><p>text
            <script>if (a<b) { document.write('</p><p>no') }</script>goes on</p>
            <section><header><h1>Title</h1></header><div class='toc-list'>1 <div>2</div> 3</div>
            <ol class=references><li>Smith<li>Jones</ol><p class=toc>kept</p>
            <section epub:type='footnotes'>note</section></section><footer>foot</footer>";
        let (found, dropped) = read(html, "a.html");
        assert_eq!(found, ["text goes on", "1: Title", "kept"]);
        assert!(dropped > 40, "{dropped}");
        let xml = "<?xml version='1.0'?><html><head><script src='x'/><title/></head><body><p>a</p>
            <span epub:type='pagebreak' title='7'/><nav epub:type='toc'>x</nav><p>b</p></body>";
        assert_eq!(read(xml, "a.html").0, ["a", "b"]);
        let named = xml.replace("<?xml version='1.0'?><html>", XHTML);
        assert_eq!(read(&named, "a.html").0, ["a", "b"]);
    }

    #[test]
    fn unseen_characters_go_and_other_encodings_are_read_or_refused() {
        assert_eq!(read("a\u{ad}b\u{200b}c\u{202e}d\u{7}\r\n e", "a.html").0, ["abcd e"]);
        let (found, _) = blocks(b"<p>caf\xe9 \x93x\x94", "a.html").unwrap();
        assert_eq!(found, [Block::Text { text: "café “x”".into(), level: 0 }]);
        assert_eq!(blocks(b"\xff\xfe<\0p\0", "a.html"), Err("unknown encoding"));
    }

    #[test]
    fn any_bytes_are_read_to_the_end() {
        let pieces = ["<", "<p", "</", ">", "<!--", "&#x110000;", "&#0;", "<![CDATA[", "\"", "=a"];
        let mut seed = 1u64;
        for _ in 0..2000 {
            let mut html = String::new();
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                html.push_str(pieces[(seed >> 33) as usize % pieces.len()]);
            }
            blocks(html.as_bytes(), "a.html").unwrap();
            blocks(html.as_bytes(), "a.xhtml").unwrap();
        }
        let deep = "<div>".repeat(200_000) + "x" + &"</div>".repeat(200_000);
        assert_eq!(read(&deep, "a.html").0, ["x"]);
    }
}
