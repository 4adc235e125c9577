//! A pickle machine that builds data and can do nothing else.
//!
//! It understands the opcodes that `torch.save` and TorchScript write (protocols 2 to 5) and keeps
//! what they build in one arena of plain values. Nothing is imported, called or looked up: a global
//! is a name from a closed list ([`Global`]), and `REDUCE` on it fills in a tensor description or
//! is refused. There is no other mode and no fallback.

use super::rebuild::{self, Global, Storage, Tensor};
use crate::error::{Error, Result};

/// Limits on what one pickle may build.
pub(super) const MAX_BYTES: usize = 64 << 20;
const MAX_STACK: usize = 1_000_000;
/// Memo slots are numbered from 0 up by every writer, so the last bounds their count.
const MAX_MEMO: usize = 1_000_000;
const MAX_CELLS: usize = 2_000_000;
const MAX_STRING: usize = 16 << 20;
const MAX_LINE: usize = 4096;
pub(super) const MAX_DEPTH: u8 = 64;

/// One value; compound ones live in the arena of [`Pickle`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// Little-endian two's complement of more than eight bytes.
    Long(&'a [u8]),
    /// A number that is not a count; its value is never needed.
    Float,
    Str(&'a str),
    Global(Global<'a>),
    Object(u32),
}

/// A compound value.
#[derive(Debug)]
pub(super) enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage(Box<Storage<'a>>),
    Tensor(Box<Tensor<'a>>),
    /// An object of a TorchScript class with its attributes.
    Module(Option<Value<'a>>),
    /// Something known and harmless whose content is not needed, such as a device.
    Inert(&'static str),
}

/// Where a pickle comes from, which decides the globals it may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Torch,
    TorchScript,
}

/// What one pickle built.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    pub root: Value<'a>,
    objects: Vec<Object<'a>>,
    /// Bytes read, up to and including `STOP`.
    pub len: usize,
}

impl<'a> Pickle<'a> {
    /// Runs the pickle at the start of `bytes`.
    pub(super) fn load(bytes: &'a [u8], origin: Origin) -> Result<Self> {
        let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
        let mut machine = Machine::new(bytes, origin);
        match machine.run() {
            Ok(root) => Ok(Pickle { root, objects: machine.objects, len: machine.at }),
            Err(e) => Err(e.within(format!("pickle byte {}", machine.op))),
        }
    }

    /// Runs the pickle that must be all of `bytes`.
    pub(super) fn load_all(bytes: &'a [u8], origin: Origin) -> Result<Self> {
        if bytes.len() > MAX_BYTES {
            return Err(bad(format!("at most {MAX_BYTES} bytes"), bytes.len()));
        }
        let pickle = Self::load(bytes, origin)?;
        if pickle.len != bytes.len() {
            let found = format!("{} more bytes", bytes.len() - pickle.len);
            return Err(bad("the end of the pickle after STOP", found));
        }
        Ok(pickle)
    }

    pub(super) fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(i) => self.objects.get(i as usize),
            _ => None,
        }
    }

    /// The items of a dict.
    pub(super) fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match self.object(value) {
            Some(Object::Dict(items)) => Some(items),
            _ => None,
        }
    }

    /// All storages that a persistent id declared, in order of appearance.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.objects.iter().filter_map(|object| match object {
            Object::Storage(storage) => Some(&**storage),
            _ => None,
        })
    }

    /// What a value is, for messages.
    pub(super) fn kind(&self, value: Value<'a>) -> &'static str {
        kind(&self.objects, value)
    }
}

fn kind(objects: &[Object], value: Value) -> &'static str {
    match value {
        Value::None => "None",
        Value::Bool(_) => "bool",
        Value::Int(_) | Value::Long(_) => "int",
        Value::Float => "float",
        Value::Str(_) => "string",
        Value::Global(_) => "global name",
        Value::Object(i) => match objects.get(i as usize) {
            Some(Object::Tuple(_)) => "tuple",
            Some(Object::List(_)) => "list",
            Some(Object::Dict(_)) => "dict",
            Some(Object::Storage(_)) => "storage",
            Some(Object::Tensor(_)) => "tensor",
            Some(Object::Module(_)) => "module",
            Some(Object::Inert(what)) => what,
            None => "nothing",
        },
    }
}

pub(super) fn bad(expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::invalid("pickle", expected, found)
}

/// The stack machine; `rebuild.rs` turns its tuples into storages and tensors.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    origin: Origin,
    at: usize,
    op: usize,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: Vec<Option<Value<'a>>>,
    memo_filled: usize,
    pub(super) objects: Vec<Object<'a>>,
    /// Nesting of each object, in the same order.
    depths: Vec<u8>,
    cells: usize,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8], origin: Origin) -> Self {
        Machine {
            bytes,
            origin,
            at: 0,
            op: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            memo_filled: 0,
            objects: Vec::new(),
            depths: Vec::new(),
            cells: 0,
        }
    }

    fn run(&mut self) -> Result<Value<'a>> {
        match self.bytes {
            [0x80, 2..=5, ..] => self.at = 2,
            [0x80, version, ..] => return Err(bad("pickle protocol 2 to 5", version)),
            _ => return Err(bad("a pickle of protocol 2 to 5", "no protocol opcode")),
        }
        loop {
            self.op = self.at;
            let code = self.byte()?;
            if code == b'.' {
                let root = self.pop()?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    return Err(bad("one value at STOP", "more on the stack"));
                }
                return Ok(root);
            }
            self.step(code)?;
        }
    }

    fn step(&mut self, code: u8) -> Result<()> {
        match code {
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' | b'K' | b'M' | 0x8a | b'G' => self.number(code),
            b'X' | 0x8c | 0x8d => self.string(code),
            b'(' => {
                if self.marks.len() >= usize::from(MAX_DEPTH) {
                    return Err(bad(format!("nesting of at most {MAX_DEPTH}"), "more"));
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.drop_top(),
            b'1' => self.drain_mark().map(drop),
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memory(code),
            b')' | b']' | b'}' | b't' | 0x85..=0x87 => self.container(code),
            b'a' | b'e' | b's' | b'u' | b'b' => self.fill(code),
            b'c' | 0x93 => self.global(code),
            b'R' | 0x81 => self.reduce(code == 0x81),
            b'Q' => self.persistent(),
            0x95 => self.frame(),
            _ => Err(refused(code)),
        }
    }

    fn number(&mut self, code: u8) -> Result<()> {
        let value = match code {
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Value::Int(i64::from(self.byte()?)),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'G' => {
                self.take(8)?;
                Value::Float
            }
            _ => {
                let n = usize::from(self.byte()?);
                long(self.take(n)?)
            }
        };
        self.push(value)
    }

    fn string(&mut self, code: u8) -> Result<()> {
        let len = match code {
            0x8c => u64::from(self.byte()?),
            b'X' => u64::from(u32::from_le_bytes(self.array()?)),
            _ => u64::from_le_bytes(self.array()?),
        };
        let len = usize::try_from(len).ok().filter(|&n| n <= MAX_STRING);
        let len =
            len.ok_or_else(|| bad(format!("a string of at most {MAX_STRING} bytes"), "more"))?;
        let text = std::str::from_utf8(self.take(len)?);
        self.push(Value::Str(text.map_err(|e| bad("a UTF-8 string", e))?))
    }

    fn memory(&mut self, code: u8) -> Result<()> {
        let slot = match code {
            b'q' | b'h' => usize::from(self.byte()?),
            0x94 => self.memo_filled,
            _ => u32::from_le_bytes(self.array()?) as usize,
        };
        if matches!(code, b'h' | b'j') {
            let value = self.memo.get(slot).copied().flatten();
            return self.push(value.ok_or_else(|| bad("a memo slot that was filled", slot))?);
        }
        let top = self.peek()?;
        if slot >= MAX_MEMO {
            return Err(bad(format!("memo slots below {MAX_MEMO}"), slot));
        }
        if slot >= self.memo.len() {
            self.memo.resize(slot + 1, None);
        }
        self.memo_filled += usize::from(self.memo[slot].replace(top).is_none());
        Ok(())
    }

    fn container(&mut self, code: u8) -> Result<()> {
        let object = match code {
            b')' => Object::Tuple(Vec::new()),
            b']' => Object::List(Vec::new()),
            b'}' => Object::Dict(Vec::new()),
            b't' => Object::Tuple(self.drain_mark()?),
            _ => {
                let n = usize::from(code - 0x84);
                let from = self.stack.len().checked_sub(n).filter(|&f| f >= self.fence());
                let from = from.ok_or_else(underflow)?;
                Object::Tuple(self.stack.split_off(from))
            }
        };
        let depth = match &object {
            Object::Tuple(items) => self.depth_over(items)?,
            _ => 1,
        };
        self.build(object, depth)
    }

    /// APPEND(S), SETITEM(S) and BUILD.
    fn fill(&mut self, code: u8) -> Result<()> {
        let items = match code {
            b'e' | b'u' => self.drain_mark()?,
            _ => {
                let n = if code == b's' { 2 } else { 1 };
                let from = self.stack.len().checked_sub(n).filter(|&f| f >= self.fence());
                self.stack.split_off(from.ok_or_else(underflow)?)
            }
        };
        let depth = self.depth_over(&items)?;
        self.spend(items.len())?;
        let target = self.peek()?;
        let found = kind(&self.objects, target);
        let Value::Object(index) = target else {
            return Err(bad("a container to fill", found));
        };
        if code == b'b' {
            let [state] = items[..] else { return Err(underflow()) };
            rebuild::build(&mut self.objects, index, state)?;
        } else {
            match (&mut self.objects[index as usize], code) {
                (Object::List(list), b'a' | b'e') => list.extend(items),
                (Object::Dict(dict), b's' | b'u') if items.len() % 2 == 0 => {
                    dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                }
                _ => return Err(bad("a list to append to or a dict to set pairs in", found)),
            }
        }
        let own = &mut self.depths[index as usize];
        *own = (*own).max(depth);
        Ok(())
    }

    fn global(&mut self, code: u8) -> Result<()> {
        let (module, name) = if code == b'c' {
            (self.line()?, self.line()?)
        } else {
            match (self.pop()?, self.pop()?) {
                (Value::Str(name), Value::Str(module)) => (module, name),
                _ => return Err(bad("two strings for STACK_GLOBAL", "other values")),
            }
        };
        self.push(Value::Global(Global::find(module, name, self.origin)?))
    }

    fn reduce(&mut self, is_new: bool) -> Result<()> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let Value::Global(global) = callable else {
            let found = kind(&self.objects, callable);
            return Err(bad("a global name to rebuild from", found));
        };
        let Value::Object(index) = args else {
            return Err(bad("a tuple of arguments", kind(&self.objects, args)));
        };
        let Object::Tuple(args) = &self.objects[index as usize] else {
            return Err(bad("a tuple of arguments", kind(&self.objects, args)));
        };
        match rebuild::reduce(&self.objects, global, args, is_new)? {
            rebuild::Made::Object(object) => self.build(object, 1),
            rebuild::Made::Value(value) => self.push(value),
        }
    }

    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = match id {
            Value::Object(i) => match &self.objects[i as usize] {
                Object::Tuple(items) => rebuild::storage(&self.objects, items)?,
                _ => return Err(bad("a persistent id tuple", kind(&self.objects, id))),
            },
            _ => return Err(bad("a persistent id tuple", kind(&self.objects, id))),
        };
        self.build(Object::Storage(Box::new(storage)), 1)
    }

    /// A frame only announces bytes that follow; they must be there.
    fn frame(&mut self) -> Result<()> {
        let len = u64::from_le_bytes(self.array()?);
        if len > (self.bytes.len() - self.at) as u64 {
            return Err(bad(format!("a frame of {len} bytes"), "the end of the pickle"));
        }
        Ok(())
    }

    fn drop_top(&mut self) -> Result<()> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn build(&mut self, object: Object<'a>, depth: u8) -> Result<()> {
        let inside = match &object {
            Object::Tuple(items) => items.len(),
            Object::Tensor(tensor) => 16 + 2 * tensor.layout.shape.len(),
            Object::Storage(_) => 4,
            _ => 0,
        };
        self.spend(1 + inside)?;
        let index = self.objects.len() as u32;
        self.objects.push(object);
        self.depths.push(depth);
        self.push(Value::Object(index))
    }

    /// Counts values kept in the arena, so that short opcodes cannot fill memory.
    fn spend(&mut self, cells: usize) -> Result<()> {
        self.cells += cells;
        if self.cells > MAX_CELLS {
            return Err(bad(format!("at most {MAX_CELLS} values"), "more"));
        }
        Ok(())
    }

    fn depth_over(&self, items: &[Value<'a>]) -> Result<u8> {
        let below = items.iter().map(|item| match item {
            Value::Object(i) => self.depths[*i as usize],
            _ => 0,
        });
        match below.max().unwrap_or(0) {
            MAX_DEPTH.. => Err(bad(format!("nesting of at most {MAX_DEPTH}"), "more")),
            depth => Ok(depth + 1),
        }
    }

    fn fence(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        if self.stack.len() >= MAX_STACK {
            return Err(bad(format!("a stack of at most {MAX_STACK} values"), "more"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn peek(&self) -> Result<Value<'a>> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.fence() => Ok(top),
            _ => Err(underflow()),
        }
    }

    fn pop(&mut self) -> Result<Value<'a>> {
        let top = self.peek()?;
        self.stack.pop();
        Ok(top)
    }

    fn drain_mark(&mut self) -> Result<Vec<Value<'a>>> {
        let mark = self.marks.pop().ok_or_else(|| bad("a MARK on the stack", "none"))?;
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let rest: &'a [u8] = &self.bytes[self.at..];
        let taken = rest.get(..n).ok_or_else(cut_off)?;
        self.at += n;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1).map(|b| b[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| cut_off())
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(MAX_LINE).position(|&b| b == b'\n');
        let end = end.ok_or_else(|| bad("a global name ended by a newline", "none"))?;
        let text = std::str::from_utf8(self.take(end + 1)?);
        Ok(text.map_err(|e| bad("a UTF-8 global name", e))?.trim_end_matches('\n'))
    }
}

fn long(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::Long(bytes);
    }
    let is_negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut wide = if is_negative { [0xff; 8] } else { [0; 8] };
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}

fn underflow() -> Error {
    bad("a value on the stack", "none")
}

fn cut_off() -> Error {
    bad("more of the pickle", "its end").advise("the file is cut off; fetch it again")
}

/// The error for an opcode that no checkpoint needs, by name where it has one.
fn refused(code: u8) -> Error {
    let name = match code {
        0x80 => "PROTO inside a pickle",
        b'i' => "INST",
        b'o' => "OBJ",
        0x82..=0x84 => "EXT",
        0x92 => "NEWOBJ_EX",
        b'P' => "PERSID",
        b'2' => "DUP",
        b'I' | b'L' | b'F' | b'S' | b'V' | b'g' | b'p' | b'l' | b'd' => "a protocol 0 opcode",
        b'U' | b'T' | b'B' | b'C' | 0x8e | 0x96 => "a byte string",
        0x97 | 0x98 => "an out-of-band buffer",
        0x8f..=0x91 => "a set",
        0x8b => "LONG4",
        _ => "an unknown opcode",
    };
    bad("only opcodes that torch.save writes", format!("{name} ({code:#04x})"))
        .advise("nothing in the file was executed; re-save the tensors as safetensors")
}
