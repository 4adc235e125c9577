//! Names for what runs, given to a profiler that listens (Nsight Systems, Nsight Compute).
//!
//! NVTX has no library to link: a profiler names its own in `NVTX_INJECTION64_PATH`, the program
//! loads that and calls its `InitializeInjectionNvtx2`, which asks back for tables of function
//! pointers and fills in those it implements. Layouts and numbers are those of `nvtxTypes.h` in
//! NVTX 3. Without the variable nothing is loaded and a name costs one comparison.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Functions of the modules 1 to 6 (core, cuda, opencl, cudart, core2, sync), with the unused 0.
const SIZES: [usize; 6] = [16, 9, 15, 7, 16, 7];
/// Of the core module.
const RANGE_PUSH: usize = 9;
const RANGE_POP: usize = 11;

struct Table {
    /// What the profiler fills in.
    functions: Vec<AtomicPtr<c_void>>,
    /// Addresses of those, in order, null at both ends.
    slots: Vec<AtomicPtr<AtomicPtr<c_void>>>,
}

fn tables() -> &'static [Table; 6] {
    static TABLES: OnceLock<[Table; 6]> = OnceLock::new();
    TABLES.get_or_init(|| {
        SIZES.map(|size| {
            let functions: Vec<_> = (0..size).map(|_| AtomicPtr::new(null_mut())).collect();
            let address = |i: usize| match functions.get(i) {
                Some(f) if i > 0 => std::ptr::from_ref(f).cast_mut(),
                _ => null_mut(),
            };
            let slots = (0..=size).map(|i| AtomicPtr::new(address(i))).collect();
            Table { functions, slots }
        })
    })
}

#[repr(C)]
struct Callbacks {
    bytes: usize,
    module: unsafe extern "C" fn(c_uint, *mut *const c_void, *mut c_uint) -> c_int,
}

#[repr(C)]
struct Version {
    bytes: usize,
    version: u32,
    reserved: u32,
    set_tool: extern "C" fn(u32),
}

extern "C" fn set_tool(_version: u32) {}

static CALLBACKS: Callbacks = Callbacks { bytes: size_of::<Callbacks>(), module };
static VERSION: Version =
    Version { bytes: size_of::<Version>(), version: 3, reserved: 0, set_tool };

/// Hands out the table of a module: 1 if there is one.
unsafe extern "C" fn module(id: c_uint, table: *mut *const c_void, size: *mut c_uint) -> c_int {
    let Some(found) = (id as usize).checked_sub(1).and_then(|i| tables().get(i)) else { return 0 };
    // SAFETY: the profiler passes where it wants the answers, or null.
    unsafe {
        if !size.is_null() {
            *size = found.functions.len() as c_uint;
        }
        if !table.is_null() {
            *table = found.slots.as_ptr().cast();
        }
    }
    1
}

extern "C" fn export(id: u32) -> *const c_void {
    match id {
        1 => std::ptr::from_ref(&CALLBACKS).cast(),
        3 => std::ptr::from_ref(&VERSION).cast(),
        _ => null(),
    }
}

type Export = extern "C" fn(u32) -> *const c_void;
type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;

struct Listener {
    push: Push,
    pop: Pop,
}

fn listener() -> Option<&'static Listener> {
    static LISTENER: OnceLock<Option<Listener>> = OnceLock::new();
    LISTENER.get_or_init(load).as_ref()
}

fn load() -> Option<Listener> {
    let path = std::env::var_os("NVTX_INJECTION64_PATH")?;
    let path = CString::new(path.as_bytes()).ok()?;
    // SAFETY: the user's profiler named its library, which is made for this call and stays loaded.
    let is_ready = unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_LAZY);
        let start = (!library.is_null())
            .then(|| libc::dlsym(library, c"InitializeInjectionNvtx2".as_ptr()))
            .filter(|start| !start.is_null())?;
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn(Export) -> c_int>(start)(export)
    };
    let core = &tables()[0].functions;
    let function = |i: usize| core[i].load(Ordering::Acquire);
    let (push, pop) = (function(RANGE_PUSH), function(RANGE_POP));
    if is_ready == 0 || push.is_null() || pop.is_null() {
        return None;
    }
    // SAFETY: the profiler filled in functions of these types.
    unsafe {
        let push = std::mem::transmute::<*mut c_void, Push>(push);
        Some(Listener { push, pop: std::mem::transmute::<*mut c_void, Pop>(pop) })
    }
}

/// True if a profiler listens.
pub(super) fn is_heard() -> bool {
    listener().is_some()
}

/// What runs from here to the matching [`pop`] is `name`.
pub(super) fn push(name: &str) {
    if let (Some(listener), Ok(name)) = (listener(), CString::new(name)) {
        // SAFETY: the profiler's function copies the text.
        unsafe { (listener.push)(name.as_ptr()) };
    }
}

/// Ends what the last [`push`] began.
pub(super) fn pop() {
    if let Some(listener) = listener() {
        // SAFETY: the profiler's function; it has no arguments.
        unsafe { (listener.pop)() };
    }
}
