//! Safetensors files, and Hugging Face folders: one file, or shards named by an index.

use super::entry::{Entry, Layout, MAX_DIMS, Source, row_major};
use super::{Checkpoint, Format, MAX_TENSORS, check_name};
use crate::dtype::DType;
use crate::error::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

/// The most bytes of a safetensors header or an index file.
const MAX_HEADER: usize = 100_000_000;
const MAX_SHARDS: usize = 10_000;
/// What a folder may hold, in the order in which Hugging Face looks; open_clip's names last.
const NAMES: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
];

fn bad(expected: impl fmt::Display, found: impl fmt::Display) -> Error {
    Error::invalid("safetensors", expected, found)
}

/// Where one item of a header lies; the rest of its description is the crate's to check.
#[derive(Deserialize)]
struct HeaderItem {
    #[serde(default)]
    data_offsets: Option<(u64, u64)>,
    #[serde(default)]
    #[allow(dead_code, reason = "read only to bound its length before the crate builds it")]
    shape: Dims,
}

/// A list of numbers that is not longer than a tensor may have dimensions.
#[derive(Default)]
struct Dims;

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Dims;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "at most {MAX_DIMS} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<Dims, A::Error> {
                let mut len = 0;
                while list.next_element::<u64>()?.is_some() {
                    len += 1;
                    if len > MAX_DIMS {
                        return Err(A::Error::invalid_length(len, &self));
                    }
                }
                Ok(Dims)
            }
        }
        from.deserialize_seq(Count)
    }
}

/// Reads the header of a safetensors file.
pub(super) fn read_safetensors(into: &mut Checkpoint, source: &Arc<Source>) -> Result<()> {
    let file = source.bytes();
    let len = file.first_chunk::<8>().map_or(u64::MAX, |b| u64::from_le_bytes(*b));
    let header = usize::try_from(len).ok().filter(|&n| n <= MAX_HEADER);
    let header = header.and_then(|n| file.get(8..8 + n));
    let header = header.ok_or_else(|| {
        bad(
            format!("a header of {len} bytes (at most {MAX_HEADER})"),
            format!("{} bytes", file.len()),
        )
        .advise("the file is cut off or not safetensors; fetch it again")
    })?;
    let data = 8 + header.len();
    check_header(header, file.len() - data)?;
    let (_, metadata) = SafeTensors::read_metadata(file)
        .map_err(|e| bad("a header that covers the file exactly", e))?;
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        check_name(&name)?;
        let dtype = dtype(info.dtype).ok_or_else(|| {
            bad(format!("`{name}` of a supported type"), format!("{:?}", info.dtype))
        })?;
        let (start, end) = info.data_offsets;
        let (shape, strides) = (info.shape.clone(), row_major(&info.shape));
        let layout = Layout { dtype, offset: 0, shape, strides };
        let entry = Entry::new(source, data + start..data + end, layout);
        into.insert(&name, entry.map_err(|e| e.within(&name))?)?;
    }
    into.format = Format::SafeTensors;
    if into.is_empty() { Err(bad("tensors", "none")) } else { Ok(()) }
}

/// Refuses repeated names and offsets beyond the file, which the crate adds up unchecked.
fn check_header(header: &[u8], data: usize) -> Result<()> {
    let header: Unique<HeaderItem> =
        serde_json::from_slice(header).map_err(|e| bad("a JSON header with each name once", e))?;
    for (name, item) in header.items {
        let Some((_, end)) = item.data_offsets else { continue };
        if end > data as u64 {
            return Err(bad(
                format!("`{name}` within {data} bytes of data"),
                format!("byte {end}"),
            ));
        }
    }
    Ok(())
}

fn dtype(of: Dtype) -> Option<DType> {
    Some(match of {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

/// A JSON object in file order; a repeated key is an error.
struct Unique<T> {
    items: Vec<(String, T)>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for UniqueVisitor<T> {
    type Value = Unique<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Unique<T>, A::Error> {
        let (mut items, mut seen) = (Vec::new(), HashSet::new());
        while let Some((key, value)) = map.next_entry::<String, T>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("repeated key `{}`", key.escape_debug())));
            }
            if items.len() >= MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} keys")));
            }
            items.push((key, value));
        }
        Ok(Unique { items })
    }
}

/// Reads the first of [`NAMES`] that the folder holds.
pub(super) fn open_folder(folder: &Path) -> Result<Checkpoint> {
    match NAMES.iter().map(|name| folder.join(name)).find(|path| path.exists()) {
        Some(path) => Checkpoint::open(&path),
        None => {
            Err(Error::invalid(folder.display(), format!("one of {}", NAMES.join(", ")), "none"))
        }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

/// The tensors and shards that an index names, both in its order.
pub(super) struct ShardMap {
    /// Tensor name and position in `shards`.
    pub tensors: Vec<(String, usize)>,
    pub shards: Vec<String>,
}

/// Parses the text of an index file.
pub(super) fn parse_index(text: &[u8]) -> Result<ShardMap> {
    let odd = |expected: &str, found: &dyn fmt::Display| Error::invalid("index", expected, found);
    if text.len() > MAX_HEADER {
        return Err(odd("at most 100 MB", &text.len()));
    }
    let index: Index = serde_json::from_slice(text)
        .map_err(|e| odd("{\"weight_map\": {tensor: shard file}} with each name once", &e))?;
    let mut map = ShardMap { tensors: Vec::new(), shards: Vec::new() };
    let mut known: HashMap<String, usize> = HashMap::new();
    for (tensor, shard) in index.weight_map.items {
        let is_plain = !shard.is_empty()
            && shard.len() <= 255
            && shard != ".."
            && shard != "."
            && !shard.contains(['/', '\\', '\0', ':'])
            && !shard.ends_with(".index.json");
        if !is_plain {
            return Err(odd("shards that are plain file names", &shard.escape_debug()));
        }
        let next = map.shards.len();
        let at = *known.entry(shard.clone()).or_insert(next);
        if at == next {
            map.shards.push(shard);
        }
        map.tensors.push((tensor, at));
    }
    if map.tensors.is_empty() || map.shards.len() > MAX_SHARDS {
        return Err(odd("between 1 and 10000 shards", &map.shards.len()));
    }
    Ok(map)
}

/// Reads the shards that the index at `path` names, from the same folder.
pub(super) fn open_index(path: &Path) -> Result<Checkpoint> {
    let inside = |e: Error| e.within(path.display());
    let source = Source::open(path)?;
    let map = parse_index(source.bytes()).map_err(inside)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut shards = Vec::with_capacity(map.shards.len());
    for name in &map.shards {
        shards.push(Checkpoint::open_file(&folder.join(name))?);
    }
    let all_safe = shards.iter().all(|s| s.format == Format::SafeTensors);
    let format = if all_safe { Format::ShardedSafeTensors } else { Format::ShardedTorch };
    let mut whole = Checkpoint::new(path, format);
    let mut used: HashSet<(usize, &str)> = HashSet::new();
    for (tensor, shard) in &map.tensors {
        let entry = shards[*shard].get(tensor).ok_or_else(|| {
            inside(Error::invalid(
                tensor.escape_debug(),
                format!("a tensor of {}", map.shards[*shard]),
                "none",
            ))
        })?;
        whole.insert(tensor, entry.clone()).map_err(inside)?;
        used.insert((*shard, tensor));
    }
    for (i, shard) in shards.iter().enumerate() {
        for name in shard.names().filter(|name| !used.contains(&(i, name))) {
            whole.ignore(name.into(), format!("in {} but not in the index", map.shards[i]))?;
        }
        for (name, reason) in shard.ignored() {
            whole.ignore(name.clone(), format!("{reason} ({})", map.shards[i]))?;
        }
    }
    whole.parts = shards;
    Ok(whole)
}
