//! Rows of the embedding and of the output head: one for every token, the added ones included.
//!
//! Upstream makes the head's rows of the added tokens anew, at random, whenever a LLaMA model is
//! loaded, and no checkpoint holds them (open_flamingo/src/factory.py, `resize_token_embeddings`).
//! Here they are a choice with a name, and the ledger says which was made.

use super::ledger::Fate;
use super::pieces::Piece;
use super::plan::{Inputs, Item, check};
use crate::checkpoint::{Checkpoint, Entry};
use crate::{Error, Result};
use std::path::PathBuf;
use std::str::FromStr;

/// What becomes of rows of an untied output head that neither the language model nor the checkpoint
/// has.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum NewHeadRows {
    /// `<|endofchunk|>` takes the row of the language model's end token; the other added tokens are
    /// never generated.
    #[default]
    Eos,
    /// Upstream's choice with a seed: N(0, 0.02), and any of the tokens may be generated.
    Random(u64),
    /// Zeros; `<image>` and the padding token are never generated.
    Zero,
    /// The tensor `lm_head_new_rows` of a safetensors file.
    File(PathBuf),
}

impl FromStr for NewHeadRows {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "eos" => Ok(NewHeadRows::Eos),
            "zero" => Ok(NewHeadRows::Zero),
            _ => match s.strip_prefix("random:") {
                Some(seed) => seed.parse().map(NewHeadRows::Random).map_err(|_| {
                    Error::invalid("--new-head-rows", "random:SEED with a whole number", s)
                }),
                None if s.is_empty() || s == "random" => {
                    Err(Error::invalid("--new-head-rows", "eos, zero, random:SEED or a file", s))
                }
                None => Ok(NewHeadRows::File(s.into())),
            },
        }
    }
}

/// The head with what was decided about it.
pub(super) struct Head {
    pub item: Item,
    pub told: String,
    pub suppress: Vec<u32>,
}

/// The first `rows` rows of a matrix.
fn first_rows(entry: &Entry, rows: usize) -> Piece {
    Piece::Ranges { entry: entry.clone(), ranges: vec![(0, rows * entry.shape[1])] }
}

/// The input embedding: the checkpoint's, which has the trained rows of the added tokens.
pub(super) fn embedding(inputs: &mut Inputs, notes: &mut Vec<String>) -> Result<Item> {
    const TARGET: &str = "language.embedding.weight";
    let shape = vec![inputs.config.language.vocabulary, inputs.config.language.width];
    let name = inputs.layout.embedding();
    let whole = format!("lang_encoder.{name}");
    let item = |from, pieces| Item {
        name: TARGET.into(),
        shape: shape.clone(),
        pieces,
        from: vec![from],
        how: String::new(),
    };
    if let Some(entry) = inputs.flamingo.get(&whole) {
        let label = inputs.flamingo.label(&whole);
        check_rows(&label, entry, &shape, inputs)?;
        let made = item(label, vec![Piece::whole(entry)]);
        inputs.flamingo.settle(&whole, Fate::Mapped(TARGET.into()));
        let why = "the Flamingo checkpoint's embedding is used";
        inputs.language.settle(name, Fate::Ignored(why.into()));
        return Ok(made);
    }
    let label = inputs.language.label(name);
    let entry = inputs.language.get(name);
    let entry = entry.ok_or_else(|| Error::invalid(&label, "a tensor", "no such key"))?;
    if entry.shape.len() != 2 || entry.shape[0] < shape[0] {
        let who = format!("{}: {whole}", inputs.flamingo.path().display());
        return Err(Error::invalid(who, format!("{shape:?}"), "no such key").advise(
            "neither the checkpoint nor the language model has rows for the added tokens",
        ));
    }
    check(&label, entry, &[entry.shape[0], shape[1]])?;
    notes.push(format!("embedding: the checkpoint has none; {} rows of the LM", shape[0]));
    let made = item(label, vec![first_rows(entry, shape[0])]);
    inputs.language.settle(name, Fate::Mapped(TARGET.into()));
    Ok(made)
}

fn check_rows(label: &str, entry: &Entry, shape: &[usize], inputs: &Inputs) -> Result<()> {
    let is_matrix = entry.shape.len() == 2 && entry.dtype.is_float();
    if is_matrix && entry.shape[1] == shape[1] && entry.shape[0] != shape[0] {
        let expected = format!(
            "{} rows: {} tokens of the language model's tokenizer and {} added",
            shape[0],
            inputs.tokenizer.base_len,
            inputs.tokenizer.len - inputs.tokenizer.base_len
        );
        let found = format!("{} rows", entry.shape[0]);
        return Err(Error::invalid(label, expected, found)
            .advise("the checkpoint was trained with another language model or tokenizer"));
    }
    check(label, entry, shape)
}

/// An untied output head, row by row from where it is to be had.
pub(super) fn head(inputs: &mut Inputs, mode: &NewHeadRows) -> Result<Head> {
    const TARGET: &str = "language.head.weight";
    let shape = vec![inputs.config.language.vocabulary, inputs.config.language.width];
    let name = inputs.layout.head();
    let whole = format!("lang_encoder.{name}");
    let item = |from, pieces, how: String| Item {
        name: TARGET.into(),
        shape: shape.clone(),
        pieces,
        from,
        how,
    };
    if let Some(entry) = inputs.flamingo.get(&whole) {
        let label = inputs.flamingo.label(&whole);
        check_rows(&label, entry, &shape, inputs)?;
        let item = item(vec![label], vec![Piece::whole(entry)], String::new());
        inputs.flamingo.settle(&whole, Fate::Mapped(TARGET.into()));
        let why = "the Flamingo checkpoint's output head is used";
        inputs.language.settle(name, Fate::Ignored(why.into()));
        let told = "none: the checkpoint has the whole head".into();
        return Ok(Head { item, told, suppress: vec![] });
    }
    let label = inputs.language.label(name);
    let entry = inputs.language.get(name);
    let entry = entry.ok_or_else(|| Error::invalid(&label, "a tensor", "no such key"))?.clone();
    let rows = entry.shape.first().copied().unwrap_or(0);
    check(&label, &entry, &[rows, shape[1]])?;
    let base = inputs.tokenizer.base_len;
    if rows < base {
        let expected = format!("a row for each of {base} tokens");
        return Err(Error::invalid(label, expected, format!("{rows} rows"))
            .advise("the tokenizer files are not those of this language model"));
    }
    inputs.language.settle(name, Fate::Mapped(TARGET.into()));
    let kept = rows.min(shape[0]);
    let mut pieces = vec![first_rows(&entry, kept)];
    let mut how = String::new();
    if rows > kept {
        how = format!("the first {kept} of {rows} rows");
    }
    if kept == shape[0] {
        let told = "none: the language model has all rows".into();
        return Ok(Head { item: item(vec![label], pieces, how), told, suppress: vec![] });
    }
    let new = new_rows(inputs, mode, &entry, kept)?;
    pieces.extend(new.pieces);
    how = format!("rows {kept} to {} made by --new-head-rows", shape[0] - 1);
    let from = [vec![label], new.from].concat();
    Ok(Head { item: item(from, pieces, how), told: new.told, suppress: new.suppress })
}

struct New {
    pieces: Vec<Piece>,
    from: Vec<String>,
    told: String,
    suppress: Vec<u32>,
}

/// Rows `first` and up, for the tokens that were added.
fn new_rows(inputs: &Inputs, mode: &NewHeadRows, head: &Entry, first: usize) -> Result<New> {
    let (vocabulary, width) = (inputs.config.language.vocabulary, inputs.config.language.width);
    let end_of_chunk = inputs.config.tokens.end_of_chunk;
    let count = (vocabulary - first) * width;
    let others = || (first as u32..vocabulary as u32).filter(|&id| id != end_of_chunk).collect();
    let range = format!("{first} to {}", vocabulary - 1);
    let new = |pieces, told, suppress| New { pieces, from: vec![], told, suppress };
    Ok(match mode {
        NewHeadRows::Eos => {
            let (id, token) = end_token(inputs, first)?;
            let row = (id as usize * width, width);
            let piece = |at: usize| match at == end_of_chunk as usize {
                true => Piece::Ranges { entry: head.clone(), ranges: vec![row] },
                false => Piece::Zeros(width),
            };
            let told = format!(
                "eos: <|endofchunk|> takes the row of {token} ({id}); the other rows of {range} \
                 are zero and never generated"
            );
            new((first..vocabulary).map(piece).collect(), told, others())
        }
        NewHeadRows::Zero => {
            let told = format!("zero: rows {range}; all but <|endofchunk|> are never generated");
            new(vec![Piece::Zeros(count)], told, others())
        }
        NewHeadRows::Random(seed) => {
            let piece = Piece::Normal { count, seed: *seed, stream: 0, deviation: 0.02 };
            let told = format!(
                "random:{seed}: rows {range} from N(0, 0.02), as upstream draws them at each load; \
                 any of them may be generated"
            );
            new(vec![piece], told, vec![])
        }
        NewHeadRows::File(path) => {
            let file = Checkpoint::open(path)?;
            let who = format!("{}: lm_head_new_rows", path.display());
            let entry = file.get("lm_head_new_rows");
            let entry = entry.ok_or_else(|| Error::invalid(&who, "a tensor", "no such key"))?;
            check(&who, entry, &[vocabulary - first, width])?;
            New {
                pieces: vec![Piece::whole(entry)],
                from: vec![who.clone()],
                told: format!("rows {range} from {who}"),
                suppress: vec![],
            }
        }
    })
}

/// The language model's own end token, with an id below `limit`.
fn end_token(inputs: &Inputs, limit: usize) -> Result<(u32, String)> {
    let tokens = inputs.tokenizer.file.tokens()?;
    let named = inputs.tokenizer.specials.eos.map(|id| id as usize);
    // LLaMA-7B's configuration names none; SentencePiece calls it </s>.
    let known = || tokens.iter().position(|t| *t == "</s>" || *t == "<|endoftext|>");
    match named.or_else(known).filter(|&id| id < limit) {
        Some(id) => Ok((id as u32, tokens[id].to_string())),
        None => Err(Error::invalid("--new-head-rows eos", "a tokenizer with an end token", "none")
            .advise("choose zero, random:SEED or a file")),
    }
}

/// With a tied head, a head in the files has to be the embedding.
pub(super) fn tied(inputs: &mut Inputs) -> Result<()> {
    let (head, embedding) = (inputs.layout.head(), inputs.layout.embedding());
    inputs.language.tie(head, embedding)?;
    inputs.flamingo.tie(&format!("lang_encoder.{head}"), &format!("lang_encoder.{embedding}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_from_the_command_line() {
        let of = |s: &str| s.parse::<NewHeadRows>();
        assert_eq!(of("eos").unwrap(), NewHeadRows::Eos);
        assert_eq!(of("random:7").unwrap(), NewHeadRows::Random(7));
        assert_eq!(of("rows.safetensors").unwrap(), NewHeadRows::File("rows.safetensors".into()));
        assert!(of("random").is_err() && of("random:x").is_err() && of("").is_err());
    }
}
