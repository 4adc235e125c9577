//! The host's matrix products against what this machine can do.
//!
//! `cargo bench --bench host -- [--filter TEXT] [--json] [--threads N] [--reps N]`
//!
//! Ceilings are measured in the same run, repetition by repetition next to the kernel, because the
//! machine may be shared: `of it` is the median of the ratios by the clock on the wall, `by
//! processor time` the same where a thread that is not running costs nothing. `read` is a read-only
//! pass over the very bytes of the weights; `peak` is independent multiply-adds in registers.
//! Weights are a mapped file, larger than the caches, and every launch of a pass has its own part
//! of it. int8 and int4 weights multiply bf16 rows; `read` is then of their bytes.

mod ceiling;

use ceiling::{Time, median, peak, reader, time};
use half::bf16;
use medflamingo::DType;
use medflamingo::contracts::{GemmParams, GemmQuantizedParams};
use medflamingo::device::Host;
use medflamingo::ops::{GEMM, GEMM_QUANTIZED, gemm_shape};
use memmap2::Mmap;
use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// Mapped weights; several times any third cache it is likely to meet.
const ARENA: usize = 288 * MIB;
/// Bytes of weights per measured pass, if the matrices are smaller.
const PASS: usize = 16 * MIB;

/// How weights are stored.
#[derive(Clone, Copy)]
enum Stored {
    As(DType),
    /// Codes of so many bits, for rows of bf16.
    Bits(usize),
}

impl Stored {
    fn name(self) -> String {
        match self {
            Stored::As(dtype) => dtype.to_string(),
            Stored::Bits(bits) => format!("int{bits}"),
        }
    }
}

/// Storage of the weights, phase and the (m, n, k) of its launches.
type Shapes = (Stored, &'static str, &'static [(usize, usize, usize)]);

const FEW_BITS: &[(usize, usize, usize)] =
    &[(1, 12288, 4096), (1, 4096, 11008), (1, 3072, 1024), (4, 12288, 4096), (8, 12288, 4096)];

const NAMED: [Shapes; 8] = [
    (Stored::Bits(8), "decode", FEW_BITS),
    (Stored::Bits(4), "decode", FEW_BITS),
    (Stored::Bits(8), "prefill", &[(250, 4096, 4096)]),
    (Stored::Bits(4), "prefill", &[(250, 4096, 4096)]),
    (
        Stored::As(DType::BF16),
        "decode",
        &[
            (1, 12288, 4096),
            (1, 4096, 11008),
            (1, 32003, 4096),
            (1, 3072, 1024),
            (1, 1024, 1024),
            (1, 1024, 2816),
            (1, 512, 512),
            (2, 12288, 4096),
            (4, 12288, 4096),
            (8, 12288, 4096),
        ],
    ),
    (Stored::As(DType::F32), "decode", &[(1, 4096, 4096), (1, 3072, 1024), (4, 4096, 4096)]),
    (
        Stored::As(DType::BF16),
        "prefill",
        &[
            (16, 4096, 4096),
            (35, 12288, 4096),
            (64, 512, 1024),
            (160, 3072, 1024),
            (160, 1024, 2816),
            (250, 12288, 4096),
            (250, 4096, 11008),
            (257, 3072, 1024),
            (1799, 1024, 1024),
            (1799, 512, 512),
        ],
    ),
    (
        Stored::As(DType::F32),
        "prefill",
        &[(64, 512, 1024), (160, 3072, 1024), (250, 4096, 4096), (1799, 512, 512)],
    ),
];

/// One line of the table.
struct Row {
    name: String,
    /// Median time of one launch, us.
    us: f64,
    value: f64,
    unit: &'static str,
    ceiling: f64,
    ratio: f64,
    /// The same ratio of processor times.
    busy: f64,
}

struct Options {
    filter: String,
    json: bool,
    threads: usize,
    reps: usize,
}

fn options() -> Options {
    let mut options = Options { filter: String::new(), json: false, threads: 0, reps: 15 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|v| v.parse().ok()).expect("a number");
        match arg.as_str() {
            "--json" => options.json = true,
            "--threads" => options.threads = number(),
            "--reps" => options.reps = number(),
            "--filter" => options.filter = args.next().expect("--filter TEXT"),
            // What cargo itself passes.
            "--bench" => {}
            other => panic!("unknown argument `{other}`"),
        }
    }
    options
}

fn main() {
    let options = options();
    let host = Host::new(options.threads);
    let arena = arena();
    let read = reader(&host, &arena);
    let mut rows = Vec::new();
    if "launch".contains(&options.filter) {
        rows.push(fork_join(&host));
    }
    for (stored, phase, shapes) in NAMED {
        for &(m, n, k) in shapes {
            let name = format!("{phase} {} ({m},{n},{k})", stored.name());
            if name.contains(&options.filter) {
                eprint!("\r{name:40}");
                let product = Product { stored, m, n, k, host: &host, arena: &arena, read };
                rows.push(match phase {
                    "decode" => product.against_read(name, options.reps),
                    _ => product.against_peak(name, options.reps),
                });
            }
        }
    }
    eprint!("\r{:40}\r", "");
    print(&rows, &host, options.json);
}

/// A mapped file of small bf16 numbers, which are small f32 numbers as well.
fn arena() -> Mmap {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let mut state = 1u32;
    let mut block = vec![0u8; MIB];
    for _ in 0..ARENA / MIB {
        for pair in block.chunks_exact_mut(2) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            pair.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
        }
        file.write_all(&block).expect("space for the weights");
    }
    // SAFETY: the file has no name, so nobody else can change it.
    unsafe { Mmap::map(&file) }.expect("a mapping")
}

/// Four pieces of 3 us for each thread, against the 12 us they take: large enough that every
/// thread has to join in.
fn fork_join(host: &Host) -> Row {
    let piece = Duration::from_micros(3);
    let times = (0..2_000).map(|_| {
        time(|| {
            host.pool.run(4 * host.pool.threads(), |_| {
                let start = Instant::now();
                while start.elapsed() < piece {}
            })
        })
    });
    let us = median(times.map(|t| t.wall * 1e6).collect());
    let (name, ratio) = ("launch of 4 x 3 us per thread".into(), 12.0 / us);
    Row { name, us, value: us, unit: "us", ceiling: 12.0, ratio, busy: ratio }
}

struct Product<'a> {
    stored: Stored,
    m: usize,
    n: usize,
    k: usize,
    host: &'a Host,
    arena: &'a Mmap,
    read: fn(&Host, &[u8]) -> Time,
}

impl Product<'_> {
    /// Of A and C.
    fn dtype(&self) -> DType {
        match self.stored {
            Stored::As(dtype) => dtype,
            Stored::Bits(_) => DType::BF16,
        }
    }

    /// Without the scales, which take their place once.
    fn weight_bytes(&self) -> usize {
        match self.stored {
            Stored::As(dtype) => self.n * self.k * dtype.size(),
            Stored::Bits(bits) => self.n * self.k * bits / 8,
        }
    }

    /// Launches with the weights at each of `offsets`.
    fn launch(&self, a: &[u8], c: &mut [u8], offsets: impl Iterator<Item = usize>) {
        let (_, twin) = GEMM.twins.iter().find(|t| t.0 == self.dtype()).expect("an entry");
        let mut of_bits = GEMM_QUANTIZED.twins.iter();
        let (_, of_bits) = of_bits.find(|t| t.0 == self.dtype()).expect("an entry");
        let (m, n, k) = (self.m as i64, self.n as i64, self.k as i64);
        for offset in offsets {
            let b = &self.arena[offset..offset + self.weight_bytes()];
            let params = GemmParams {
                c: c.as_mut_ptr().cast(),
                a: a.as_ptr().cast(),
                b: b.as_ptr().cast(),
                workspace: std::ptr::null_mut(),
                ldb: (b.len() / self.n) as i64,
                ..gemm_shape([m, n, k])
            };
            // SAFETY: the slices have the sizes that the params state; the arena begins with more
            // numbers than there are scales.
            unsafe {
                match self.stored {
                    Stored::As(_) => twin(&GemmParams { ldb: k, ..params }, self.host),
                    Stored::Bits(bits) => {
                        let scales = self.arena.as_ptr().cast();
                        let bits = bits as i64;
                        of_bits(&GemmQuantizedParams { product: params, scales, bits }, self.host)
                    }
                }
            };
        }
        black_box(c);
    }

    fn operands(&self) -> (Vec<u8>, Vec<u8>) {
        let size = self.dtype().size();
        let a = self.arena[ARENA - self.m * self.k * size..].to_vec();
        (a, vec![0; self.m * self.n * size])
    }

    fn against_read(&self, name: String, reps: usize) -> Row {
        let bytes = self.weight_bytes();
        let count = (PASS / bytes).max(1);
        let (a, mut c) = self.operands();
        let mut pairs = vec![];
        // Passes walk through the arena, so that none finds the cache filled by the last one.
        for rep in 0..reps + 1 {
            let places = ARENA / (bytes * count);
            let first = rep % places * bytes * count;
            let read = (self.read)(self.host, &self.arena[first..first + bytes * count]);
            let first = (rep + places / 2) % places * bytes * count;
            let offsets = (0..count).map(|i| first + i * bytes);
            pairs.push((time(|| self.launch(&a, &mut c, offsets)), read));
        }
        self.row(name, count, bytes as f64, "GB/s", &pairs[1..])
    }

    /// The row of `pairs` of times of `count` launches and of the ceiling for the same `work` each.
    fn row(
        &self,
        name: String,
        count: usize,
        work: f64,
        unit: &'static str,
        pairs: &[(Time, Time)],
    ) -> Row {
        let middle = |f: &dyn Fn(&(Time, Time)) -> f64| median(pairs.iter().map(f).collect());
        let each = |time: f64| time / count as f64;
        Row {
            name,
            us: middle(&|(kernel, _)| each(kernel.wall) * 1e6),
            value: middle(&|(kernel, _)| work / each(kernel.wall) / 1e9),
            unit,
            ceiling: middle(&|(_, ceiling)| work / each(ceiling.wall) / 1e9),
            ratio: middle(&|(kernel, ceiling)| ceiling.wall / kernel.wall),
            busy: middle(&|(kernel, ceiling)| ceiling.busy / kernel.busy),
        }
    }

    fn against_peak(&self, name: String, reps: usize) -> Row {
        let bytes = self.weight_bytes();
        let flops = 2.0 * (self.m * self.n * self.k) as f64;
        // A few milliseconds of work per repetition.
        let count = ((1e9 / flops) as usize).clamp(1, 64);
        let (a, mut c) = self.operands();
        let mut pairs = vec![];
        for rep in 0..reps + 1 {
            let ceiling = peak(self.host, self.dtype(), flops * count as f64);
            let places = ARENA / bytes;
            let offsets = (0..count).map(|i| (rep * count + i) % places * bytes);
            pairs.push((time(|| self.launch(&a, &mut c, offsets)), ceiling));
        }
        self.row(name, count, flops, "GFLOP/s", &pairs[1..])
    }
}

fn print(rows: &[Row], host: &Host, json: bool) {
    if json {
        let rows = rows.iter().map(|r| {
            serde_json::json!({"name": r.name, "us": r.us, "value": r.value, "unit": r.unit,
                "ceiling": r.ceiling, "ratio": r.ratio, "busy": r.busy})
        });
        let isa = host.isa.to_string();
        let rows: Vec<_> = rows.collect();
        println!(
            "{}",
            serde_json::json!({"isa": isa, "threads": host.pool.threads(), "rows": rows})
        );
        return;
    }
    println!("{} on {} threads; medians", host.isa, host.pool.threads());
    println!("| launch (m,n,k) | us | figure | ceiling, same run | of it | by processor time |");
    println!("|---|---|---|---|---|---|");
    for r in rows {
        let (value, ceiling) = (r.value, r.ceiling);
        let (share, busy) = (100.0 * r.ratio, 100.0 * r.busy);
        println!(
            "| {} | {:.1} | {value:.1} {} | {ceiling:.1} | {share:.0} % | {busy:.0} % |",
            r.name, r.us, r.unit
        );
    }
}
