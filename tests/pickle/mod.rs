//! A small assembler for pickles and a writer for zip archives, honest or not.

pub mod containers;
pub mod honest;
pub mod hostile;
pub mod sweep;

/// Assembles opcodes written as words: `proto:2`, `c:module.name`, `s:text`, `i:5`, `x:hex`, and
/// the opcode letter itself where it has one. `@w` is the tensor of [`four`].
pub fn asm(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for word in text.split_whitespace() {
        match word.split_once(':') {
            Some((op, arg)) if !arg.is_empty() => with_argument(&mut out, op, arg),
            _ => match word {
                "@w" => out.extend(asm(&four())),
                "@half" => {
                    out.extend(asm(&view(&storage("Half", "0", "i:8"), "i:0", "i:4", "i:1")))
                }
                "@name2000" => out.extend(asm(&format!("s:{}", "n".repeat(2000)))),
                _ => out.extend_from_slice(plain(word)),
            },
        }
    }
    out
}

fn with_argument(out: &mut Vec<u8>, op: &str, arg: &str) {
    let number = || arg.parse::<u64>().unwrap();
    match op {
        "proto" => out.extend([0x80, number() as u8]),
        "c" => {
            let (module, name) = arg.rsplit_once('.').unwrap();
            out.extend(format!("c{module}\n{name}\n").bytes());
        }
        "s" => {
            out.push(b'X');
            out.extend((arg.len() as u32).to_le_bytes());
            out.extend(arg.bytes());
        }
        "ss" => {
            out.extend([0x8c, arg.len() as u8]);
            out.extend(arg.bytes());
        }
        "s8" => {
            out.push(0x8d);
            out.extend((arg.len() as u64).to_le_bytes());
            out.extend(arg.bytes());
        }
        "i" => {
            out.push(b'J');
            out.extend((arg.parse::<i32>().unwrap()).to_le_bytes());
        }
        "k" => out.extend([b'K', number() as u8]),
        "m" => {
            out.push(b'M');
            out.extend((number() as u16).to_le_bytes());
        }
        "long" => {
            let bytes = hex(arg);
            out.extend([0x8a, bytes.len() as u8]);
            out.extend(bytes);
        }
        "q" => out.extend([b'q', number() as u8]),
        "h" => out.extend([b'h', number() as u8]),
        "r" => {
            out.push(b'r');
            out.extend((number() as u32).to_le_bytes());
        }
        "j" => {
            out.push(b'j');
            out.extend((number() as u32).to_le_bytes());
        }
        "frame" => {
            out.push(0x95);
            out.extend(number().to_le_bytes());
        }
        "x" => out.extend(hex(arg)),
        _ => panic!("no opcode {op}:{arg}"),
    }
}

fn plain(word: &str) -> &'static [u8] {
    match word {
        "(" => b"(",
        ")" => b")",
        "]" => b"]",
        "}" => b"}",
        "." => b".",
        "t" => b"t",
        "t1" => b"\x85",
        "t2" => b"\x86",
        "t3" => b"\x87",
        "R" => b"R",
        "b" => b"b",
        "Q" => b"Q",
        "a" => b"a",
        "e" => b"e",
        "set" => b"s",
        "u" => b"u",
        "pop" => b"0",
        "popmark" => b"1",
        "memo" => b"\x94",
        "sg" => b"\x93",
        "new" => b"\x81",
        "None" => b"N",
        "True" => b"\x88",
        "False" => b"\x89",
        "float" => b"G\x3f\xf0\0\0\0\0\0\0",
        _ => panic!("no opcode {word}"),
    }
}

pub fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// A storage as its persistent id declares it.
pub fn storage(of: &str, key: &str, numel: &str) -> String {
    format!("( s:storage c:torch.{of}Storage s:{key} s:cpu {numel} t Q")
}

/// `_rebuild_tensor_v2` over any storage text; `size` and `stride` are words such as `i:2 i:3`.
pub fn view(storage: &str, offset: &str, size: &str, stride: &str) -> String {
    format!(
        "c:torch._utils._rebuild_tensor_v2 ( {storage} {offset} ( {size} t ( {stride} t \
         False c:collections.OrderedDict ) R t R"
    )
}

/// Four floats, `[4]`, the only storage of [`torch_with`].
pub fn four() -> String {
    view(&storage("Float", "0", "i:4"), "i:0", "i:4", "i:1")
}

/// A state dict of one tensor `w`.
pub fn one(tensor: &str) -> Vec<u8> {
    asm(&format!("proto:2 }} ( s:w {tensor} u ."))
}

/// A member of an archive, with everything that can be wrong about it.
#[derive(Clone)]
pub struct Member {
    pub name: Vec<u8>,
    pub local_name: Vec<u8>,
    pub content: Vec<u8>,
    pub crc: u32,
    pub method: u16,
    pub local_method: u16,
    pub flags: u16,
    pub local_flags: u16,
    /// Size that the directory gives instead of the real one.
    pub size: Option<u32>,
    pub local_size: Option<u32>,
    /// Added to the position that the directory gives.
    pub shift: i64,
    pub extra: Vec<u8>,
}

pub fn member(name: &str, content: &[u8]) -> Member {
    Member {
        name: name.into(),
        local_name: name.into(),
        content: content.to_vec(),
        crc: crc32(content),
        method: 0,
        local_method: 0,
        flags: 0x800,
        local_flags: 0x800,
        size: None,
        local_size: None,
        shift: 0,
        extra: Vec::new(),
    }
}

pub fn crc32(bytes: &[u8]) -> u32 {
    let step = |c: u32, &b: &u8| {
        (0..8).fold(c ^ u32::from(b), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// Writes an archive from its members, in order.
pub fn zip(members: &[Member]) -> Vec<u8> {
    let (mut out, mut central) = (Vec::new(), Vec::new());
    for m in members {
        let at = (out.len() as i64 + m.shift) as u32;
        let real = m.content.len() as u32;
        let local = m.local_size.unwrap_or(real);
        out.extend(0x0403_4b50u32.to_le_bytes());
        for half in [20, m.local_flags, m.local_method, 0, 0] {
            out.extend(half.to_le_bytes());
        }
        for word in [m.crc, local, local] {
            out.extend(word.to_le_bytes());
        }
        out.extend((m.local_name.len() as u16).to_le_bytes());
        out.extend([0, 0]);
        out.extend(&m.local_name);
        out.extend(&m.content);
        let size = m.size.unwrap_or(real);
        central.extend(0x0201_4b50u32.to_le_bytes());
        for half in [20, 20, m.flags, m.method, 0, 0] {
            central.extend(half.to_le_bytes());
        }
        for word in [m.crc, size, size] {
            central.extend(word.to_le_bytes());
        }
        for half in [m.name.len() as u16, m.extra.len() as u16, 0, 0, 0] {
            central.extend(half.to_le_bytes());
        }
        central.extend(0u32.to_le_bytes());
        central.extend(at.to_le_bytes());
        central.extend(&m.name);
        central.extend(&m.extra);
    }
    let (start, len) = (out.len() as u32, central.len() as u32);
    out.extend(central);
    out.extend(0x0605_4b50u32.to_le_bytes());
    for half in [0, 0, members.len() as u16, members.len() as u16] {
        out.extend(half.to_le_bytes());
    }
    out.extend(len.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

/// The members of an honest archive around a pickle, with storage `0` of sixteen bytes.
pub fn parts(pickle: &[u8]) -> Vec<Member> {
    vec![
        member("archive/data.pkl", pickle),
        member("archive/byteorder", b"little"),
        member("archive/data/0", &(0..16).collect::<Vec<u8>>()),
        member("archive/version", b"3\n"),
    ]
}

/// An honest archive around a pickle.
pub fn torch_with(pickle: &[u8]) -> Vec<u8> {
    zip(&parts(pickle))
}

/// A TorchScript archive around a pickle.
pub fn script_with(pickle: &[u8]) -> Vec<u8> {
    let mut all = parts(pickle);
    all.push(member("archive/constants.pkl", &asm("proto:2 ) .")));
    all.push(member("archive/code/__torch__.py", b"class A(Module):\n  pass\n"));
    zip(&all)
}

/// The layout before torch 1.6: the five pickles, then each storage.
pub fn legacy_with(object: &str, keys: &str, storages: &[(u64, &[u8])]) -> Vec<u8> {
    let mut out = asm(&format!(
        "proto:2 long:6cfc9c46f9206aa85019 . proto:2 m:1001 . \
         proto:2 }} ( s:protocol_version m:1001 s:little_endian True s:type_sizes }} u . \
         proto:2 {object} . proto:2 {keys} ."
    ));
    for (count, bytes) in storages {
        out.extend(count.to_le_bytes());
        out.extend_from_slice(bytes);
    }
    out
}

/// A safetensors file with this header.
pub fn safetensors_with(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.bytes());
    out.extend_from_slice(data);
    out
}
