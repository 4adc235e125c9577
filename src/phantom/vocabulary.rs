//! The tokenizer of phantom texts: whole words, syllables of made-up words, and every byte.
//!
//! A `tokenizer.json` of the byte-level form. A word of the closed vocabulary is one token, with
//! its space; a made-up word is two, its syllables; anything else is spelled in bytes.

use super::words::{FIRST, SECOND};
use crate::text::file::TokenizerFile;
use crate::text::{Names, Prepared, Tokenizer, add_flamingo_specials};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The id that every page starts with.
pub const START: u32 = 1;
/// Number of ids; the last three are Flamingo's.
pub const TOKENS: usize = 406;

/// Words that begin a text.
const OPENING: &str = "A Follow In Note Question This";
/// Words after a space.
const WORDS: &str = "A Answer How In Is It No Note Question Say The There This What Which a and \
    answer are as before body boxed box bright circle count cut dark dotted edge even examples fan \
    filled film ground half halves has hollow in inside is it kind large last left level line \
    lined lineless lower many margin mark marks names new no not of on one open or outline paired \
    part picture points question ragged right round same seen shows side size slice small smooth \
    solid spikes sweep texture the there this three two upper why with word words yes";

/// The special tokens before all others.
const SPECIALS: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// `tokenizer.json` and `tokenizer_config.json`.
///
/// # Errors
/// Never, as long as the words are as they are here.
pub fn tokenizer_files() -> Result<Vec<(&'static str, Vec<u8>)>> {
    prepared()?.files()
}

/// The tokenizer, ready for use and for being written.
///
/// # Errors
/// As [`tokenizer_files`].
pub fn prepared() -> Result<Prepared> {
    let mut tokens: Vec<String> = SPECIALS.map(String::from).to_vec();
    tokens.extend((0..=255).map(alphabet));
    let mut merges = Vec::new();
    for syllable in SECOND {
        merges.push((syllable[..1].to_string(), syllable[1..].to_string()));
        tokens.push(syllable.into());
    }
    let consonants: BTreeSet<&str> = FIRST.iter().map(|s| &s[..1]).collect();
    for consonant in consonants {
        merges.push(("Ġ".into(), consonant.into()));
        tokens.push(format!("Ġ{consonant}"));
    }
    for syllable in FIRST {
        merges.push((format!("Ġ{}", &syllable[..1]), syllable[1..].to_string()));
        tokens.push(format!("Ġ{syllable}"));
    }
    // "A" is a byte already.
    tokens.extend(OPENING.split(' ').filter(|w| w.len() > 1).map(String::from));
    tokens.extend(WORDS.split_whitespace().map(|w| format!("Ġ{w}")));
    let mut file = file(&tokens, &merges)?;
    let named = |name: &str| Some(name.to_string());
    let mut names = Names {
        unk: named(SPECIALS[0]),
        bos: named(SPECIALS[1]),
        eos: named(SPECIALS[2]),
        ..Names::default()
    };
    let base_len = tokens.len();
    let specials = add_flamingo_specials(&mut file, &mut names)?;
    let tokenizer = Tokenizer::new(file.clone(), &names)?;
    let len = tokenizer.vocab_size();
    Ok(Prepared {
        file,
        names,
        tokenizer,
        specials,
        leading: Some(START),
        base_len,
        len,
        reason: "<s> starts every page",
        source: "phantom vocabulary",
    })
}

fn file(tokens: &[String], merges: &[(String, String)]) -> Result<TokenizerFile> {
    let vocab: Map<String, Value> = tokens.iter().cloned().zip((0..).map(|i| json!(i))).collect();
    if vocab.len() != tokens.len() {
        return Err(Error::invalid("phantom vocabulary", "each token once", "one twice"));
    }
    let special = |(id, content): (usize, &&str)| {
        json!({"id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    };
    let text = |id, kind| json!({"Sequence": {"id": id, "type_id": kind}});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true});
    let merges: Vec<_> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let file = json!({
        "version": "1.0",
        "added_tokens": SPECIALS.iter().enumerate().map(special).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, text("A", 0)],
            "pair": [text("A", 0), text("B", 1)],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [START], "tokens": ["<s>"]}},
        },
        "decoder": bytes,
        // A whole word is looked up before anything is merged.
        "model": {"type": "BPE", "ignore_merges": true, "vocab": vocab, "merges": merges},
    });
    TokenizerFile::parse(file.to_string().as_bytes())
}

/// GPT-2's character for a byte: itself if it is visible, else one from U+0100 on.
fn alphabet(byte: u8) -> String {
    let is_visible = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let hidden = (0..byte).filter(|b| !is_visible(*b)).count() as u32;
    let code = if is_visible(byte) { u32::from(byte) } else { 0x100 + hidden };
    char::from_u32(code).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Pages, Split};
    use super::*;

    #[test]
    fn every_page_is_words_and_every_word_is_in_some_page() {
        let prepared = prepared().unwrap();
        let tokenizer = &prepared.tokenizer;
        assert_eq!((prepared.len, tokenizer.leading()), (TOKENS, Some(START)));
        let mut used = BTreeSet::new();
        for (split, kind) in [Split::Train, Split::Examination]
            .into_iter()
            .flat_map(|split| Kind::ALL.map(|kind| (split, kind)))
        {
            let mut pages = Pages::new(0, split, vec![(kind, 1)]).unwrap();
            // All fit in the context, with room for longer ones that were not drawn.
            let most = if kind == Kind::Glossary { 420 } else { 320 };
            for _ in 0..600 {
                let text = pages.next_page().text();
                let ids = tokenizer.encode_prompt(&text).unwrap();
                assert_eq!(tokenizer.decode(&ids[1..], false), text);
                assert!(ids.len() <= most, "{}: {} tokens", kind.name(), ids.len());
                used.extend(ids);
            }
        }
        let token = |id| String::from_utf8(tokenizer.token_bytes(id)).unwrap_or_default();
        let bytes: Vec<_> = used.iter().filter(|id| (3..259).contains(*id)).copied().collect();
        let letters: Vec<_> = bytes.into_iter().map(token).filter(|t| t != "A").collect();
        assert_eq!(letters.concat(), ",.:?", "words that are spelled");
        // Halves of syllables are never left over.
        let idle = (259..TOKENS as u32).filter(|id| !used.contains(id)).map(token);
        let idle: Vec<_> = idle.filter(|t| t.len() != 2 && t != "<PAD>").collect();
        assert_eq!(idle, Vec::<String>::new(), "words without a page");
    }

    #[test]
    fn a_made_up_word_is_two_syllables_and_other_text_is_spelled() {
        let tokenizer = prepared().unwrap().tokenizer;
        let tokens = |text: &str| -> Vec<String> {
            let ids = tokenizer.encode_text(text).unwrap();
            ids.iter().map(|&id| String::from_utf8(tokenizer.token_bytes(id)).unwrap()).collect()
        };
        assert_eq!(tokens(" dabo mola."), [" da", "bo", " mo", "la", "."]);
        assert_eq!(tokens("Question: left xy"), ["Question", ":", " left", " ", "x", "y"]);
    }
}
