//! A language model's tokenizer made into Flamingo's: markers added, leading id decided.
//!
//! Which id starts a prompt is decided once, when a folder is converted, and written into the
//! `TemplateProcessing` of its `tokenizer.json`, where every reader of the format finds it:
//!
//! 1. `bos_token`, `eos_token` and `unk_token` all "" in `tokenizer_config.json`: `<unk>`. This is
//!    the LLaMA-7B conversion behind Med-Flamingo and OpenFlamingo-9B v1; transformers 4.29 looked
//!    up "" and found the unknown token, and the models were trained with it.
//! 2. `add_bos_token` false: none.
//! 3. What `tokenizer.json` itself puts first (`<s>` for LLaMA, nothing for MPT and GPT-NeoX).

use super::file::{Added, MAX_TOKEN_BYTES, TokenizerFile, read_limited};
use super::sentencepiece::from_sentencepiece;
use super::tokenizer::find_specials;
use super::{END_OF_CHUNK, IMAGE, Names, PAD, Specials, Tokenizer};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

const MAX_CONFIG: u64 = 4 << 20;
const MAX_NAMED: usize = 1024;

/// A tokenizer that is ready to be written into a model folder.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub file: TokenizerFile,
    pub names: Names,
    /// The same, ready for use.
    pub tokenizer: Tokenizer,
    pub specials: Specials,
    /// The id that starts every prompt.
    pub leading: Option<u32>,
    /// Number of tokens before and after Flamingo's were added; the second is the number of
    /// embedding rows of the Flamingo model.
    pub base_len: usize,
    pub len: usize,
    /// Why the leading id is what it is, for the converter's report.
    pub reason: &'static str,
    /// The file that the vocabulary came from.
    pub source: &'static str,
}

/// Reads the tokenizer of the Hugging Face folder `folder` and adds Flamingo's tokens to it.
///
/// Uses `tokenizer.json`; without it, the SentencePiece `tokenizer.model`. Tokens are added in
/// upstream's order: those that the folder names but its vocabulary lacks, `<|endofchunk|>`,
/// `<image>`, and `<PAD>` if no padding token is named.
///
/// # Errors
/// No tokenizer, or one that is malformed or unsupported.
pub fn prepare(folder: &Path) -> Result<Prepared> {
    let mut names = read_names(folder)?;
    if names.add_eos_token == Some(true) {
        let who = folder.join("tokenizer_config.json");
        return Err(Error::invalid(who.display(), "add_eos_token false or absent", "true")
            .advise("a token after the text would end every prompt"));
    }
    let (path, model) = (folder.join("tokenizer.json"), folder.join("tokenizer.model"));
    let (mut file, source) = if path.exists() {
        (TokenizerFile::read(&path)?, "tokenizer.json")
    } else if model.exists() {
        let bytes = read_limited(&model, super::sentencepiece::MAX_MODEL)?;
        let read = from_sentencepiece(&bytes).map_err(|e| e.within(model.display()))?;
        names.bos = names.bos.or(read.bos);
        names.eos = names.eos.or(read.eos);
        names.unk = names.unk.or(read.unk);
        (read.file, "tokenizer.model")
    } else {
        return Err(Error::invalid(folder.display(), "tokenizer.json or tokenizer.model", "none")
            .advise("download the tokenizer files of the language model into its folder"));
    };
    add_listed(&mut file, &folder.join("added_tokens.json"))?;
    finish(file, names, source).map_err(|e| e.within(folder.join(source).display()))
}

fn finish(mut file: TokenizerFile, mut names: Names, source: &'static str) -> Result<Prepared> {
    file.tokens()?;
    let (leading, reason) = decide_leading(&file, &names)?;
    add_named(&mut file, &names)?;
    let base_len = next_id(&file) as usize;
    let specials = add_flamingo_specials(&mut file, &mut names)?;
    set_template(&mut file, leading)?;
    let tokenizer = Tokenizer::new(file.clone(), &names)?;
    let len = tokenizer.vocab_size();
    Ok(Prepared { file, names, tokenizer, specials, leading, base_len, len, reason, source })
}

impl Prepared {
    /// The files that describe this tokenizer in a model folder, by name.
    pub fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        let Names { bos, eos, unk, pad, .. } = &self.names;
        let named =
            [("bos_token", bos), ("eos_token", eos), ("unk_token", unk), ("pad_token", pad)];
        for (key, name) in named {
            // An empty name would be looked up as a token by transformers; absent says the same.
            if let Some(name) = name.as_deref().filter(|n| !n.is_empty()) {
                config.insert(key.into(), json!(name));
            }
        }
        config.insert("additional_special_tokens".into(), json!([END_OF_CHUNK, IMAGE]));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        config.insert("padding_side".into(), json!("left"));
        let config = serde_json::to_vec_pretty(&config)
            .map_err(|e| Error::invalid("tokenizer_config.json", "names that fit JSON", e))?;
        Ok(vec![("tokenizer.json", self.file.to_json()?), ("tokenizer_config.json", config)])
    }
}

/// Adds `<|endofchunk|>` and `<image>`, then `<PAD>` unless `names` has a padding token, with the
/// next free ids; tokens that exist keep their ids and become special. `names.pad` is set.
pub fn add_flamingo_specials(file: &mut TokenizerFile, names: &mut Names) -> Result<Specials> {
    add_special(file, END_OF_CHUNK)?;
    add_special(file, IMAGE)?;
    if names.pad.is_none() {
        add_special(file, PAD)?;
        names.pad = Some(PAD.to_string());
    }
    find_specials(file, names)
}

/// Makes `content` a special token, with the next id if it is new.
fn add_special(file: &mut TokenizerFile, content: &str) -> Result<()> {
    if let Some(known) = file.added_tokens.iter_mut().find(|a| a.content == content) {
        (known.special, known.normalized) = (true, false);
        return Ok(());
    }
    let id = find(file, content).unwrap_or_else(|| next_id(file));
    file.added_tokens.push(Added::special(id, content));
    file.added_tokens.sort_by_key(|a| a.id);
    Ok(())
}

/// The id of `token`, added or in the model.
pub(super) fn find(file: &TokenizerFile, token: &str) -> Option<u32> {
    let added = file.added_tokens.iter().find(|a| a.content == token).map(|a| a.id);
    added.or_else(|| file.model.vocab.iter().find(|(t, _)| t == token).map(|v| v.1))
}

/// The id after the last; a file that was read has no gaps.
fn next_id(file: &TokenizerFile) -> u32 {
    let added = file.added_tokens.iter().map(|a| a.id);
    file.model.vocab.iter().map(|v| v.1).chain(added).max().map_or(0, |last| last.saturating_add(1))
}

/// The tokens that `names` names become special, as transformers makes them when it loads a folder.
fn add_named(file: &mut TokenizerFile, names: &Names) -> Result<()> {
    let Names { bos, eos, unk, pad, others, .. } = names;
    let named = [bos, eos, unk, pad].into_iter().flatten().chain(others);
    for name in named.filter(|n| !n.is_empty() && *n != END_OF_CHUNK && *n != IMAGE) {
        add_special(file, name)?;
    }
    Ok(())
}

/// The tokens of a slow tokenizer's `added_tokens.json` (token to id), where it exists.
fn add_listed(file: &mut TokenizerFile, path: &Path) -> Result<()> {
    let Some(Value::Object(listed)) = read_json(path)? else { return Ok(()) };
    let mut listed: Vec<(String, u64)> = listed
        .into_iter()
        .map(|(token, id)| match id.as_u64() {
            Some(id) => Ok((token, id)),
            None => Err(Error::invalid(path.display(), format!("an id for {token:?}"), id)),
        })
        .collect::<Result<_>>()?;
    listed.sort_by_key(|(_, id)| *id);
    if listed.len() > MAX_NAMED {
        let expected = format!("at most {MAX_NAMED} tokens");
        return Err(Error::invalid(path.display(), expected, listed.len()));
    }
    for (token, id) in listed {
        let (known, next) = (find(file, &token), next_id(file));
        if u64::from(known.unwrap_or(next)) != id {
            let found = format!("{token:?} with id {id}");
            return Err(Error::invalid(
                path.display(),
                "ids that agree with tokenizer.json",
                found,
            ));
        }
        if known.is_none() {
            let plain = Added { normalized: true, special: false, ..Added::special(next, &token) };
            file.added_tokens.push(plain);
        }
    }
    Ok(())
}

fn decide_leading(file: &TokenizerFile, names: &Names) -> Result<(Option<u32>, &'static str)> {
    let is_empty = |name: &Option<String>| name.as_deref() == Some("");
    let template = leading_of_template(file)?;
    if is_empty(&names.bos) && is_empty(&names.eos) && is_empty(&names.unk) {
        let unk = find(file, "<unk>");
        let reason = "tokenizer_config.json names bos, eos and unk as \"\", as in the LLaMA-7B \
                      files behind Med-Flamingo: prompts start with <unk>";
        if unk.is_some() {
            return Ok((unk, reason));
        }
    }
    if names.add_bos_token == Some(false) {
        return Ok((None, "tokenizer_config.json has add_bos_token false"));
    }
    Ok((template, "as the tokenizer's own template has it"))
}

/// The id that the file's `TemplateProcessing` puts before a text.
///
/// # Errors
/// A template that adds more than one token, or any after the text.
pub(super) fn leading_of_template(file: &TokenizerFile) -> Result<Option<u32>> {
    let kind = |v: &Value| v.get("type").and_then(Value::as_str).map(str::to_string);
    let own = std::slice::from_ref(&file.post_processor);
    let list = file.post_processor.get("processors").and_then(Value::as_array);
    let mut leading = None;
    for processor in list.map_or(own, Vec::as_slice) {
        match kind(processor).as_deref() {
            None if processor.is_null() => {}
            Some("ByteLevel") => {}
            Some("TemplateProcessing") if leading.is_none() => {
                leading = read_template(file, processor)?;
            }
            _ => {
                let found = kind(processor).unwrap_or_else(|| "something else".into());
                let expected = "null, ByteLevel or one TemplateProcessing";
                return Err(Error::invalid("post_processor", expected, found));
            }
        }
    }
    Ok(leading)
}

fn read_template(file: &TokenizerFile, template: &Value) -> Result<Option<u32>> {
    let none = Vec::new();
    let single = template.get("single").and_then(Value::as_array).unwrap_or(&none);
    let wrong = || {
        let found = if single.len() > 8 { "more".into() } else { json!(single).to_string() };
        Error::invalid("post_processor.single", "at most one token, then the text", found)
            .advise("a token after the text would end every prompt")
    };
    let (first, text) = match single.as_slice() {
        [text] => (None, text),
        [first, text] => (Some(first), text),
        _ => return Err(wrong()),
    };
    if text.get("Sequence").is_none() {
        return Err(wrong());
    }
    let Some(first) = first else { return Ok(None) };
    let name = first.pointer("/SpecialToken/id").and_then(Value::as_str).ok_or_else(wrong)?;
    let ids = template.get("special_tokens").and_then(|t| t.get(name)).and_then(|t| t.get("ids"));
    let ids = ids.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let known = u64::from(next_id(file));
    match ids {
        [id] if id.as_u64().is_some_and(|id| id < known) => Ok(id.as_u64().map(|id| id as u32)),
        _ => Err(Error::invalid("post_processor.special_tokens", "one id of the vocabulary", name)),
    }
}

/// Writes `leading` into the file's post-processor.
pub(super) fn set_template(file: &mut TokenizerFile, leading: Option<u32>) -> Result<()> {
    if leading == leading_of_template(file)? {
        return Ok(());
    }
    let Some(id) = leading else {
        file.post_processor = Value::Null;
        return Ok(());
    };
    let tokens = file.tokens()?;
    let token = tokens[id as usize].to_string();
    let piece =
        |kind: &str, name: &str, type_id: u32| json!({kind: {"id": name, "type_id": type_id}});
    let first = |type_id| piece("SpecialToken", &token, type_id);
    let mut named = HashMap::new();
    named.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
    file.post_processor = json!({
        "type": "TemplateProcessing",
        "single": [first(0), piece("Sequence", "A", 0)],
        "pair": [first(0), piece("Sequence", "A", 0), first(1), piece("Sequence", "B", 1)],
        "special_tokens": named,
    });
    Ok(())
}

/// The names in `folder`'s `special_tokens_map.json` and `tokenizer_config.json`; the first file
/// rules where both name a token.
pub(super) fn read_names(folder: &Path) -> Result<Names> {
    let config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let map = read_json(&folder.join("special_tokens_map.json"))?.unwrap_or_default();
    let name = |v: &Value| match v {
        Value::String(name) => Some(name.clone()),
        _ => v.get("content").and_then(Value::as_str).map(str::to_string),
    };
    let named = |key: &str| [&map, &config].into_iter().find_map(|v| v.get(key).and_then(name));
    let mut others: Vec<String> =
        ["sep_token", "cls_token", "mask_token"].iter().filter_map(|key| named(key)).collect();
    let listed = [&map, &config].into_iter().find_map(|v| v.get("additional_special_tokens"));
    if let Some(Value::Array(listed)) = listed {
        others.extend(listed.iter().filter_map(name));
    }
    let names = Names {
        bos: named("bos_token"),
        eos: named("eos_token"),
        unk: named("unk_token"),
        pad: named("pad_token"),
        others,
        add_bos_token: config.get("add_bos_token").and_then(Value::as_bool),
        add_eos_token: config.get("add_eos_token").and_then(Value::as_bool),
    };
    if names.others.len() > MAX_NAMED || names.others.iter().any(|n| n.len() > MAX_TOKEN_BYTES) {
        let expected = format!("at most {MAX_NAMED} names of {MAX_TOKEN_BYTES} bytes");
        return Err(Error::invalid("additional_special_tokens", expected, names.others.len()));
    }
    Ok(names)
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_limited(path, MAX_CONFIG)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(Some(Value::Object(map))),
        Ok(_) => Err(Error::invalid(path.display(), "a JSON object", "another value")),
        Err(e) => Err(Error::invalid(path.display(), "a JSON object", e)),
    }
}
