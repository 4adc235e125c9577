//! Files written by `torch.save` and `torch.jit.save`: zip archives, and the plain layout of torch
//! before 1.6 (a few pickles, then the storages).

use super::archive::Directory;
use super::entry::{Entry, Layout, Source};
use super::pickle::{MAX_DEPTH, Object, Origin, Pickle, Value};
use super::rebuild::{Storage, Tensor};
use super::{Checkpoint, Format, MAX_NAME, MAX_TENSORS, check_name};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// The number 0x1950a86a20f9469cfc6c that opens the layout before torch 1.6.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const LEGACY_VERSION: i64 = 1001;
/// Keys under which training checkpoints keep the model (OpenFlamingo, open_clip).
const MODEL_KEYS: [&str; 2] = ["model_state_dict", "state_dict"];

/// Where each storage lies in the file, by its key.
type Places<'a> = HashMap<&'a str, Range<usize>>;

fn bad(expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::invalid("torch file", expected, found)
}

/// Reads a zip archive: a state dict, or the modules of a TorchScript program.
pub(super) fn read_zip(into: &mut Checkpoint, source: &Arc<Source>) -> Result<()> {
    let file = source.bytes();
    let directory = Directory::parse(file)?;
    let root = root(&directory)?;
    let code = format!("{root}code/");
    let is_script = directory.get(&format!("{root}constants.pkl")).is_some()
        || directory.members.iter().any(|m| m.name.starts_with(&code));
    for member in &directory.members {
        let rest = member.name.strip_prefix(&root);
        let rest = rest.ok_or_else(|| {
            bad(format!("only members in {root:?}"), format!("{:?}", member.name))
        })?;
        let is_unread = is_script && (rest.starts_with("code/") || rest.starts_with("extra/"));
        if !is_unread {
            member.content(file)?;
        }
    }
    if let Some(order) = directory.get(&format!("{root}byteorder")) {
        let order = order.verified(file)?;
        if order != b"little" {
            return Err(bad("byteorder little", "another"));
        }
    }
    if let Some(version) = directory.get(&format!("{root}version")) {
        let text = version.verified(file)?.trim_ascii();
        if text.is_empty() || text.len() > 4 || !text.iter().all(u8::is_ascii_digit) {
            return Err(bad("a version number", "something else"));
        }
    }
    let data = directory.get(&format!("{root}data.pkl")).map(|m| m.verified(file));
    let data = data.unwrap_or_else(|| Err(bad("data.pkl", "none")))?;
    let origin = if is_script { Origin::TorchScript } else { Origin::Torch };
    let pickle = Pickle::load_all(data, origin).map_err(|e| e.within("data.pkl"))?;
    let places = zip_places(&pickle, &directory, &root, file)?;
    let mut reader = Reader { into, source, pickle: &pickle, places, steps: 0, plain: 0 };
    if is_script {
        reader.into.format = Format::TorchScript;
        reader.program()?;
    } else {
        reader.into.format = Format::TorchZip;
        reader.state_dict()?;
    }
    into.members = directory.members;
    Ok(())
}

/// The folder, with its slash, that holds the one `data.pkl`.
fn root(directory: &Directory) -> Result<String> {
    let mut roots = directory.members.iter().filter_map(|m| {
        let root = m.name.strip_suffix("data.pkl")?;
        (root.len() > 1 && root.find('/') == Some(root.len() - 1)).then_some(root)
    });
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(root.to_string()),
        (None, _) => Err(bad("NAME/data.pkl in the archive", "none")
            .advise("this zip file was not written by torch.save")),
        (Some(a), Some(b)) => Err(bad("one data.pkl", format!("one in {a:?} and one in {b:?}"))),
    }
}

/// The declarations by key; one key may not be declared in two ways.
fn declared<'a>(pickle: &Pickle<'a>) -> Result<HashMap<&'a str, Storage<'a>>> {
    let mut all = HashMap::new();
    for storage in pickle.storages() {
        let first = all.entry(storage.key).or_insert(*storage);
        if (first.dtype, first.numel) != (storage.dtype, storage.numel) {
            let found = format!(
                "{} x {} and {} x {}",
                first.numel, first.dtype, storage.numel, storage.dtype
            );
            return Err(bad(format!("one type and size of storage `{}`", storage.key), found));
        }
    }
    Ok(all)
}

fn zip_places<'a>(
    pickle: &Pickle<'a>,
    directory: &Directory,
    root: &str,
    file: &[u8],
) -> Result<Places<'a>> {
    let mut places = Places::new();
    for (key, storage) in declared(pickle)? {
        let member = directory.get(&format!("{root}data/{key}"));
        let member =
            member.ok_or_else(|| bad(format!("storage `{key}` in the archive"), "none"))?;
        let (bytes, found) = (storage.numel * storage.dtype.size(), member.content(file)?.len());
        if bytes != found {
            return Err(bad(format!("{bytes} bytes of storage `{key}`"), found));
        }
        places.insert(key, member.data.clone());
    }
    Ok(places)
}

/// Reads the layout before torch 1.6.
pub(super) fn read_legacy(into: &mut Checkpoint, source: &Arc<Source>) -> Result<()> {
    let file = source.bytes();
    let mut at = 0;
    let mut next = |what: &str| {
        let pickle = Pickle::load(&file[at..], Origin::Torch).map_err(|e| e.within(what))?;
        at += pickle.len;
        Ok::<_, Error>(pickle)
    };
    let magic = next("magic number")?;
    if !matches!(magic.root, Value::Long(bytes) if bytes == MAGIC) {
        return Err(bad("the magic number of torch.save", magic.kind(magic.root))
            .advise("a plain pickle is not a checkpoint; save the state dict with torch.save"));
    }
    if !matches!(next("version")?.root, Value::Int(LEGACY_VERSION)) {
        return Err(bad(format!("layout version {LEGACY_VERSION}"), "another"));
    }
    let system = next("system info")?;
    let items = system.dict(system.root).unwrap_or_default();
    let is_little = |(key, value): &(Value, Value)| {
        matches!((key, value), (Value::Str("little_endian"), Value::Bool(true)))
    };
    if !items.iter().any(is_little) {
        return Err(bad("little_endian = True", "another byte order"));
    }
    let pickle = next("state dict")?;
    let keys = next("storage keys")?;
    let places = legacy_places(&pickle, &keys, file, at)?;
    let mut reader = Reader { into, source, pickle: &pickle, places, steps: 0, plain: 0 };
    reader.into.format = Format::TorchLegacy;
    reader.state_dict()
}

/// Follows the storages, each an element count and its bytes, to the end of the file.
fn legacy_places<'a>(
    pickle: &Pickle<'a>,
    keys: &Pickle<'a>,
    file: &[u8],
    mut at: usize,
) -> Result<Places<'a>> {
    let declared = declared(pickle)?;
    let Some(Object::List(keys)) = keys.object(keys.root) else {
        return Err(bad("a list of storage keys", keys.kind(keys.root)));
    };
    let mut places = Places::new();
    for key in keys {
        let Value::Str(key) = *key else { return Err(bad("storage keys that are text", "other")) };
        let storage = declared.get(key);
        let storage =
            storage.ok_or_else(|| bad("a storage that a tensor uses", "an unknown key"))?;
        let count = file.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        if count != Some(storage.numel as u64) {
            let found = count.map_or("the end of the file".into(), |n| n.to_string());
            return Err(bad(format!("{} elements of storage `{key}`", storage.numel), found));
        }
        let start = at + 8;
        let end = start.checked_add(storage.numel * storage.dtype.size());
        at = end.filter(|&end| end <= file.len()).ok_or_else(|| {
            bad(format!("the bytes of storage `{key}`"), "the end of the file")
                .advise("the file is cut off; fetch it again")
        })?;
        if places.insert(key, start..at).is_some() {
            return Err(bad("each storage once", format!("`{key}` twice")));
        }
    }
    if let Some(key) = declared.keys().find(|key| !places.contains_key(*key)) {
        return Err(bad(format!("storage `{key}` in the file"), "none"));
    }
    if at != file.len() {
        return Err(bad("the end of the file after its storages", file.len() - at));
    }
    Ok(places)
}

/// Moves the tensors of one pickle into a checkpoint.
struct Reader<'r, 'a> {
    into: &'r mut Checkpoint,
    source: &'r Arc<Source>,
    pickle: &'r Pickle<'a>,
    places: Places<'a>,
    /// Values visited, because modules may share modules.
    steps: usize,
    /// Attributes of modules that are plain values.
    plain: usize,
}

impl<'a> Reader<'_, 'a> {
    /// The root, or the dict under one of [`MODEL_KEYS`] in it, as names to tensors.
    fn state_dict(&mut self) -> Result<()> {
        let pickle = self.pickle;
        let Some(top) = pickle.dict(pickle.root) else {
            return Err(bad("a dict of tensors", pickle.kind(pickle.root)));
        };
        let is_model = |(key, value): &(Value<'a>, Value<'a>)| {
            matches!(key, Value::Str(key) if MODEL_KEYS.contains(key))
                && matches!(pickle.object(*value), Some(Object::Dict(_)))
        };
        let mut models = top.iter().enumerate().filter(|(_, item)| is_model(item));
        let (model, other) = (models.next(), models.next());
        if other.is_some() {
            return Err(bad("one of model_state_dict and state_dict", "both"));
        }
        let Some((chosen, (_, model))) = model else { return self.tensors(top) };
        for (i, (key, value)) in top.iter().enumerate() {
            if i != chosen {
                let reason = format!("{}, not part of the model", self.describe(*value));
                self.into.ignore(key_text(*key), reason)?;
            }
        }
        self.tensors(pickle.dict(*model).unwrap_or_default())
    }

    fn tensors(&mut self, items: &[(Value<'a>, Value<'a>)]) -> Result<()> {
        for (key, value) in items {
            match (self.pickle.object(*value), key) {
                (Some(Object::Tensor(tensor)), Value::Str(name)) => self.tensor(name, tensor)?,
                (Some(Object::Tensor(_)), _) => {
                    return Err(bad("tensors named by text", self.pickle.kind(*key)));
                }
                _ => {
                    let reason = format!("{}, not a tensor", self.describe(*value));
                    self.into.ignore(key_text(*key), reason)?;
                }
            }
        }
        if !self.into.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = items.iter().take(8).map(|(key, _)| key_text(*key)).collect();
        Err(bad("a dict of named tensors", format!("none among [{}]", keys.join(", "))))
    }

    fn describe(&self, value: Value<'a>) -> String {
        let kind = self.pickle.kind(value);
        match self.pickle.object(value) {
            Some(Object::Dict(items)) => format!("{kind} of {} entries", items.len()),
            Some(Object::List(items) | Object::Tuple(items)) => {
                format!("{kind} of {} items", items.len())
            }
            _ => kind.to_string(),
        }
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor<'a>) -> Result<()> {
        check_name(name)?;
        let Tensor { storage, layout } = tensor;
        let whole = self.places.get(storage.key);
        let whole = whole.ok_or_else(|| bad(format!("storage `{}`", storage.key), "none"))?;
        let size = storage.dtype.size();
        let start = whole.start + storage.part.0 * size;
        let range = start..start + storage.part.1 * size;
        let layout: Layout = layout.clone();
        let entry = Entry::new(self.source, range, layout).map_err(|e| e.within(name))?;
        self.into.insert(name, entry)
    }

    /// The tensors of a TorchScript program: attributes of its modules, by path.
    fn program(&mut self) -> Result<()> {
        let root = self.pickle.root;
        if !matches!(self.pickle.object(root), Some(Object::Module(_))) {
            return Err(bad("a module at the root of the program", self.pickle.kind(root)));
        }
        self.module(root, "", 0)?;
        if self.plain > 0 {
            let reason = format!("{} flags and constants of the modules, not tensors", self.plain);
            self.into.ignore("(attributes)".into(), reason)?;
        }
        if self.into.is_empty() { Err(bad("parameters in the program", "none")) } else { Ok(()) }
    }

    fn module(&mut self, module: Value<'a>, prefix: &str, depth: u8) -> Result<()> {
        let pickle = self.pickle;
        let attributes = match pickle.object(module) {
            Some(Object::Module(Some(state))) => pickle.dict(*state).unwrap_or_default(),
            _ => &[],
        };
        self.steps += 1 + attributes.len();
        if depth >= MAX_DEPTH || self.steps > MAX_TENSORS {
            return Err(bad("a tree of modules of reasonable size", "more"));
        }
        for (key, value) in attributes {
            let Value::Str(key) = key else {
                return Err(bad("attributes named by text", pickle.kind(*key)));
            };
            if prefix.len() + key.len() > MAX_NAME {
                return Err(bad(format!("names of at most {MAX_NAME} bytes"), "longer"));
            }
            let name = format!("{prefix}{key}");
            match pickle.object(*value) {
                Some(Object::Tensor(tensor)) => self.tensor(&name, tensor)?,
                Some(Object::Module(_)) => self.module(*value, &format!("{name}."), depth + 1)?,
                None => self.plain += 1,
                Some(_) => {
                    let reason = format!("{}, not a tensor", self.describe(*value));
                    self.into.ignore(name, reason)?;
                }
            }
        }
        Ok(())
    }
}

fn key_text(key: Value) -> String {
    match key {
        Value::Str(text) => text.chars().take(200).collect::<String>().escape_debug().to_string(),
        Value::Int(n) => n.to_string(),
        _ => "(another key)".into(),
    }
}
