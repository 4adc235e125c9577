//! The emulator finds what it is there to find: each kernel of `tests/simt/planted` has one bug if
//! it is told to, and the message says which kernel, block, thread and line; without it, it passes.

use medflamingo::device::{Buffer, Geometry, Simt, Stream, Swizzle, TensorMap};
use std::path::Path;
use std::sync::OnceLock;

#[repr(C)]
struct Params {
    y: *mut u8,
    x: *const u8,
    wrong: i32,
    reserved: i32,
}

fn planted() -> &'static Simt {
    static PLANTED: OnceLock<Simt> = OnceLock::new();
    PLANTED.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simt/planted");
        let files = ["barriers.cu", "bounds.cu", "hopper.cu", "layouts.cu", "races.cu"];
        Simt::compile(&files.map(|f| folder.join(f))).unwrap()
    })
}

fn buffer(stream: &Stream, values: &[f32]) -> Buffer {
    stream.upload(bytemuck::cast_slice(values)).unwrap()
}

fn geometry(threads: u32, shared: u32) -> Geometry {
    Geometry { shared, ..Geometry::linear(2, threads) }
}

fn run(entry: &str, geometry: &Geometry, wrong: i32) -> Result<(), String> {
    let stream = Stream::host(1);
    let (y, x) = (buffer(&stream, &[0.0; 256]), buffer(&stream, &[1.0; 256]));
    let params = Params { y: y.ptr(), x: x.ptr(), wrong, reserved: 0 };
    // SAFETY: both buffers are as long as the kernels expect; the bugs are caught before they act.
    unsafe { planted().launch(entry, geometry, &params) }.map_err(|e| e.to_string())
}

/// Passes as it should be; if wrong, fails with a message that has all of `words`.
fn catches(entry: &str, shared: u32, words: &[&str]) {
    let geometry = geometry(64, shared);
    assert_eq!(run(entry, &geometry, 0), Ok(()), "{entry}");
    let message = run(entry, &geometry, 1).expect_err(entry);
    for word in [entry, "block (", "thread"].iter().chain(words) {
        assert!(message.contains(word), "{entry}: no `{word}` in: {message}");
    }
}

#[test]
fn barriers_that_not_all_reach() {
    catches("divergent_barrier", 0, &["divergent __syncthreads", "barriers.cu:"]);
    catches("barrier_after_return", 0, &["__syncthreads", "1 have returned", "barriers.cu:"]);
    catches("wrong_mask", 0, &["0000ffff", "lane 16", "barriers.cu:"]);
    catches("lanes_apart", 0, &["__shfl_sync", "__syncwarp", "barriers.cu:"]);
    catches("lane_gone", 0, &["cannot go on", "__shfl_xor_sync", "barriers.cu:"]);
    catches("named_too_few", 0, &["cannot go on", "a named barrier", "barriers.cu:"]);
}

#[test]
fn races() {
    catches("read_without_barrier", 256, &["race: read", "wrote", "races.cu:"]);
    catches("write_after_read", 256, &["race: ", "without a barrier", "races.cu:"]);
    catches("two_writers", 256, &["race: write", "wrote", "races.cu:"]);
    catches("atomic_without_barrier", 256, &["race: atomic", "wrote", "races.cu:"]);
    catches("missing_syncwarp", 256, &["race: read", "wrote", "races.cu:"]);
    catches("unwritten", 256, &["shared byte 28", "nobody has written", "thread 7", "races.cu:"]);
    catches("missing_wait", 256, &["copy is in flight", "races.cu:"]);
}

#[test]
fn accesses_out_of_bounds() {
    catches("shared_beyond", 256, &["at 256 of 256 bytes of shared", "thread 63", "bounds.cu:"]);
    catches("static_beyond", 0, &["out of bounds", "thread 63", "bounds.cu:"]);
    catches("shared_too_small", 256, &["512 bytes", "launch has 256", "bounds.cu:"]);
    catches("read_beyond", 0, &["read of 4 bytes at 1024 of a buffer of 1024", "bounds.cu:"]);
    catches("write_beyond", 0, &["write of 4 bytes at 1024 of a buffer", "bounds.cu:"]);
    catches("write_before", 0, &["write of 4 bytes", "thread 0", "bounds.cu:"]);
    catches("misaligned_pack", 0, &["misaligned", "thread 0", "bounds.cu:"]);
    catches("misaligned_copy", 256, &["misaligned", "thread 0", "bounds.cu:"]);
}

/// Memory that the system hands out in a row: beyond the end of one buffer another would begin.
#[test]
fn accesses_beyond_whole_pages() {
    let stream = Stream::host(1);
    let y = buffer(&stream, &[0.0; 256]);
    let pages: Vec<Buffer> = (0..8).map(|_| stream.zeros(4096).unwrap()).collect();
    for x in &pages {
        let last = x.ptr().wrapping_add(4096 - 1024);
        for (wrong, is_caught) in [(0, false), (1, true)] {
            let params = Params { y: y.ptr(), x: last, wrong, reserved: 0 };
            // SAFETY: y is as long as the kernel expects, x ends where it may at most read.
            let result = unsafe { planted().launch("read_beyond", &geometry(64, 0), &params) };
            assert_eq!(result.is_err(), is_caught, "{result:?}");
            let message = result.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(!is_caught || message.contains("at 4096 of a buffer of 4096"), "{message}");
        }
    }
}

#[test]
fn a_tile_product_is_the_matrix_product() {
    let values = (0..384).map(|i| ((i * 7 + i / 16) % 13) as f32 - 6.0).collect();
    multiplies("tile_product", 16, 2, values);
    let bytes = (0..768).map(|i| ((i * 37 + i / 32) % 256) as f32 - 128.0).collect();
    multiplies("byte_product", 32, 1, bytes);
}

/// Y (16,8) = A (16,k) B (8,k)^T of elements of so many bytes; `values` are A's, then B's.
fn multiplies(entry: &str, k: usize, bytes: usize, values: Vec<f32>) {
    let stream = Stream::host(1);
    let (y, x) = (buffer(&stream, &[0.0; 128]), buffer(&stream, &values));
    let params = Params { y: y.ptr(), x: x.ptr(), wrong: 0, reserved: 0 };
    let geometry = Geometry { shared: (24 * k * bytes) as u32, ..Geometry::linear(1, 32) };
    // SAFETY: the buffers are as long as the kernel expects.
    unsafe { planted().launch(entry, &geometry, &params) }.unwrap();
    let bytes = y.read().unwrap();
    let got: &[f32] = bytemuck::cast_slice(&bytes);
    for (i, got) in got.iter().enumerate() {
        let (a, b) = (&values[i / 8 * k..][..k], &values[16 * k + i % 8 * k..][..k]);
        let want: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
        assert_eq!(*got, want, "{entry} cell {i}");
    }
}

/// (rows,64) in boxes of `tile_rows`, or as many as there are.
fn map(buffer: &Buffer, rows: usize, tile_rows: u32) -> Option<TensorMap> {
    Some(TensorMap {
        address: buffer.ptr().cast_const().cast(),
        sizes: [64, rows as u64],
        stride: 128,
        tile: [64, tile_rows],
        swizzle: Swizzle::Bytes128,
    })
}

/// `value(i)` for every cell of (rows,64).
fn matrix(stream: &Stream, rows: usize, value: impl Fn(usize) -> f32) -> Buffer {
    let bits = (0..rows * 64).map(|i| half::bf16::from_f32(value(i)));
    stream.upload(bytemuck::cast_slice(&bits.collect::<Vec<_>>())).unwrap()
}

/// A (rows,64) is smaller than its box: what is outside is zero.
fn warpgroup(wrong: i32) -> Result<(), String> {
    let stream = Stream::host(1);
    let (rows, width) = (60, 64);
    let value = |i: usize| ((i * 5 + i / 64) % 11) as f32 - 5.0;
    let (a, b) = (matrix(&stream, rows, value), matrix(&stream, 64, |i| value(i + 3)));
    let y = buffer(&stream, &[9.0; 64 * 64]);
    let maps = [map(&a, rows, 64), map(&b, 64, 64), None, None];
    let shared = 2 * 64 * 64 * 2 + 8;
    let geometry = Geometry { shared, maps, ..Geometry::linear(1, 128) };
    let params = Params { y: y.ptr(), x: a.ptr(), wrong, reserved: 0 };
    // SAFETY: the buffers are as long as the kernel expects.
    unsafe { planted().launch("warpgroup_product", &geometry, &params) }
        .map_err(|e| e.to_string())?;
    let bytes = y.read().unwrap();
    let got: &[f32] = bytemuck::cast_slice(&bytes);
    for (i, got) in got.iter().enumerate() {
        let (row, column) = (i / 64, i % 64);
        let a = |k: usize| if row < rows { value(row * width + k) } else { 0.0 };
        let want: f32 = (0..width).map(|k| a(k) * value(column * width + k + 3)).sum();
        assert_eq!(*got, want, "cell ({row}, {column})");
    }
    Ok(())
}

#[test]
fn a_warpgroup_product_is_the_matrix_product() {
    assert_eq!(warpgroup(0), Ok(()));
}

/// Y (60,64) is smaller than what is copied: nothing is written outside.
fn register_product(wrong: i32) -> Result<(), String> {
    let stream = Stream::host(1);
    let value = |i: usize| ((i * 5 + i / 64) % 3) as f32 - 1.0;
    let (a, b) = (matrix(&stream, 64, value), matrix(&stream, 64, |i| value(i + i / 128)));
    let y = matrix(&stream, 64, |_| 99.0);
    let maps = [map(&a, 64, 64), map(&b, 64, 64), map(&y, 60, 16), None];
    let shared = 2 * 64 * 64 * 2 + 8;
    let geometry = Geometry { shared, maps, ..Geometry::linear(1, 128) };
    let params = Params { y: y.ptr(), x: a.ptr(), wrong, reserved: 0 };
    // SAFETY: the buffers are as long as the kernel expects.
    unsafe { planted().launch("register_product", &geometry, &params) }
        .map_err(|e| e.to_string())?;
    let bytes = y.read().unwrap();
    for (i, got) in bytemuck::cast_slice::<u8, half::bf16>(&bytes).iter().enumerate() {
        let (row, column) = (i / 64, i % 64);
        let b = |k: usize| value(k * 64 + column + (k * 64 + column) / 128);
        let product = (0..64).map(|k| value(row * 64 + k) * b(k)).sum();
        let want = if row < 60 { product } else { 99.0 };
        assert_eq!(got.to_f32(), want, "cell ({row}, {column})");
    }
    Ok(())
}

#[test]
fn a_warpgroup_product_out_of_registers_is_the_matrix_product() {
    assert_eq!(register_product(0), Ok(()));
    let message = register_product(1).expect_err("no fence");
    for word in ["register_product", "without fence_async_shared", "hopper.cu"] {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

#[test]
fn writes_before_the_launch_before_has_ended() {
    catches("written_early", 0, &["without wait_for_launch_before", "hopper.cu:"]);
}

#[test]
fn asynchronous_work_that_nobody_waits_for() {
    let cases = [
        (1, "copy is in flight"),
        (2, "an mbarrier"),
        (3, "products in flight"),
        (4, "an mbarrier"),
        (5, "without fence_async_shared"),
    ];
    for (wrong, words) in cases {
        let message = warpgroup(wrong).expect_err(words);
        for word in ["warpgroup_product", "block (0, 0, 0)", "thread", words, "hopper.cu"] {
            assert!(message.contains(word), "{wrong}: no `{word}` in: {message}");
        }
    }
}

fn cluster(wrong: i32) -> Result<(), String> {
    let stream = Stream::host(1);
    let values: Vec<f32> = (0..64).map(|i| i as f32 * 0.5 - 9.0).collect();
    let (x, y) = (buffer(&stream, &values), buffer(&stream, &[9.0; 64]));
    let shared = 2 * 32 * 4 + 8;
    let geometry = Geometry { shared, cluster: 2, ..Geometry::linear(2, 32) };
    let params = Params { y: y.ptr(), x: x.ptr(), wrong, reserved: 0 };
    // SAFETY: the buffers are as long as the kernel expects.
    unsafe { planted().launch("cluster_stores", &geometry, &params) }.map_err(|e| e.to_string())?;
    assert_eq!(bytemuck::cast_slice::<u8, f32>(&y.read().unwrap()), values);
    Ok(())
}

#[test]
fn blocks_of_a_cluster_store_into_each_other() {
    assert_eq!(cluster(0), Ok(()));
    let cases = [
        (1, "may not have begun"),
        (2, "copy is in flight"),
        (3, "nobody has written"),
        (4, "of another block"),
        (5, "has ended"),
        (6, "ends with a store to it in flight"),
        (7, "of a cluster of 2"),
        (8, "without cluster_arrive"),
        (9, "again before all have arrived"),
    ];
    for (wrong, words) in cases {
        let message = cluster(wrong).expect_err(words);
        for word in ["cluster_stores", "block (", "thread", words, "hopper.cu"] {
            assert!(message.contains(word), "{wrong}: no `{word}` in: {message}");
        }
    }
    for (blocks, threads, cluster) in [(3, 32, 2), (2, 48, 2), (8, 512, 8)] {
        let odd = Geometry { cluster, ..Geometry::linear(blocks, threads) };
        let message = run("cluster_stores", &odd, 0).expect_err("odd");
        assert!(message.contains(&format!("{blocks} blocks of {threads}")), "{message}");
    }
}
