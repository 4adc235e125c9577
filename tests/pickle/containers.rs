//! Containers made to harm or to confuse: archives, the old layout, programs, safetensors.

use super::hostile::{Case, case};
use super::*;

/// Every case of this file.
pub fn cases() -> Vec<Case> {
    let all = [members(), headers(), directories(), long_sizes(), legacy(), legacy_storages()];
    let more = [scripts(), safe(), safe_shapes(), others()];
    all.into_iter().chain(more).flatten().collect()
}

fn with(change: impl Fn(&mut Vec<Member>)) -> Vec<u8> {
    let mut all = parts(&one(&four()));
    change(&mut all);
    zip(&all)
}

fn edited(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut file = torch_with(&one(&four()));
    change(&mut file);
    file
}

/// Archives with members that are damaged, repeated, missing or not plain.
fn members() -> Vec<Case> {
    vec![
        case("bad CRC of data.pkl", with(|m| m[0].crc ^= 1), "checksum"),
        case("bad CRC of byteorder", with(|m| m[1].crc ^= 1), "checksum"),
        case("bad CRC of version", with(|m| m[3].crc ^= 1), "checksum"),
        case("data.pkl twice", with(|m| m.push(m[0].clone())), "each name once"),
        case("storage twice", with(|m| m.push(m[2].clone())), "each name once"),
        case("two roots", with(|m| m.push(member("b/data.pkl", b"x"))), "one data.pkl"),
        case("member outside the root", with(|m| m.push(member("b/x", b"x"))), "only members in"),
        case("no data.pkl", with(|m| drop(m.remove(0))), "NAME/data.pkl"),
        case("data.pkl at the top", zip(&[member("data.pkl", b"x")]), "NAME/data.pkl"),
        case("a zip of other things", zip(&[member("word/document.xml", b"x")]), "NAME/data.pkl"),
        case(
            "big-endian",
            with(|m| m[1] = member("archive/byteorder", b"big")),
            "byteorder little",
        ),
        case("odd version", with(|m| m[3] = member("archive/version", b"x")), "a version number"),
        case("compressed storage", with(|m| (m[2].method, m[2].local_method) = (8, 8)), "stored"),
        case("compressed pickle", with(|m| (m[0].method, m[0].local_method) = (8, 8)), "stored"),
        case(
            "compressed extra",
            with(|m| {
                m.push(Member { method: 8, local_method: 8, ..member("archive/x", b"x") });
            }),
            "stored members",
        ),
        case("encrypted", with(|m| (m[0].flags, m[0].local_flags) = (0x801, 0x801)), "encryption"),
    ]
}

/// Local headers that do not say what the directory says.
fn headers() -> Vec<Case> {
    let local = "equal to the directory";
    vec![
        case("other local name", with(|m| m[0].local_name[8] = b'D'), local),
        case("longer local name", with(|m| m[0].local_name.push(b'l')), local),
        case("other local method", with(|m| m[0].local_method = 8), local),
        case("other local flags", with(|m| m[0].local_flags = 0x808), local),
        case("other local size", with(|m| m[0].local_size = Some(7)), local),
        case("other local CRC", edited(|f| f[14] ^= 1), local),
        case(
            "directory size reaches on",
            with(|m| {
                (m[0].size, m[0].local_size) = (Some(1000), Some(1000));
            }),
            "inside the archive",
        ),
        case(
            "members overlap",
            with(|m| {
                (m[0].size, m[0].local_size) = (Some(m[0].content.len() as u32 + 9), None);
                m[0].local_flags = 0x808;
                m[0].flags = 0x808;
                m[0].local_size = Some(0);
            }),
            "do not overlap",
        ),
        case("header position inside a member", with(|m| m[2].shift = 4), "a local header"),
        case("header position far away", with(|m| m[2].shift = 1 << 30), "inside the archive"),
        case(
            "one local header for two names",
            with(|m| {
                let at: i64 =
                    m[..2].iter().map(|m| 30 + (m.name.len() + m.content.len()) as i64).sum();
                let next = at + 30 + (m[2].name.len() + m[2].content.len()) as i64;
                m[3] = Member { shift: at - next, ..m[2].clone() };
                m[3].name = b"archive/data/1".to_vec();
            }),
            local,
        ),
        case("backslash in a name", with(|m| m[3].name[7] = b'\\'), "plain UTF-8 member names"),
        case("NUL in a name", with(|m| m[3].name[8] = 0), "plain UTF-8 member names"),
        case("escape codes in a name", with(|m| m[3].name[8] = 27), "plain UTF-8 member names"),
        case("name that is not UTF-8", with(|m| m[3].name[8] = 0xff), "plain UTF-8 member names"),
    ]
}

/// Directories that are not where or what the end record says.
fn directories() -> Vec<Case> {
    let end = "an end record in the last 22 bytes";
    let from_end = |file: &Vec<u8>, n: usize| file.len() - n;
    vec![
        case(
            "comment at the end",
            edited(|f| {
                let n = f.len();
                f[n - 2] = 1;
                f.push(b'x');
            }),
            end,
        ),
        case("zeros appended", edited(|f| f.extend([0; 30])), end),
        case(
            "another archive appended",
            edited(|f| f.extend(torch_with(b"x"))),
            "before its end record",
        ),
        case(
            "something prepended",
            edited(|f| {
                let rest = std::mem::replace(f, b"PK\x03\x04MZ".to_vec());
                f.extend(rest);
            }),
            "before its end record",
        ),
        case("end record cut off", edited(|f| f.truncate(f.len() - 1)), end),
        case(
            "several disks",
            edited(|f| {
                let n = from_end(f, 18);
                f[n] = 1
            }),
            "single-part",
        ),
        case(
            "more members than there are",
            edited(|f| {
                let n = from_end(f, 14);
                (f[n], f[n + 2]) = (9, 9);
            }),
            "a directory record",
        ),
        case(
            "fewer members than there are",
            edited(|f| {
                let n = from_end(f, 14);
                (f[n], f[n + 2]) = (3, 3);
            }),
            "a directory of the declared size",
        ),
    ]
}

/// Positions, extra fields and 64-bit records that lead elsewhere.
fn long_sizes() -> Vec<Case> {
    let long = |size: u64| [vec![1, 0, 8, 0], size.to_le_bytes().to_vec()].concat();
    let from_end = |file: &Vec<u8>, n: usize| file.len() - n;
    vec![
        case(
            "directory elsewhere",
            edited(|f| {
                let n = from_end(f, 6);
                f[n] ^= 1
            }),
            "before its end",
        ),
        case(
            "directory size of 4 GiB",
            edited(|f| {
                let n = from_end(f, 10);
                f[n..n + 4].fill(0xff);
            }),
            "before its end record",
        ),
        case(
            "64-bit size beyond the file",
            with(|m| {
                m[0].extra = long(1 << 40);
                m[0].size = Some(u32::MAX);
                m[0].local_size = Some(u32::MAX);
            }),
            "64-bit size field",
        ),
        case(
            "two 64-bit sizes",
            with(|m| {
                m[0].extra = [long(5), long(6)].concat();
            }),
            "one well-formed 64-bit size field",
        ),
        case(
            "extra field longer than itself",
            with(|m| m[0].extra = vec![1, 0, 99, 0]),
            "64-bit size",
        ),
        case(
            "member comment",
            edited(|f| {
                let n = f.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
                f[n + 32] = 1;
            }),
            "directory records without comments",
        ),
        case(
            "64-bit locator to nowhere",
            edited(|f| {
                let end = f.split_off(f.len() - 22);
                f.extend(b"PK\x06\x07\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x01\0\0\0");
                f.extend(end);
            }),
            "a 64-bit end record",
        ),
    ]
}

/// A state dict of one tensor over storage `9`.
fn legacy_dict() -> String {
    let id = "( s:storage c:torch.FloatStorage s:9 s:cpu i:4 None t Q";
    format!("}} ( s:w {} u", view(id, "i:0", "i:4", "i:1"))
}

/// The layout before torch 1.6.
fn legacy() -> Vec<Case> {
    let (data, dict) = ([0u8; 16], legacy_dict());
    let data: &[u8] = &data;
    let late = "proto:2 long:6cfc9c46f9206aa85019 . proto:2 m:1001 .";
    vec![
        case(
            "plain pickle of a dict",
            asm("proto:2 } ( s:a k:1 u ."),
            "magic number of torch.save",
        ),
        case(
            "plain pickle of os.system",
            asm("proto:4 ss:os ss:system sg ss:id t1 R ."),
            "`os.system`",
        ),
        case("wrong magic number", asm("proto:2 long:6cfc9c46f9206aa85018 ."), "magic number"),
        case("wrong version", asm(&late.replace("1001", "1000")), "layout version 1001"),
        case(
            "big-endian system",
            asm(&format!("{late} proto:2 }} s:little_endian False set . proto:2 }} . proto:2 ] .")),
            "little_endian",
        ),
        case("system info that is a list", asm(&format!("{late} proto:2 ] .")), "little_endian"),
        case(
            "call in the system info",
            asm(&format!("{late} proto:2 c:os.system ) R .")),
            "os.system",
        ),
        case("call in the storage keys", legacy_with(&dict, "c:os.system ) R", &[]), "os.system"),
        case(
            "keys that are a dict",
            legacy_with(&dict, "}", &[(4, data)]),
            "a list of storage keys",
        ),
        case(
            "keys that are numbers",
            legacy_with(&dict, "] k:9 a", &[(4, data)]),
            "keys that are text",
        ),
    ]
}

/// Storages of that layout that are missing, repeated, cut off or of another size.
fn legacy_storages() -> Vec<Case> {
    let (data, dict, keys) = ([0u8; 16], legacy_dict(), "] s:9 a");
    let data: &[u8] = &data;
    let good = legacy_with(&dict, keys, &[(4, data)]);
    let prefix = |n: usize| good[..n].to_vec();
    vec![
        case("key that nobody uses", legacy_with(&dict, "] s:8 a", &[(4, data)]), "an unknown key"),
        case("no keys", legacy_with(&dict, "]", &[]), "storage `9` in the file"),
        case(
            "key twice",
            legacy_with(&dict, "] s:9 a s:9 a", &[(4, data), (4, data)]),
            "each storage once",
        ),
        case("count of five", legacy_with(&dict, keys, &[(5, data)]), "4 elements of storage `9`"),
        case(
            "count of 2^64 - 1",
            legacy_with(&dict, keys, &[(u64::MAX, data)]),
            "4 elements of storage",
        ),
        case(
            "bytes left over",
            legacy_with(&dict, keys, &[(4, &[0; 17])]),
            "the end of the file after",
        ),
        case("storage cut off", prefix(good.len() - 1), "the bytes of storage `9`"),
        case("count cut off", prefix(good.len() - 17), "the end of the file"),
        case("keys cut off", prefix(good.len() - 30), "the file is cut off"),
        case(
            "tensor outside",
            legacy_with(&dict.replace("( i:4 t", "( i:5 t"), keys, &[(4, data)]),
            "a view inside its storage",
        ),
        case(
            "storage of 2^61 floats",
            legacy_with(
                &dict.replace("s:cpu i:4", "s:cpu long:000000000000001f"),
                keys,
                &[(0x1f00_0000_0000_0000, data)],
            ),
            "the bytes of storage `9`",
        ),
    ]
}

/// TorchScript archives.
fn scripts() -> Vec<Case> {
    let module = "c:__torch__.M ) new";
    let script = |text: String| script_with(&asm(&format!("proto:2 {text} .")));
    let mut laughs = format!("{module} }} ( s:w {} u b q:0", four());
    for i in 0..28 {
        laughs += &format!(" pop {module} }} ( s:a h:{i} s:b h:{i} u b q:{}", i + 1);
    }
    let cycle = format!("{module} q:0 }} ( s:a h:0 u b");
    let long = format!("{module} }} ( s:{} {} u b", "n".repeat(2000), four());
    vec![
        case("module called", script("c:__torch__.M ) R".into()), "REDUCE of Module"),
        case(
            "module with arguments",
            script("c:__torch__.M k:1 t1 new".into()),
            "NEWOBJ of Module",
        ),
        case(
            "module with a list as state",
            script(format!("{module} ] b")),
            "a dict of attributes",
        ),
        case("module built twice", script(format!("{module} }} b }} b")), "a new module"),
        case("module without attributes", script(module.into()), "parameters in the program"),
        case("root that is a dict", script("}".into()), "a module at the root"),
        case("root that is a tensor", script(four()), "a module at the root"),
        case("os.system as a class", script("c:os.system ) new".into()), "os.system"),
        case("look-alike class", script("c:__torch__evil.M ) new".into()), "__torch__evil"),
        case(
            "unknown function of torch.jit",
            script("c:torch.jit._pickle.run ) R".into()),
            "names",
        ),
        case("module that contains itself", script(cycle), "a tree of modules"),
        case("modules shared 2^28 times", script(laughs), "a tree of modules"),
        case("attribute of 2000 letters", script(long), "names of at most 1024"),
        case(
            "attribute under a number",
            script(format!("{module} }} ( k:1 None u b")),
            "named by text",
        ),
        case(
            "typed list with three arguments",
            script("c:torch.jit._pickle.build_intlist ] ] ] t3 R".into()),
            "its own arguments",
        ),
    ]
}

/// Safetensors headers.
fn safe() -> Vec<Case> {
    let w = r#""w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let with = |header: &str| safetensors_with(header, &[0; 8]);
    let exact = "a header that covers the file exactly";
    let json = "a JSON header with each name once";
    let mut huge = with(&format!("{{{w}}}"));
    huge[..8].copy_from_slice(&100_000_001u64.to_le_bytes());
    vec![
        case("name twice", with(&format!("{{{w},{w}}}")), "repeated key"),
        case(
            "metadata twice",
            with(&format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},{w}}}"#)),
            "repeated key",
        ),
        case("bytes left over", safetensors_with(&format!("{{{w}}}"), &[0; 9]), exact),
        case("bytes missing", safetensors_with(&format!("{{{w}}}"), &[0; 7]), "within 7 bytes"),
        case(
            "hole",
            safetensors_with(&format!("{{{}}}", w.replace("[0,8]", "[8,16]")), &[0; 16]),
            exact,
        ),
        case(
            "overlap",
            safetensors_with(&format!("{{{w},{}}}", w.replace("\"w\"", "\"v\"")), &[0; 8]),
            exact,
        ),
        case("header of 100 MB and one byte", huge, "a header of 100000001 bytes"),
        case("item that is a number", with(r#"{"w":7}"#), json),
        case("no tensors", safetensors_with("{}", &[]), "tensors, found none"),
        case("header that ends early", with(&format!("{{{w}")), json),
        case("two headers", with(&format!("{{{w}}}{{{w}}}")), json),
        case("deep header", with(&format!("{{\"w\":{}", "[".repeat(5000))), json),
        case(
            "header longer than the file",
            {
                let mut file = with(&format!("{{{w}}}"));
                file[0] = 255;
                file
            },
            "a header of 255 bytes",
        ),
        case(
            "escape codes in a name",
            with(&format!("{{{}}}", w.replace("\"w\"", r#""\u001b[31m""#))),
            "printable ASCII",
        ),
        case("header too short", safetensors_with("{", &[]), json),
    ]
}

/// Safetensors headers whose tensors do not fit.
fn safe_shapes() -> Vec<Case> {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        safetensors_with(
            &format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#),
            &[0; 8],
        )
    };
    let exact = "a header that covers the file exactly";
    let json = "a JSON header with each name once";
    let ones = format!("[{}1]", "1,".repeat(40));
    let item = |i| format!(r#""{i}":{{"dtype":"F32","shape":[],"data_offsets":[0,0]}},"#);
    let many: String = (0..250_000).map(item).collect();
    vec![
        case("quarter of a million tensors", safetensors_with(&format!("{{{many}"), &[]), "keys"),
        case("offsets reversed", one("F32", "[2]", "[8,0]"), exact),
        case("offset of 2^64 - 1", one("F32", "[2]", "[0,18446744073709551615]"), "within 8 bytes"),
        case("negative offset", one("F32", "[2]", "[-8,0]"), json),
        case("three offsets", one("F32", "[2]", "[0,8,16]"), json),
        case("shape that does not fit", one("F32", "[3]", "[0,8]"), exact),
        case("shape past 2^64", one("F32", "[4294967296,4294967296,2]", "[0,8]"), exact),
        case("shape of 41 dimensions", one("F32", &ones, "[0,8]"), json),
        case("unknown type", one("F99", "[2]", "[0,8]"), exact),
        case("unsupported type", one("U32", "[2]", "[0,8]"), "of a supported type"),
        case("eight-bit float", one("F8_E4M3", "[8]", "[0,8]"), "of a supported type"),
        case("four-bit float", one("F4", "[16]", "[0,8]"), "of a supported type"),
    ]
}

/// Files that are something else.
fn others() -> Vec<Case> {
    let mut tar = vec![0u8; 1024];
    tar[..9].copy_from_slice(b"sys_info\0");
    tar[257..262].copy_from_slice(b"ustar");
    vec![
        case("7z", b"7z\xbc\xaf\x27\x1c\x00\x04aaaaaaaaaaaaaaaa".to_vec(), "a 7z archive"),
        case("tar", tar, "a tar archive"),
        case("GGUF", b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), "a GGUF file"),
        case("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\0".to_vec(), "a gzip file"),
        case("zstd", b"\x28\xb5\x2f\xfd\0\0\0\0\0\0".to_vec(), "a zstd file"),
        case("numpy", b"\x93NUMPY\x01\0v\0{'descr'".to_vec(), "a numpy file"),
        case("HDF5", b"\x89HDF\r\n\x1a\n\0\0\0\0".to_vec(), "an HDF5 file"),
        case("program", b"\x7fELF\x02\x01\x01\0\0\0".to_vec(), "a program"),
        case("pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "LFS"),
        case("web page", b"<!DOCTYPE html><html>".to_vec(), "a web page"),
        case("JSON", b"{\"error\": \"gated\"}".to_vec(), "a JSON file"),
        case("empty archive", zip(&[]), "an empty zip archive"),
        case("zeros", vec![0; 64], "a file that begins 00 00"),
        case("one byte", vec![0x80], "protocol 2 to 5"),
        case("script", b"#!/bin/sh\nrm -rf /\n".to_vec(), "a file that begins 23 21"),
    ]
}
