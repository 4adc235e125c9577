//! The tokenizer of one model folder.

use super::bytes::{Piece, Pieces};
use super::file::{Added, Bpe, Family, TokenizerFile};
use super::prepare::{find, leading_of_template, read_names};
use super::{END_OF_CHUNK, IMAGE, Names, PAD, Specials, TokenStream};
use crate::error::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, PreTokenizerWrapper};

/// Longest text that is encoded in one call, in bytes.
pub const MAX_TEXT: usize = 1 << 20;

/// Encodes prompts and decodes answers. Cheap to clone; `Send` and `Sync`.
///
/// The ids equal those of transformers' *fast* classes as OpenFlamingo uses them: no white space is
/// stripped around the markers, and with LLaMA each segment between markers gets its own `▁`.
#[derive(Clone)]
pub struct Tokenizer {
    encoder: Arc<tokenizers::Tokenizer>,
    pieces: Arc<Pieces>,
    specials: Specials,
    leading: Option<u32>,
}

impl Tokenizer {
    /// The tokenizer of the model folder `folder`: its `tokenizer.json`, and the names in
    /// `tokenizer_config.json` and `special_tokens_map.json` where they exist.
    ///
    /// # Errors
    /// Files that are missing, malformed or unsupported, or a tokenizer without Flamingo's markers
    /// (a language model's folder that has not been converted yet).
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let file = TokenizerFile::read(&path)?;
        let names = read_names(folder)?;
        Self::new(file, &names).map_err(|e| e.within(path.display()))
    }

    /// The tokenizer that `file` describes. The leading id is the one in the file's
    /// `TemplateProcessing`; [`Tokenizer::with_leading`] replaces it.
    ///
    /// # Errors
    /// As [`Tokenizer::open`], but for reading files.
    pub fn new(file: TokenizerFile, names: &Names) -> Result<Self> {
        let specials = find_specials(&file, names)?;
        let leading = leading_of_template(&file)?;
        let pieces = Pieces::new(&file)?;
        let encoder = build_encoder(file, &pieces)?;
        Ok(Tokenizer { encoder: Arc::new(encoder), pieces: Arc::new(pieces), specials, leading })
    }

    /// Puts `leading` before every prompt instead of what the file says.
    ///
    /// LLaMA models start with `<s>` (1); Med-Flamingo and the first OpenFlamingo-9B with `<unk>`
    /// (0), because the configuration they were trained with names no special token; MPT and
    /// GPT-NeoX with nothing.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn with_leading(mut self, leading: Option<u32>) -> Result<Self> {
        if let Some(id) = leading.filter(|id| *id as usize >= self.pieces.count()) {
            let expected = format!("an id below {}", self.pieces.count());
            return Err(Error::invalid("tokenizer.leading_id", expected, id));
        }
        self.leading = leading;
        Ok(self)
    }

    /// The id that starts every prompt, if any.
    pub fn leading(&self) -> Option<u32> {
        self.leading
    }

    /// The ids that the engine knows by meaning.
    pub fn specials(&self) -> Specials {
        self.specials
    }

    /// True for ids that [`Tokenizer::encode_text`] never returns and decoding skips.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// Number of ids, the added tokens included: rows of the embedding.
    pub fn vocab_size(&self) -> usize {
        self.pieces.count()
    }

    /// Ids of `text` as text: whatever it contains, no special token comes out.
    ///
    /// # Errors
    /// Text over [`MAX_TEXT`] bytes.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        check_length(text)?;
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// Ids of a prompt: the leading id, then `text` with the markers `<image>` and
    /// `<|endofchunk|>` as special tokens and everything else as text.
    ///
    /// # Errors
    /// Text over [`MAX_TEXT`] bytes.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        check_length(text)?;
        let mut ids: Vec<u32> = self.leading.into_iter().collect();
        let mut rest = text;
        while let Some((at, marker, id)) = self.next_marker(rest) {
            self.encode_into(&rest[..at], &mut ids)?;
            ids.push(id);
            rest = &rest[at + marker.len()..];
        }
        self.encode_into(rest, &mut ids)?;
        Ok(ids)
    }

    /// Least number of tokens that `bytes` bytes of text can have (NFC may shorten text threefold).
    pub fn fewest_tokens(&self, bytes: usize) -> usize {
        bytes / (3 * self.pieces.longest())
    }

    fn next_marker(&self, text: &str) -> Option<(usize, &'static str, u32)> {
        let Specials { image, end_of_chunk, .. } = self.specials;
        text.match_indices('<').find_map(|(at, _)| {
            let marker = [(IMAGE, image), (END_OF_CHUNK, end_of_chunk)]
                .into_iter()
                .find(|(marker, _)| text[at..].starts_with(marker))?;
            Some((at, marker.0, marker.1))
        })
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let encoding = self
            .encoder
            .encode_fast(text, false)
            .map_err(|e| Error::invalid("text", "text that the tokenizer can encode", e))?;
        if let Some(&id) = encoding.get_ids().iter().find(|id| self.is_special(**id)) {
            let found = format!("special token {id} from plain text");
            return Err(Error::invalid("tokenizer", "a model that keeps text plain", found));
        }
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The text of `ids` as upstream's `decode(ids, skip_special_tokens=...)` gives it.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = self.stream();
        stream.show_special(!skip_special);
        let mut text = String::new();
        for &id in ids {
            text.extend(stream.push(id));
        }
        text.push_str(&stream.finish());
        text
    }

    /// An incremental decoder for ids that start a text: special tokens are skipped, and LLaMA's
    /// first space is dropped, as in [`Tokenizer::decode`].
    pub fn stream(&self) -> TokenStream {
        TokenStream::new(self.pieces.clone(), self.pieces.family() == Family::SentencePiece)
    }

    /// An incremental decoder for ids that continue a text: a first space is kept.
    pub fn continuation(&self) -> TokenStream {
        TokenStream::new(self.pieces.clone(), false)
    }

    /// The bytes that `id` adds to the text, special tokens by name; empty for unknown ids.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.pieces.get(id) {
            Some(Piece::Bytes(bytes)) => bytes.to_vec(),
            Some(Piece::Fallback(byte)) => vec![byte],
            None => Vec::new(),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("specials", &self.specials)
            .field("leading", &self.leading)
            .finish_non_exhaustive()
    }
}

fn check_length(text: &str) -> Result<()> {
    if text.len() > MAX_TEXT {
        let expected = format!("at most {MAX_TEXT} bytes of text");
        return Err(Error::invalid("text", expected, format!("{} bytes", text.len())));
    }
    Ok(())
}

/// The ids of Flamingo's markers in `file`, and of the tokens that `names` names.
pub(super) fn find_specials(file: &TokenizerFile, names: &Names) -> Result<Specials> {
    let marker = |content: &str| -> Result<u32> {
        let plain = |a: &&Added| a.content == content && a.special;
        let found = file.added_tokens.iter().find(plain).ok_or_else(|| {
            Error::invalid("added_tokens", format!("the special token {content}"), "none")
                .advise("convert the folder with `medflamingo-tools convert`")
        })?;
        if found.lstrip || found.rstrip || found.single_word {
            let expected = "lstrip, rstrip and single_word all false";
            return Err(Error::invalid(format!("added token {content}"), expected, "true"));
        }
        Ok(found.id)
    };
    let find = |name: &str| find(file, name);
    let named = |name: &Option<String>| name.as_deref().and_then(find);
    let (end_of_chunk, image) = (marker(END_OF_CHUNK)?, marker(IMAGE)?);
    let unk = named(&names.unk).or_else(|| find("<unk>"));
    let pad = match &names.pad {
        Some(name) => find(name).or(unk),
        None => find(PAD),
    };
    Ok(Specials {
        end_of_chunk,
        image,
        pad: pad.unwrap_or(end_of_chunk),
        bos: named(&names.bos),
        eos: named(&names.eos),
        unk,
    })
}

/// The crate's tokenizer with special tokens known but never matched in text.
fn build_encoder(file: TokenizerFile, pieces: &Pieces) -> Result<tokenizers::Tokenizer> {
    let bad = |e: tokenizers::Error| Error::invalid("model", "a BPE vocabulary and merges", e);
    let TokenizerFile { model, added_tokens: mut added, .. } = file;
    let mut encoder = tokenizers::Tokenizer::new(build_bpe(model, &added, pieces)?);
    match pieces.family() {
        Family::SentencePiece => {
            let replace = Replace::new(" ", "▁").map_err(bad)?;
            let steps = vec![Prepend::new("▁".into()).into(), replace.into()];
            encoder
                .with_normalizer(Some(NormalizerWrapper::Sequence(Sequence::new(steps))))
                .map_err(bad)?;
        }
        Family::ByteLevel { nfc, prefix_space, split } => {
            encoder.with_normalizer(nfc.then_some(NFC)).map_err(bad)?;
            let pre = ByteLevel::new(prefix_space, false, split);
            encoder.with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(pre)));
        }
    }
    added.sort_by_key(|a| a.id);
    let convert = |a: &Added| {
        AddedToken::from(a.content.clone(), a.special)
            .single_word(a.single_word)
            .lstrip(a.lstrip)
            .rstrip(a.rstrip)
            .normalized(a.normalized)
    };
    encoder.add_tokens(added.iter().map(convert)).map_err(bad)?;
    for a in &added {
        if encoder.token_to_id(&a.content) != Some(a.id) {
            let expected = "ids that follow the vocabulary in order";
            let found = format!("{:?} with id {}", a.content, a.id);
            return Err(Error::invalid("added_tokens", expected, found));
        }
    }
    encoder.set_encode_special_tokens(true);
    Ok(encoder)
}

/// The model, less the merges whose result is a special token: text cannot be merged into one.
fn build_bpe(model: Bpe, added: &[Added], pieces: &Pieces) -> Result<BPE> {
    let longest = pieces.longest();
    if let Some((a, b)) = model.merges.iter().find(|(a, b)| a.len() + b.len() > longest) {
        let found = format!("merge {a:?} {b:?}, longer than any token");
        return Err(Error::invalid("model.merges", "results in vocab", found));
    }
    let special: Vec<&str> =
        added.iter().filter(|a| a.special).map(|a| a.content.as_str()).collect();
    let makes_special = |(a, b): &(String, String)| {
        special.iter().any(|s| s.strip_prefix(a.as_str()) == Some(b.as_str()))
    };
    let mut merges = model.merges;
    merges.retain(|merge| !makes_special(merge));
    BPE::builder()
        .vocab_and_merges(model.vocab.into_iter().collect::<Vocab>(), merges)
        .fuse_unk(model.fuse_unk)
        .byte_fallback(model.byte_fallback)
        .ignore_merges(model.ignore_merges)
        .build()
        .map_err(|e| Error::invalid("model.merges", "parts and results in vocab", e))
}
