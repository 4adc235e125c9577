//! A tokenizer for weights that never saw a text: any text has ids, and every id has a text.
//!
//! Bytes come first, then merges of common letters, then entries that no merge leads to, up to the
//! size the model has. The form - SentencePiece or byte-level - is that of the model's family.

use crate::text::file::TokenizerFile;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashSet;

/// Letters of English by frequency; pairs of the first of them are merged first.
const LETTERS: &str = "etaoinshrdlucmfwygpbvkxjqz";

/// Which form, and what comes before the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// LLaMA's: `<unk>`, `<s>`, `</s>`, `<0x00>` to `<0xFF>`.
    SentencePiece,
    /// As small test models have it: the same three, then GPT-2's alphabet; `<s>` starts a prompt.
    ByteLevelWithStart,
    /// GPT-NeoX's: `<|endoftext|>`, then GPT-2's alphabet.
    ByteLevel,
}

/// `tokenizer.json` and `tokenizer_config.json` of a language model with `count` tokens, Flamingo's
/// not included.
pub(super) fn files(form: Form, count: usize) -> Result<[(&'static str, Vec<u8>); 2]> {
    let is_pieces = form == Form::SentencePiece;
    let specials: &[&str] = match form {
        Form::ByteLevel => &["<|endoftext|>"],
        _ => &["<unk>", "<s>", "</s>"],
    };
    let mut tokens = Tokens::default();
    specials.iter().for_each(|t| tokens.add(t.to_string()));
    (0..=255u8).for_each(|b| tokens.add(if is_pieces { fallback(b) } else { alphabet(b) }));
    let space = if is_pieces { '▁' } else { 'Ġ' };
    if is_pieces {
        ('!'..='~').chain([space]).for_each(|c| tokens.add(c.to_string()));
    }
    let merges = merges(space, count.saturating_sub(tokens.list.len()));
    merges.iter().for_each(|(a, b)| tokens.add(format!("{a}{b}")));
    tokens.fill(count)?;
    let vocab = tokens.list.into_iter().zip(0u32..).collect::<Vec<_>>();
    let config = match form {
        // Empty, as in the files that Med-Flamingo was trained with: prompts start with <unk>.
        Form::SentencePiece => json!({"bos_token": "", "eos_token": "", "unk_token": ""}),
        Form::ByteLevelWithStart => {
            json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
        }
        Form::ByteLevel => {
            let end = "<|endoftext|>";
            json!({"bos_token": end, "eos_token": end, "unk_token": end})
        }
    };
    let file = if is_pieces {
        TokenizerFile::llama(vocab, merges)
    } else {
        let template = (form == Form::ByteLevelWithStart).then(template);
        byte_level(vocab, merges, template.unwrap_or_default(), specials)?
    };
    let config =
        serde_json::to_vec(&config).map_err(|e| Error::invalid("tokenizer_config", "JSON", e))?;
    Ok([("tokenizer.json", file.to_json()?), ("tokenizer_config.json", config)])
}

/// Tokens in order, each once.
#[derive(Default)]
struct Tokens {
    list: Vec<String>,
    known: HashSet<String>,
}

impl Tokens {
    fn add(&mut self, token: String) {
        if self.known.insert(token.clone()) {
            self.list.push(token);
        }
    }

    /// Adds words of letters, shortest first, until there are `count` tokens.
    fn fill(&mut self, count: usize) -> Result<()> {
        if self.list.len() > count {
            let expected = format!("a vocabulary of at least {}", self.list.len());
            return Err(Error::invalid("tokenizer", expected, count));
        }
        let letters: Vec<char> = LETTERS.chars().collect();
        let mut number = 0usize;
        while self.list.len() < count {
            let (mut rest, mut word) = (number, String::new());
            loop {
                word.push(letters[rest % letters.len()]);
                rest /= letters.len();
                if rest == 0 {
                    break;
                }
                rest -= 1;
            }
            self.add(word);
            number += 1;
        }
        Ok(())
    }
}

/// At most `most` pairs: a space before each letter, then pairs of letters.
fn merges(space: char, most: usize) -> Vec<(String, String)> {
    let pairs = LETTERS.chars().flat_map(|a| LETTERS.chars().map(move |b| (a, b)));
    let spaced = LETTERS.chars().map(|c| (space, c));
    let all = spaced.chain(pairs).map(|(a, b)| (a.to_string(), b.to_string()));
    all.take(most).collect()
}

fn fallback(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// GPT-2's character for a byte: itself if it is visible, else one from U+0100 on.
fn alphabet(byte: u8) -> String {
    let is_visible = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let hidden = (0..byte).filter(|b| !is_visible(*b)).count() as u32;
    let code = if is_visible(byte) { u32::from(byte) } else { 0x100 + hidden };
    char::from_u32(code).unwrap_or_default().to_string()
}

fn template() -> Value {
    let text = |id, kind| json!({"Sequence": {"id": id, "type_id": kind}});
    json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, text("A", 0)],
        "pair": [text("A", 0), text("B", 1)],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    })
}

fn byte_level(
    vocab: Vec<(String, u32)>,
    merges: Vec<(String, String)>,
    template: Value,
    specials: &[&str],
) -> Result<TokenizerFile> {
    let vocab: serde_json::Map<_, _> = vocab.into_iter().map(|(t, id)| (t, json!(id))).collect();
    let merges: Vec<_> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let added = specials.iter().zip(0..).map(|(content, id)| {
        json!({"id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    });
    let bytes = |prefix_space: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true,
            "use_regex": true})
    };
    let file = json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": bytes(false),
        "post_processor": template,
        "decoder": bytes(true),
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    TokenizerFile::parse(file.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_encodes_any_text_and_decodes_it_again() {
        for (form, count) in [
            (Form::SentencePiece, 32000),
            (Form::ByteLevelWithStart, 400),
            (Form::ByteLevel, 50277),
        ] {
            let folder = tempfile::tempdir().unwrap();
            for (name, bytes) in files(form, count).unwrap() {
                std::fs::write(folder.path().join(name), bytes).unwrap();
            }
            let prepared = crate::text::prepare(folder.path()).unwrap();
            assert_eq!((prepared.base_len, prepared.len), (count, count + 3), "{form:?}");
            let leading = [Some(0), Some(1), None][form as usize];
            assert_eq!(prepared.leading, leading, "{form:?}");
            let tokenizer = prepared.tokenizer;
            let text = "The heart, naïve 日本 \u{1f600}\n\ttab";
            let ids = tokenizer.encode_text(text).unwrap();
            assert_eq!(tokenizer.decode(&ids, true).trim_start(), text, "{form:?}");
            assert!(ids.len() < text.len(), "merges are used");
        }
        assert!(files(Form::ByteLevel, 200).is_err());
    }
}
