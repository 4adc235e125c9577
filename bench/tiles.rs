//! The tiles of `gemm` against each other: prints the rows of `src/ops/gemm/table.rs`.
//!
//! `cargo bench --bench tiles -- [--device cuda:N | --chip a100|h200] [--all]`
//!
//! On a card a figure is the median of 21 launches one by one, each with the next part of 512 MiB
//! of weights, so that they come from memory. With `--chip` nothing is launched and the figures are
//! the estimates that stand in for measurements. `--all` also prints the tiles that are slower, and
//! cuBLASLt's time where that library is.

use half::bf16;
use medflamingo::contracts::GemmParams;
use medflamingo::device::{Buffer, Chip, Device, Kernel, Products, Stream};
use medflamingo::ops::{GEMM_CUBLASLT, Tiling, gemm_shape, gemm_tilings};
use medflamingo::{DType, Result};

const REPEATS: usize = 21;
const WEIGHTS: usize = 512 << 20;
/// Rows of A and of C, at most.
const ACTIVATIONS: usize = 8192 * 22016 * 2;

type Rows = &'static [i64];
type Matrices = &'static [(i64, i64)];

/// Tokens of a suffix, of the published demo's prompt and of a training sequence; then one image
/// and seven, their latents, and a product that is only large.
const SHAPES: [(Rows, Matrices); 6] = [
    // Numbers of rows m, and matrices (n, k) that each is multiplied by.
    (
        &[35, 250, 2048],
        &[(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (16384, 4096), (4096, 16384)],
    ),
    (&[250], &[(512, 4096), (4096, 512)]),
    (&[257, 1799], &[(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)]),
    (&[64, 448], &[(512, 1024), (1024, 512), (4096, 1024), (1024, 4096)]),
    (&[1792], &[(6144, 1024)]),
    (&[8192], &[(22016, 4096)]),
];

struct Options {
    device: Device,
    chip: Option<Chip>,
    all: bool,
}

fn options() -> Options {
    let mut o = Options { device: Device::Cuda(0), chip: None, all: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--device" => o.device = value().parse().expect("a device"),
            "--chip" => {
                o.chip = Some(match value().as_str() {
                    "a100" => Chip::A100,
                    "h200" => Chip::H200,
                    other => panic!("--chip: expected a100 or h200, found `{other}`"),
                });
            }
            "--all" => o.all = true,
            // What cargo itself passes.
            "--bench" => {}
            other => panic!("unknown argument `{other}`; see the first lines of bench/tiles.rs"),
        }
    }
    o
}

/// A card with operands.
struct Card {
    stream: Stream,
    chip: Chip,
    weights: Buffer,
    a: Buffer,
    c: Buffer,
    has_peer: bool,
}

/// What tiles are compared on: a card, or what is known of one.
enum Bench {
    Card(Box<Card>),
    Paper(Chip),
}

impl Bench {
    fn on(device: Device) -> Result<Bench> {
        let mut stream = device.open(0)?;
        let has_peer = stream.choose_products(Products::CublasLt).is_ok();
        let chip = *stream.chip().expect("tiles are chosen on a card: give --device or --chip");
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            bf16::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
        };
        let part: Vec<bf16> = (0..1 << 20).map(|_| noise()).collect();
        let fill = |bytes: usize| -> Result<Buffer> {
            let mut buffer = stream.zeros(bytes)?;
            for at in (0..bytes).step_by(2 << 20) {
                let part: &[u8] = bytemuck::cast_slice(&part);
                buffer.write(at, &part[..part.len().min(bytes - at)])?;
            }
            Ok(buffer)
        };
        let (weights, a, c) = (fill(WEIGHTS)?, fill(ACTIVATIONS)?, stream.zeros(ACTIVATIONS)?);
        Ok(Bench::Card(Box::new(Card { stream, chip, weights, a, c, has_peer })))
    }

    /// The ways to lay the product out, each with its time, fastest first.
    fn compare(&self, shape: [i64; 3]) -> Result<Vec<(Tiling, f64)>> {
        let mut p = gemm_shape(shape);
        let mut found = Vec::new();
        match self {
            Bench::Paper(chip) => {
                let mut tilings = gemm_tilings(&p, DType::BF16, chip);
                let own = |t: &Tiling| t.variant.starts_with("_sm90") == chip.has_wgmma();
                tilings.retain(|t| own(t) && t.variant != "_plain");
                found.extend(tilings.into_iter().map(|t| {
                    let us = t.predicted_us;
                    (t, us)
                }));
            }
            Bench::Card(card) => {
                p = self.on_card(p)?;
                for tiling in gemm_tilings(&p, DType::BF16, &card.chip) {
                    let us = median(&card.stream, tiling.kernel, p, &card.weights)?;
                    found.push((tiling, us));
                }
            }
        }
        found.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        Ok(found)
    }

    /// cuBLASLt's time, us.
    fn peer(&self, shape: [i64; 3]) -> Result<Option<f64>> {
        match self {
            Bench::Card(card) if card.has_peer => {
                let p = self.on_card(gemm_shape(shape))?;
                median(&card.stream, &GEMM_CUBLASLT, p, &card.weights).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// `p` of the operands that are there.
    fn on_card(&self, p: GemmParams) -> Result<GemmParams> {
        let Bench::Card(card) = self else { return Ok(p) };
        let (a, c) = (card.a.ptr().cast_const().cast(), card.c.ptr().cast());
        Ok(GemmParams { a, c, workspace: card.stream.workspace()?, ..p })
    }
}

fn median(
    stream: &Stream,
    kernel: &Kernel<GemmParams>,
    p: GemmParams,
    weights: &Buffer,
) -> Result<f64> {
    let size = (p.n * p.k) as usize * 2;
    let places = WEIGHTS / size;
    stream.record();
    for i in 0..REPEATS {
        // SAFETY: place `i % places` lies within the weights.
        let b = unsafe { weights.ptr().add(i % places * size) };
        let p = GemmParams { b: b.cast_const().cast(), ..p };
        // SAFETY: the buffers are at least as long as the shapes of this file need.
        unsafe { stream.launch(kernel, DType::BF16, &p)? };
    }
    let mut us: Vec<f64> = stream.recording()?.launches.iter().map(|l| l.us).collect();
    us.sort_by(f64::total_cmp);
    Ok(us[us.len() / 2])
}

fn main() -> Result<()> {
    let o = options();
    let bench = match o.chip {
        Some(chip) => Bench::Paper(chip),
        None => Bench::on(o.device)?,
    };
    match &bench {
        Bench::Card(card) => println!("// measured on {}", card.stream.describe()),
        Bench::Paper(chip) => println!("// predicted for sm_{}", chip.capability),
    }
    for (rows, weights) in SHAPES {
        for (&m, &(n, k)) in rows.iter().flat_map(|m| weights.iter().map(move |w| (m, w))) {
            let found = bench.compare([m, n, k])?;
            if let Some(us) = bench.peer([m, n, k])?.filter(|_| o.all) {
                println!("    // cuBLASLt: {us:.1}");
            }
            let most = if o.all { found.len() } else { 1 };
            for (i, (tiling, us)) in found.iter().take(most).enumerate() {
                let slower = if i > 0 { "// " } else { "" };
                println!(
                    "    {slower}row({m}, {n}, {k}, \"{}\", {}, {us:.1}),",
                    tiling.variant, tiling.parts
                );
            }
        }
    }
    Ok(())
}
