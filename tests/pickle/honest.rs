//! Unusual files that are as good as any, and what they hold.

use super::*;
use medflamingo::DType;

/// A label, the file, and its tensors: name, type, shape and bytes.
pub struct Honest {
    pub label: &'static str,
    pub file: Vec<u8>,
    pub tensors: Vec<(&'static str, DType, Vec<usize>, Vec<u8>)>,
}

fn bytes(elements: &[u8]) -> Vec<u8> {
    elements.iter().flat_map(|e| (0..4).map(move |i| e * 4 + i)).collect()
}

/// Every case.
pub fn cases() -> Vec<Honest> {
    [views(), types(), pickles(), containers()].into_iter().flatten().collect()
}

/// One tensor over storage `0`, whose sixteen bytes are 0 to 15.
fn tensor(label: &'static str, text: &str, dtype: DType, shape: &[usize], data: Vec<u8>) -> Honest {
    let file = torch_with(&asm(&format!("proto:2 }} ( s:w {text} u .")));
    Honest { label, file, tensors: vec![("w", dtype, shape.to_vec(), data)] }
}

/// Views of every kind over four floats.
fn views() -> Vec<Honest> {
    let float = storage("Float", "0", "i:4");
    let f32s = |label, offset, size, stride, shape: &[usize], elements: &[u8]| {
        tensor(label, &view(&float, offset, size, stride), DType::F32, shape, bytes(elements))
    };
    vec![
        f32s("view from an offset", "i:1", "i:2", "i:1", &[2], &[1, 2]),
        f32s("transposed", "i:0", "i:2 i:2", "i:1 i:2", &[2, 2], &[0, 2, 1, 3]),
        f32s("every other element", "i:1", "i:2", "i:2", &[2], &[1, 3]),
        f32s("scalar", "i:3", "", "", &[], &[3]),
        f32s("no elements", "i:4", "i:3 i:0", "i:1 i:1", &[3, 0], &[]),
        f32s("repeated rows", "i:0", "i:2 i:2", "i:0 i:1", &[2, 2], &[0, 1, 0, 1]),
        f32s("windows that overlap", "i:0", "i:3 i:2", "i:1 i:1", &[3, 2], &[0, 1, 1, 2, 2, 3]),
        f32s("strides of unit sizes", "i:0", "i:1 i:4", "i:99 i:1", &[1, 4], &[0, 1, 2, 3]),
    ]
}

/// Every element type.
fn types() -> Vec<Honest> {
    let of = |of: &str, numel: &str| storage(of, "0", numel);
    let i16s = |label, size, stride, shape: &[usize], data: &[u8]| {
        tensor(
            label,
            &view(&of("Short", "i:8"), "i:0", size, stride),
            DType::I16,
            shape,
            data.into(),
        )
    };
    vec![
        i16s("shorts", "i:2 i:2", "i:4 i:1", &[2, 2], &[0, 1, 2, 3, 8, 9, 10, 11]),
        tensor(
            "bool",
            &view(&of("Bool", "i:16"), "i:0", "i:2", "i:1"),
            DType::Bool,
            &[2],
            vec![0, 1],
        ),
        tensor(
            "bf16",
            &view(&of("BFloat16", "i:8"), "i:1", "i:1", "i:1"),
            DType::BF16,
            &[1],
            vec![2, 3],
        ),
        tensor(
            "f64",
            &view(&of("Double", "i:2"), "i:1", "", ""),
            DType::F64,
            &[],
            (8..16).collect(),
        ),
        tensor("i64", &view(&of("Long", "i:2"), "i:0", "", ""), DType::I64, &[], (0..8).collect()),
        tensor("i32", &view(&of("Int", "i:4"), "i:0", "", ""), DType::I32, &[], (0..4).collect()),
        tensor("i8", &view(&of("Char", "i:16"), "i:9", "", ""), DType::I8, &[], vec![9]),
        tensor("u8", &view(&of("Byte", "i:16"), "i:9", "", ""), DType::U8, &[], vec![9]),
        tensor("f16", &view(&of("Half", "i:8"), "i:7", "", ""), DType::F16, &[], vec![14, 15]),
    ]
}

/// Every way to write the same tensor.
fn pickles() -> Vec<Honest> {
    let float = storage("Float", "0", "i:4");
    let whole: Vec<u8> = (0..16).collect();
    let four = four();
    let parameter = format!(
        "c:torch._utils._rebuild_parameter ( {four} True c:collections.OrderedDict ) R t R"
    );
    let old = format!("c:torch._utils._rebuild_tensor ( {float} k:0 ( k:4 t ( k:1 t t R");
    let newer = format!(
        "c:torch._utils._rebuild_tensor_v2 ( {float} i:0 ( i:4 t ( i:1 t False \
         c:collections.OrderedDict ) R }} t R"
    );
    let sized = format!(
        "c:torch._utils._rebuild_tensor_v2 ( {float} i:0 c:torch.Size i:4 t1 t1 R i:1 t1 False \
         c:collections.OrderedDict ) R t R"
    );
    let metadata =
        format!("proto:2 c:collections.OrderedDict ) R ( s:w {four} u }} ( s:_metadata }} u b .");
    let others = format!(
        "proto:2 }} ( s:args c:torch.device s:cuda k:0 t2 R s:dtype c:torch.float32 s:lr float \
         s:rng long:0102030405060708090a s:model_state_dict }} ( s:w {four} u u ."
    );
    let frame4 = "proto:4 frame:3 } memo ( ss:w ss:torch._utils ss:_rebuild_tensor_v2 sg memo ( \
         ( ss:storage ss:torch ss:FloatStorage sg s8:0 ss:cpu k:4 t Q k:0 k:4 t1 k:1 t1 False \
         ss:collections ss:OrderedDict sg ) R t memo R memo u .";
    let popped = format!("proto:2 s:x pop ( k:1 k:2 popmark ( pop }} s:w {four} set .");
    let w = |label, text: &str| Honest {
        label,
        file: torch_with(&asm(text)),
        tensors: vec![("w", DType::F32, vec![4], whole.clone())],
    };
    vec![
        tensor("parameter", &parameter, DType::F32, &[4], whole.clone()),
        tensor("_rebuild_tensor", &old, DType::F32, &[4], whole.clone()),
        tensor("tensor with metadata", &newer, DType::F32, &[4], whole.clone()),
        tensor("torch.Size", &sized, DType::F32, &[4], whole.clone()),
        w("dict with _metadata", &metadata),
        w("training checkpoint", &others),
        w("protocol 4", frame4),
        w("protocol 5", &frame4.replace("proto:4", "proto:5")),
        w("values dropped", &popped),
    ]
}

fn containers() -> Vec<Honest> {
    let whole: Vec<u8> = (0..16).collect();
    let w = |label, file| Honest {
        label,
        file,
        tensors: vec![("w", DType::F32, vec![4], whole.clone())],
    };
    let mut no_byteorder = parts(&one(&four()));
    no_byteorder.remove(1);
    let mut newer = parts(&one(&four()));
    newer.push(member("archive/.data/serialization_id", b"0123456789"));
    let renamed: Vec<Member> = parts(&one(&four()))
        .into_iter()
        .map(|m| {
            let name = String::from_utf8(m.name.clone()).unwrap().replace("archive/", "模型 1/");
            Member { name: name.clone().into(), local_name: name.into(), ..m }
        })
        .collect();
    let id = |view: &str| format!("( s:storage c:torch.FloatStorage s:9 s:cpu i:6 {view} t Q");
    let legacy = |id: &str| {
        let dict = format!("}} ( s:w {} u", view(id, "i:0", "i:4", "i:1"));
        let data: Vec<u8> = (252..=255).chain(0..20).collect();
        legacy_with(&dict, "] s:9 a", &[(6, &data)])
    };
    let module = format!("c:__torch__.M ) new }} ( s:training True s:w {} s:none None u b", four());
    let nested = format!("c:__torch__.P ) new }} ( s:a {module} s:b {module} u b");
    let typed = format!(
        "c:__torch__.M ) new }} ( s:dims c:torch.jit._pickle.build_intlist ] k:3 a t1 R s:names \
         c:torch.jit._pickle.restore_type_tag }} s:Dict t2 R s:w {} u b",
        four()
    );
    let script = |text: &str| script_with(&asm(&format!("proto:2 {text} .")));
    let pair = |name| (name, DType::F32, vec![4], whole.clone());
    vec![
        w("no byteorder", zip(&no_byteorder)),
        w("serialization id", zip(&newer)),
        w("root that is not ASCII", zip(&renamed)),
        w("view of a legacy storage", legacy(&id("( s:v i:1 i:4 t"))),
        w("module", script(&module)),
        w("module with typed lists", script(&typed)),
        Honest {
            label: "nested modules",
            file: script(&nested),
            tensors: vec![pair("a.w"), pair("b.w")],
        },
    ]
}
