//! Files made to harm or to confuse, and what must be said about each.

use super::*;

/// A label, the file, and a piece of the message that refuses it.
pub struct Case {
    pub label: String,
    pub file: Vec<u8>,
    pub says: &'static str,
}

pub fn case(label: &str, file: Vec<u8>, says: &'static str) -> Case {
    Case { label: label.into(), file, says }
}

/// Every hostile or broken file of this suite.
pub fn cases() -> Vec<Case> {
    let in_archive = |label: &str, text: &str, says| case(label, torch_with(&asm(text)), says);
    let mut all = Vec::new();
    for name in CALLED {
        all.push(in_archive(name, &format!("proto:2 c:{name} ( s:id t R ."), LIST));
    }
    for (label, text, says) in [CALLS, BUILDS, MACHINE, DICTS].concat() {
        all.push(in_archive(label, text, says));
    }
    let four = storage("Float", "0", "i:4");
    for (label, offset, size, stride, says) in VIEWS {
        all.push(case(label, torch_with(&one(&view(&four, offset, size, stride))), says));
    }
    let many = "i:1 ".repeat(33);
    let deep = one(&view(&four, "i:0", &many, &many));
    all.push(case("33 dimensions", torch_with(&deep), "at most 32 numbers"));
    for (label, id, says) in IDS {
        let tensor = view(&format!("{id} Q"), "i:0", "i:4", "i:1");
        all.push(case(label, torch_with(&one(&tensor)), says));
    }
    all.extend(bombs());
    all.extend(containers::cases());
    all
}

/// A label, the pickle, and what must be said.
type Text = (&'static str, &'static str, &'static str);

const LIST: &str = "only names that a state dict needs";

/// Names that run something, build something else, or are merely not on the list.
const CALLED: &[&str] = &[
    "os.system",
    "posix.system",
    "nt.system",
    "subprocess.Popen",
    "subprocess.check_output",
    "builtins.eval",
    "builtins.exec",
    "builtins.getattr",
    "builtins.__import__",
    "builtins.set",
    "__builtin__.eval",
    "__builtin__.compile",
    "pkgutil.resolve_name",
    "importlib.import_module",
    "runpy._run_code",
    "pickle.loads",
    "marshal.loads",
    "types.FunctionType",
    "ctypes.CDLL",
    "socket.create_connection",
    "webbrowser.open",
    "shutil.rmtree",
    "operator.attrgetter",
    "functools.partial",
    "_codecs.encode",
    "copyreg._reconstructor",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "argparse.Namespace",
    "torch.load",
    "torch.hub.load",
    "torch.storage._load_from_bytes",
    "torch.storage.UntypedStorage",
    "torch.UntypedStorage",
    "torch.ComplexFloatStorage",
    "torch.QInt8Storage",
    "torch.serialization._get_layout",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_wrapper_subclass",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._tensor._rebuild_from_type_v2",
    "torch.nn.modules.linear.Linear",
    "torch.jit._pickle.restore_type_tag",
    "__torch__.Evil",
    "collections.OrderedDict.update",
    "collections.defaultdict",
];

/// Pickles that would run something if anything were run.
const CALLS: &[Text] = &[
    ("stack global of built strings", "proto:4 ss:os ss:system sg ss:id t1 R .", "`os.system`"),
    ("stack global out of the memo", "proto:4 ss:system memo pop ss:os memo h:0 sg ) R .", LIST),
    ("stack global of tuples", "proto:4 ) ) sg .", "two strings"),
    ("stack global with a dotted name", "proto:4 ss:torch ss:_utils.os.system sg .", LIST),
    ("name with a line break", "proto:4 ss:torch x:8c0d53746f726167650a666c6f6174 sg .", "\\n"),
    ("call hidden in an ignored entry", "proto:2 } ( s:epoch c:os.system ( s:id t R u .", LIST),
    ("call before an honest pickle", "proto:2 c:os.system ( s:id t R pop } .", LIST),
    ("call of a called value", "proto:2 c:collections.OrderedDict ) R ) R .", "a global name"),
    ("call of a string", "proto:2 s:os.system ) R .", "a global name to rebuild"),
    ("call with a list", "proto:2 c:collections.OrderedDict ] R .", "a tuple of arguments"),
    ("call with a number", "proto:2 c:collections.OrderedDict k:1 R .", "a tuple of arguments"),
    ("ordered dict with arguments", "proto:2 c:collections.OrderedDict ] t1 R .", "arguments"),
    ("call of a storage type", "proto:2 c:torch.FloatStorage k:9 t1 R .", "arguments"),
    ("new tensor", "proto:2 c:torch._utils._rebuild_tensor_v2 ) new .", "NEWOBJ of TensorV2"),
];

/// Attributes set on what has none.
const BUILDS: &[Text] = &[
    ("setstate on a dict", "proto:2 } } ( s:__setstate__ c:torch.Size u b .", "`__setstate__`"),
    ("class on a dict", "proto:2 } } ( s:__class__ s:x u b .", "attribute `__class__`"),
    ("two attributes", "proto:2 } } ( s:_metadata } s:x } u b .", "attribute `_metadata`"),
    ("number as attribute", "proto:2 } } ( k:1 } u b .", "without a name"),
    ("state of a tuple", "proto:2 ) } b .", "a dict or a new module for BUILD"),
    ("state of a string", "proto:2 s:x } b .", "a container to fill"),
    ("tuple as state", "proto:2 } None } t2 b .", "a dict of attributes for BUILD"),
    ("state of a global", "proto:2 c:torch.Size } b .", "a container to fill"),
    ("state without a target", "proto:2 } b .", "a value on the stack"),
];

const ONLY: &str = "only opcodes that torch.save writes";
const CUT: &str = "more of the pickle";

/// Opcodes out of place.
const MACHINE: &[Text] = &[
    ("INST", "proto:2 ( x:696f730a73797374656d0a .", "INST"),
    ("OBJ", "proto:2 ( c:torch.Size x:6f .", "OBJ"),
    ("EXT1", "proto:2 x:8201 .", "EXT"),
    ("EXT2", "proto:2 x:830100 .", "EXT"),
    ("EXT4", "proto:2 x:8401000000 .", "EXT"),
    ("PERSID", "proto:2 x:50300a .", "PERSID"),
    ("NEWOBJ_EX", "proto:4 c:torch.Size ) } x:92 .", "NEWOBJ_EX"),
    ("DUP", "proto:2 ) x:32 .", "DUP"),
    ("INT of protocol 0", "proto:2 x:49310a .", "protocol 0"),
    ("STRING of protocol 0", "proto:2 x:5327780a .", "protocol 0"),
    ("UNICODE of protocol 0", "proto:2 x:56780a .", "protocol 0"),
    ("GET of protocol 0", "proto:2 x:67300a .", "protocol 0"),
    ("DICT of protocol 0", "proto:2 ( x:64 .", "protocol 0"),
    ("LIST of protocol 0", "proto:2 ( x:6c .", "protocol 0"),
    ("BINSTRING", "proto:2 x:550178 .", "byte string"),
    ("SHORT_BINBYTES", "proto:3 x:430178 .", "byte string"),
    ("BYTEARRAY8", "proto:5 x:96010000000000000078 .", "byte string"),
    ("NEXT_BUFFER", "proto:5 x:97 .", "out-of-band"),
    ("READONLY_BUFFER", "proto:5 ) x:98 .", "out-of-band"),
    ("EMPTY_SET", "proto:4 x:8f .", "a set"),
    ("FROZENSET", "proto:4 ( x:91 .", "a set"),
    ("LONG4", "proto:2 x:8b0400000001000000 .", "LONG4"),
    ("unknown opcode", "proto:2 x:ff .", ONLY),
    ("zero opcode", "proto:2 x:00 .", ONLY),
    ("nested PROTO", "proto:2 } proto:2 .", "PROTO inside"),
    ("protocol 0", "proto:0 } .", "protocol 2 to 5"),
    ("protocol 1", "proto:1 } .", "protocol 2 to 5"),
    ("protocol 6", "proto:6 } .", "protocol 2 to 5"),
    ("no protocol", "} .", "protocol 2 to 5"),
    ("empty pickle", "", "protocol 2 to 5"),
    ("protocol only", "proto:2", CUT),
    ("no STOP", "proto:2 }", CUT),
    ("STOP on nothing", "proto:2 .", "a value on the stack"),
    ("STOP with two values", "proto:2 } } .", "one value at STOP"),
    ("STOP above a mark", "proto:2 ( } .", "one value at STOP"),
    ("STOP behind a mark", "proto:2 } ( .", "a value on the stack"),
    ("second pickle", "proto:2 } . proto:2 } .", "the end of the pickle after STOP"),
    ("zeros after STOP", "proto:2 } . x:0000", "the end of the pickle after STOP"),
    ("cut in a string", "proto:2 x:580a000000616263", CUT),
    ("cut in a number", "proto:2 x:4a0102", CUT),
    ("cut in a long", "proto:2 x:8a08ff", CUT),
    ("cut in a float", "proto:2 x:470102", CUT),
    ("cut in a global", "proto:2 x:63746f726368", "ended by a newline"),
    ("string of 4 GiB", "proto:2 x:58ffffffff", "a string of at most"),
    ("string of 2^63", "proto:4 x:8dffffffffffffff7f", "a string of at most"),
    ("string that is not UTF-8", "proto:2 x:5802000000c328 .", "UTF-8"),
    ("global that is not UTF-8", "proto:2 x:63c3280a780a .", "UTF-8"),
    ("frame beyond the end", "proto:4 frame:100 } .", "a frame of 100 bytes"),
    ("frame of 2^64 - 1", "proto:4 frame:18446744073709551615 } .", "a frame of"),
    ("memo never filled", "proto:2 h:7 .", "a memo slot that was filled"),
    ("long memo never filled", "proto:2 j:4000000000 .", "a memo slot that was filled"),
    ("memo of nothing", "proto:2 q:0 .", "a value on the stack"),
    ("tuple without mark", "proto:2 t .", "a MARK"),
    ("pop to no mark", "proto:2 popmark .", "a MARK"),
    ("pair of one", "proto:2 k:1 t2 .", "a value on the stack"),
    ("triple across a mark", "proto:2 k:1 k:2 ( k:3 t3 .", "a value on the stack"),
    ("append to a dict", "proto:2 } k:1 a .", "a list to append to"),
    ("set in a list", "proto:2 ] k:1 k:2 set .", "a dict to set pairs in"),
    ("key without value", "proto:2 } ( k:1 u .", "a dict to set pairs in"),
    ("items into a string", "proto:2 s:x ( k:1 e .", "a container to fill"),
    ("items into nothing", "proto:2 ( k:1 e .", "a value on the stack"),
    ("append across a mark", "proto:2 ] ( a .", "a value on the stack"),
];

const OUTSIDE: &str = "a view inside its storage";

/// Views that reach outside their four elements: offset, size, stride.
const VIEWS: &[(&str, &str, &str, &str, &str)] = &[
    ("one element too many", "i:0", "i:5", "i:1", OUTSIDE),
    ("offset past the end", "i:4", "i:1", "i:1", OUTSIDE),
    ("scalar past the end", "i:4", "", "", OUTSIDE),
    ("stride past the end", "i:0", "i:2", "i:4", OUTSIDE),
    ("empty tensor past the end", "i:5", "i:0", "i:1", OUTSIDE),
    ("negative offset", "i:-1", "i:1", "i:1", "a storage offset of 0 or more"),
    ("negative size", "i:0", "i:-4", "i:1", "a size of 0 or more"),
    ("negative stride", "i:3", "i:4", "i:-1", "a stride of 0 or more"),
    ("offset of 2^62", "long:0000000000000040", "i:1", "i:1", OUTSIDE),
    ("offset of 2^64", "long:000000000000000001", "i:1", "i:1", "an integer of 9 bytes"),
    ("size times stride wraps", "i:0", "long:ffffffffffffff3f", "i:4", OUTSIDE),
    ("sizes multiply past 2^64", "i:0", "i:2147483647 i:2147483647 i:99", "i:0 i:0 i:0", "64 bits"),
    ("one element repeated 2^31 times", "i:0", "i:2147483647", "i:0", "at most the 4 elements"),
    ("fewer strides than sizes", "i:0", "i:2 i:2", "i:2", "one stride per dimension"),
    ("size that is text", "i:0", "s:4", "i:1", "a size of 0 or more"),
    ("size that is a bool", "i:0", "True", "i:1", "a size of 0 or more"),
    ("offset that is None", "None", "i:4", "i:1", "a storage offset"),
];

const ID: &str = "the persistent id (\"storage\"";

/// Storages that are not in the file as they are declared.
const IDS: &[Text] = &[
    ("id of four items", "( s:storage c:torch.FloatStorage s:0 s:cpu t", ID),
    ("id of no items", ")", ID),
    ("id of seven items", "( s:storage c:torch.FloatStorage s:0 s:cpu i:4 None None t", ID),
    ("id that is text", "s:0", "a persistent id tuple"),
    ("id that is a list", "]", "a persistent id tuple"),
    ("id of a module", "( s:module c:torch.FloatStorage s:0 s:cpu i:4 t", ID),
    ("id with a number as key", "( s:storage c:torch.FloatStorage k:0 s:cpu i:4 t", ID),
    ("id with text as type", "( s:storage s:FloatStorage s:0 s:cpu i:4 t", "a storage type"),
    ("id with a dict as type", "( s:storage c:collections.OrderedDict s:0 s:cpu i:4 t", "type"),
    ("id with a path as key", "( s:storage c:torch.FloatStorage s:../../etc s:cpu i:4 t", "none"),
    ("id with negative numel", "( s:storage c:torch.FloatStorage s:0 s:cpu i:-4 t", "a numel of"),
    (
        "id with numel times size past 2^64",
        "( s:storage c:torch.FloatStorage s:0 s:cpu long:ffffffffffffff7f t",
        "inside 9223372036854775807 elements",
    ),
    (
        "numel larger than the member",
        "( s:storage c:torch.FloatStorage s:0 s:cpu i:8 t",
        "32 bytes",
    ),
    ("type wider than the member", "( s:storage c:torch.DoubleStorage s:0 s:cpu i:4 t", "32 bytes"),
    ("storage that is missing", "( s:storage c:torch.FloatStorage s:7 s:cpu i:4 t", "none"),
    (
        "view of a storage past its end",
        "( s:storage c:torch.FloatStorage s:0 s:cpu i:4 ( s:v i:2 i:3 t t",
        "a storage view inside 4",
    ),
];

/// Dicts that are no state dict, and tensors that are no tensors.
const DICTS: &[Text] = &[
    ("one storage with two types", "proto:2 } ( s:a @w s:b @half u .", "one type"),
    ("one name twice", "proto:2 } ( s:a @w s:a @w u .", "each once"),
    ("tensor under a number", "proto:2 } ( k:1 @w u .", "tensors named by text"),
    ("tensor with no name", "proto:2 } ( x:5800000000 @w u .", "printable ASCII"),
    ("escape codes in a name", "proto:2 } ( x:58020000001b5b @w u .", "u{1b}"),
    ("line break in a name", "proto:2 } ( x:5803000000610a62 @w u .", "a\\nb"),
    ("name of 2000 letters", "proto:2 } ( @name2000 @w u .", "1 to 1024"),
    ("bare tensor", "proto:2 @w .", "a dict of tensors, found tensor"),
    ("list of tensors", "proto:2 ] @w a .", "found list"),
    ("nothing", "proto:2 None .", "found None"),
    ("number", "proto:2 k:7 .", "found int"),
    ("empty dict", "proto:2 } .", "none among []"),
    ("dict without tensors", "proto:2 } ( s:lr float u .", "none among [lr]"),
    (
        "two models",
        "proto:2 } ( s:model_state_dict } s:a @w set s:state_dict } s:a @w set u .",
        "one of model_state_dict and state_dict",
    ),
    (
        "the model twice",
        "proto:2 } ( s:state_dict } s:a @w set s:state_dict } s:b @w set u .",
        "one of model_state_dict and state_dict",
    ),
    ("empty model", "proto:2 } s:state_dict } set .", "none among []"),
    (
        "parameter of a number",
        "proto:2 c:torch._utils._rebuild_parameter ( k:1 True } t R .",
        "a tensor in _rebuild_parameter",
    ),
    (
        "tensor without a storage",
        "proto:2 c:torch._utils._rebuild_tensor ( k:0 k:0 ) ) t R .",
        "a storage as first argument",
    ),
    (
        "tensor with five arguments",
        "proto:2 c:torch._utils._rebuild_tensor_v2 ( k:0 k:0 ) ) True t R .",
        "with 5",
    ),
    (
        "tensor with nine arguments",
        "proto:2 c:torch._utils._rebuild_tensor_v2 ( k:0 k:0 ) ) True ) ) ) ) t R .",
        "with 9",
    ),
];

/// Small files that would grow large, or deep, or slow.
fn bombs() -> Vec<Case> {
    let pickled = |body: Vec<u8>| {
        let mut all = asm("proto:4");
        all.extend(body);
        torch_with(&all)
    };
    let repeat = |unit: &[u8], n: usize| unit.repeat(n);
    let mut laughs = asm("( s:lol t q:0");
    for i in 0..64 {
        laughs.extend([b'0', b'('].iter().chain(&[b'h', i].repeat(10)));
        laughs.extend([b't', b'q', i + 1]);
    }
    laughs.push(b'.');
    let mut slots = asm(")");
    for i in 0..1_000_001u32 {
        slots.push(b'r');
        slots.extend(i.to_le_bytes());
    }
    let long_line = [b"c".to_vec(), repeat(b"a", 5000), b"\nx\n.".to_vec()].concat();
    let wide = [b"}(".to_vec(), repeat(b"\x8c\x01kN", 30_000), b"u.".to_vec()].concat();
    let rebuilt = asm(&format!("{} q:0 pop", storage("Float", "0", "i:4")));
    let many = [rebuilt, b"ctorch._utils\n_rebuild_tensor\n(h\0K\0))tq\x01".to_vec()].concat();
    let many =
        [many, repeat(b"00", 1), b"ctorch._utils\n_rebuild_tensor\nq\x020".to_vec()].concat();
    let many = [many, repeat(b"h\x02h\x01R0", 200_000), b"}.".to_vec()].concat();
    vec![
        case("billion laughs", pickled(laughs), "nesting of at most 64"),
        case("nested marks", pickled(repeat(b"(", 100_000)), "nesting of at most 64"),
        case("nested lists", pickled([repeat(b"]", 100), repeat(b"a", 99)].concat()), "nesting"),
        case("nested tuples", pickled([b")".to_vec(), repeat(b"\x85", 100)].concat()), "nesting"),
        case(
            "nested dicts",
            pickled([repeat(b"}K\x01", 100), b"}".to_vec(), repeat(b"s", 100)].concat()),
            "nesting",
        ),
        case("stack of two million", pickled(repeat(b"N", 2_000_000)), "a stack of at most"),
        case("memo of a million", pickled(slots), "memo slots"),
        case("three million lists", pickled(repeat(b"]0", 3_000_000)), "at most 2000000 values"),
        case(
            "tuples of one slot",
            pickled([b")q\x00".to_vec(), repeat(b"(h\0h\0h\0h\0h\0h\0h\0h\0t0", 300_000)].concat()),
            "values",
        ),
        case("two hundred thousand tensors", pickled(many), "values"),
        case("global of 5000 letters", pickled(long_line), "ended by a newline"),
        case("thirty thousand repeated keys", pickled(wide), "at most 20000 entries"),
    ]
}
