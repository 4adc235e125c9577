//! The closed list of names a checkpoint may use, and what each one builds: data, never a call.

use super::entry::{Layout, MAX_DIMS};
use super::pickle::{Object, Origin, Value, bad};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// A name that a pickle may mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global<'a> {
    OrderedDict,
    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])`.
    TensorV2,
    /// `_rebuild_tensor(storage, offset, size, stride)`.
    Tensor,
    /// `_rebuild_parameter(tensor, requires_grad, hooks)`.
    Parameter,
    Storage(DType),
    Size,
    Device,
    /// An element type such as `torch.float32`.
    Type,
    /// A TorchScript class.
    Module(&'a str, &'a str),
    /// TorchScript's marks on typed lists and dicts; they build what they are given.
    Typed,
}

/// What [`reduce`] leaves on the stack.
pub(super) enum Made<'a> {
    Object(Object<'a>),
    Value(Value<'a>),
}

/// The bytes a tensor looks at, as a persistent id declares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    pub dtype: DType,
    pub key: &'a str,
    /// Elements of the whole storage.
    pub numel: usize,
    /// First element and number of elements of the part that this id names.
    pub part: (usize, usize),
}

/// A view that is known to lie inside its storage.
#[derive(Clone, Debug)]
pub(super) struct Tensor<'a> {
    pub storage: Storage<'a>,
    pub layout: Layout,
}

const MAX_KEY: usize = 64;

const TYPES: [&str; 14] = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
    "bool", "double", "float", "half", "long",
];

fn storage_type(name: &str) -> Option<DType> {
    Some(match name {
        "DoubleStorage" => DType::F64,
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "CharStorage" => DType::I8,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::Bool,
        _ => return None,
    })
}

impl<'a> Global<'a> {
    /// The meaning of `module.name`.
    ///
    /// # Errors
    /// Any name that is not on the list, with the name.
    pub(super) fn find(module: &'a str, name: &'a str, origin: Origin) -> Result<Self> {
        let known = match (module, name) {
            ("collections", "OrderedDict") => Some(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Global::TensorV2),
            ("torch._utils", "_rebuild_tensor") => Some(Global::Tensor),
            ("torch._utils", "_rebuild_parameter") => Some(Global::Parameter),
            ("torch", "Size") => Some(Global::Size),
            ("torch", "device") => Some(Global::Device),
            ("torch", name) if TYPES.contains(&name) => Some(Global::Type),
            ("torch", name) => storage_type(name).map(Global::Storage),
            _ if origin == Origin::TorchScript => Self::find_script(module, name),
            _ => None,
        };
        known.ok_or_else(|| {
            let found = format!("`{}.{}`", start(module), start(name));
            bad("only names that a state dict needs", found).advise(
                "nothing in the file was executed; save the bare state dict \
                 (torch.save(model.state_dict(), ..)) or safetensors instead",
            )
        })
    }

    fn find_script(module: &'a str, name: &'a str) -> Option<Self> {
        const TYPED: [&str; 5] = [
            "restore_type_tag",
            "build_intlist",
            "build_tensorlist",
            "build_boollist",
            "build_doublelist",
        ];
        if module == "torch.jit._pickle" && TYPED.contains(&name) {
            return Some(Global::Typed);
        }
        let is_class = module == "__torch__" || module.starts_with("__torch__.");
        is_class.then_some(Global::Module(module, name))
    }
}

/// Describes what `global(*args)` would have made.
pub(super) fn reduce<'a>(
    objects: &[Object<'a>],
    global: Global<'a>,
    args: &[Value<'a>],
    is_new: bool,
) -> Result<Made<'a>> {
    let made = match (global, args) {
        (Global::OrderedDict, []) => Made::Object(Object::Dict(Vec::new())),
        (Global::Module(..), []) if is_new => Made::Object(Object::Module(None)),
        _ if is_new => return Err(mismatch(global, args.len(), true)),
        (Global::TensorV2, [place @ .., _, _] | [place @ .., _, _, _]) if place.len() == 4 => {
            Made::Object(tensor(objects, place)?)
        }
        (Global::Tensor, place) if place.len() == 4 => Made::Object(tensor(objects, place)?),
        (Global::Parameter, [inner, _, _]) => match object(objects, *inner) {
            Some(Object::Tensor(_)) => Made::Value(*inner),
            _ => return Err(bad("a tensor in _rebuild_parameter", "something else")),
        },
        (Global::Size, [size]) => {
            counts(objects, *size, "size")?;
            Made::Value(*size)
        }
        (Global::Device, [_] | [_, _]) => Made::Object(Object::Inert("device")),
        (Global::Typed, [inner] | [inner, _]) => Made::Value(*inner),
        _ => return Err(mismatch(global, args.len(), false)),
    };
    Ok(made)
}

fn mismatch(global: Global, args: usize, is_new: bool) -> Error {
    let verb = if is_new { "NEWOBJ" } else { "REDUCE" };
    bad("a known name with its own arguments", format!("{verb} of {global:?} with {args}"))
}

/// `BUILD`: gives a module its attributes; of a dict only `_metadata` may be set, and is dropped.
pub(super) fn build<'a>(objects: &mut [Object<'a>], target: u32, state: Value<'a>) -> Result<()> {
    let items = match object(objects, state) {
        Some(Object::Dict(items)) => items,
        _ => return Err(bad("a dict of attributes for BUILD", "something else")),
    };
    let other = match items[..] {
        [] | [(Value::Str("_metadata"), _)] => None,
        [(Value::Str(name), _), ..] => Some(format!("attribute `{}`", start(name))),
        _ => Some("an attribute without a name".into()),
    };
    match (&mut objects[target as usize], other) {
        (Object::Module(attributes @ None), _) => *attributes = Some(state),
        (Object::Dict(_), None) => {}
        (Object::Dict(_), Some(found)) => return Err(bad("only `_metadata` set on a dict", found)),
        _ => return Err(bad("a dict or a new module for BUILD", "another object")),
    }
    Ok(())
}

/// `("storage", type, key, location, numel[, None | (key, first, count)])`.
pub(super) fn storage<'a>(objects: &[Object<'a>], id: &[Value<'a>]) -> Result<Storage<'a>> {
    let (five, view) = match id {
        [five @ .., view] if five.len() == 5 => (five, *view),
        five => (five, Value::None),
    };
    let [Value::Str("storage"), of, Value::Str(key), Value::Str(_), numel] = five else {
        let expected = "the persistent id (\"storage\", type, key, location, numel)";
        return Err(bad(expected, format!("{} other items", id.len())));
    };
    let Value::Global(Global::Storage(dtype)) = of else {
        return Err(bad("a storage type in the persistent id", "something else"));
    };
    if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad(format!("a storage key of at most {MAX_KEY} letters"), start(key)));
    }
    let numel = count(*numel, "numel")?;
    let fits = |n: usize| n.checked_mul(dtype.size()).is_some();
    let part = match view {
        Value::None => (0, numel),
        view => match object(objects, view) {
            Some(Object::Tuple(items)) if items.len() == 3 => {
                (count(items[1], "view offset")?, count(items[2], "view size")?)
            }
            _ => return Err(bad("None or (key, offset, size) as storage view", "something else")),
        },
    };
    if !fits(numel) || part.0.checked_add(part.1).is_none_or(|end| end > numel) {
        let found = format!("{} elements from {}", part.1, part.0);
        return Err(bad(format!("a storage view inside {numel} elements"), found));
    }
    Ok(Storage { dtype: *dtype, key, numel, part })
}

/// A tensor from `(storage, offset, size, stride)`.
fn tensor<'a>(objects: &[Object<'a>], place: &[Value<'a>]) -> Result<Object<'a>> {
    let Some(Object::Storage(storage)) = object(objects, place[0]) else {
        return Err(bad("a storage as first argument of a tensor", "something else"));
    };
    let layout = Layout {
        dtype: storage.dtype,
        offset: count(place[1], "storage offset")?,
        shape: counts(objects, place[2], "size")?,
        strides: counts(objects, place[3], "stride")?,
    };
    layout.check(storage.part.1)?;
    Ok(Object::Tensor(Box::new(Tensor { storage: **storage, layout })))
}

fn object<'o, 'a>(objects: &'o [Object<'a>], value: Value<'a>) -> Option<&'o Object<'a>> {
    match value {
        Value::Object(i) => objects.get(i as usize),
        _ => None,
    }
}

/// The beginning of an untrusted text, for messages.
fn start(text: &str) -> String {
    text.chars().take(200).collect::<String>().escape_debug().to_string()
}

fn count(value: Value, what: &str) -> Result<usize> {
    let found = match value {
        Value::Int(n) => match usize::try_from(n) {
            Ok(n) => return Ok(n),
            Err(_) => n.to_string(),
        },
        Value::Long(bytes) => format!("an integer of {} bytes", bytes.len()),
        _ => "something else".into(),
    };
    Err(bad(format!("a {what} of 0 or more"), found))
}

fn counts(objects: &[Object], value: Value, what: &str) -> Result<Vec<usize>> {
    match object(objects, value) {
        Some(Object::Tuple(items) | Object::List(items)) if items.len() <= MAX_DIMS => {
            items.iter().map(|&item| count(item, what)).collect()
        }
        _ => Err(bad(format!("a tuple of at most {MAX_DIMS} numbers as {what}"), "something else")),
    }
}
