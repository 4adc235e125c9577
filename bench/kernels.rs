//! Every kernel at the shapes of the 9B model, on the device at hand.
//!
//! `cargo bench --bench kernels -- [--device DEVICE] [--dtype TYPE] [--filter TEXT] [--reps N]
//! [--threads N] [--json]`
//!
//! Launches walk through copies of their operands that are together larger than the caches (where
//! 256 copies are enough for that), so each finds its own operands cold. A repetition is a few
//! milliseconds of launches and a wait for the last; the figure is the median over repetitions.
//! Bytes and operations are those of [`medflamingo::device::Cost`]. Ceilings are measured in the
//! same run. On a card, where no other code of ours reads or multiplies, `read` is absent and
//! `tflops` is the largest product's own rate.

#[path = "kernels/cases.rs"]
mod cases;
mod ceiling;

use cases::{Case, Set, named};
use ceiling::{median, peak, reader};
use medflamingo::device::{Chip, Device, Host, Stream, cuda_cards};
use medflamingo::tensor::Tensor;
use medflamingo::{DType, Result};
use serde_json::{Value, json};
use std::time::Instant;

const MIB: usize = 1 << 20;
/// Operands of a case, all copies together; several times any cache it is likely to meet.
const RING: usize = 256 * MIB;
const COPIES: usize = 256;

struct Options {
    device: Device,
    dtype: DType,
    filter: String,
    reps: usize,
    threads: usize,
    json: bool,
}

fn options() -> Options {
    let mut o = Options {
        device: Device::Auto,
        dtype: DType::BF16,
        filter: String::new(),
        reps: 15,
        threads: 0,
        json: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--device" => o.device = value().parse().expect("a device"),
            "--dtype" => {
                let name = value();
                let all = [DType::F32, DType::BF16, DType::F16];
                o.dtype = *all.iter().find(|d| d.name() == name).expect("f32, bf16 or f16");
            }
            "--filter" => o.filter = value(),
            "--reps" => o.reps = value().parse().expect("a number"),
            "--threads" => o.threads = value().parse().expect("a number"),
            "--json" => o.json = true,
            // What cargo itself passes.
            "--bench" => {}
            other => panic!("unknown argument `{other}`"),
        }
    }
    assert!(o.reps > 0, "--reps is at least 1");
    o
}

/// Rates that nothing here exceeds; bytes and operations per second.
struct Ceilings {
    copy: f64,
    read: Option<f64>,
    flops: f64,
}

impl Ceilings {
    fn host(o: &Options) -> Self {
        let host = Host::new(o.threads);
        let (from, mut to) = (vec![1u8; RING], vec![2u8; RING]);
        let part = RING.div_ceil(host.pool.threads());
        let copy = |to: &mut [u8]| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for (to, from) in to.chunks_mut(part).zip(from.chunks(part)) {
                    scope.spawn(|| to.copy_from_slice(from));
                }
            });
            2.0 * RING as f64 / start.elapsed().as_secs_f64()
        };
        let copies = median((0..o.reps).map(|_| copy(&mut to)).collect());
        let read = reader(&host, &from);
        let reads = (0..o.reps).map(|_| RING as f64 / read(&host, &from).wall).collect();
        let work = 2e9;
        let peaks = (0..o.reps).map(|_| work / peak(&host, o.dtype, work).wall).collect();
        Ceilings { copy: copies, read: Some(median(reads)), flops: median(peaks) }
    }

    fn card(stream: &Stream, o: &Options) -> Result<Self> {
        let from = Tensor::zeros(stream, DType::F32, &[4096, RING / 4 / 4096])?;
        let mut to = Tensor::zeros(stream, DType::F32, &[4096, RING / 4 / 4096])?;
        let mut copies = vec![];
        for _ in 0..=o.reps {
            let start = Instant::now();
            to.view_mut().copy_from(from.view())?;
            wait(&to)?;
            copies.push(2.0 * RING as f64 / start.elapsed().as_secs_f64());
        }
        let product = Case::product(8192, 8192, 8192);
        let row = measure(stream, &product, o, Chip::H200)?;
        Ok(Ceilings { copy: median(copies), read: None, flops: row.flops / row.us * 1e6 })
    }

    fn json(&self) -> Value {
        let read = self.read.map(|r| r / 1e9);
        json!({"copy_gb_s": self.copy / 1e9, "read_gb_s": read, "tflops": self.flops / 1e12})
    }

    /// Of the rate that bounds a launch, the share reached.
    fn share(&self, row: &Row) -> f64 {
        let seconds = row.us * 1e-6;
        let memory = self.copy.max(self.read.unwrap_or(0.0));
        (row.bytes / memory).max(row.flops / self.flops) / seconds
    }
}

/// Returns when everything before it on the stream of `tensor` has run.
fn wait(tensor: &Tensor) -> Result<()> {
    let view = tensor.view();
    let (rows, cols) = (view.rows(), view.cols());
    view.block(rows - 1..rows, cols - 1..cols)?.to_f32().map(drop)
}

struct Row {
    case: Case,
    variant: String,
    us: f64,
    bytes: f64,
    flops: f64,
}

impl Row {
    fn json(&self, o: &Options) -> Value {
        json!({"kernel": self.case.kernel, "case": self.case.name, "dtype": o.dtype.name(),
            "variant": self.variant, "us": self.us, "bytes": self.bytes, "flops": self.flops,
            "shape": self.case.shape(), "named": true})
    }
}

fn measure(stream: &Stream, case: &Case, o: &Options, chip: Chip) -> Result<Row> {
    let plan = Stream::planning(chip);
    let mut set = Set::new(&plan, case, o.dtype)?;
    set.launch(&plan)?;
    let planned = plan.planned();
    let prefix = format!("{}_{}", case.kernel, o.dtype);
    let entry = planned.first().and_then(|p| p.entry.strip_prefix(&prefix)).unwrap_or("");
    let variant = if is_host(o.device, stream) { String::new() } else { entry.to_owned() };
    let (bytes, flops) = planned
        .iter()
        .fold((0.0, 0.0), |(bytes, flops), p| (bytes + p.cost.bytes, flops + p.cost.flops));

    let copies = (RING / set.bytes().max(1)).clamp(1, COPIES);
    drop(set);
    let mut ring = vec![];
    for _ in 0..copies {
        ring.push(Set::new(stream, case, o.dtype)?);
    }
    let mut at = 0;
    let mut pass = |launches: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..launches {
            at = (at + 1) % ring.len();
            ring[at].launch(stream)?;
        }
        wait(&ring[at].out)?;
        Ok(start.elapsed().as_secs_f64() / launches as f64)
    };
    pass(1)?;
    let launches = ((2e-3 / pass(1)?) as usize).clamp(1, COPIES);
    let mut times = vec![];
    for _ in 0..o.reps {
        times.push(pass(launches)? * 1e6);
    }
    Ok(Row { case: case.clone(), variant, us: median(times), bytes, flops })
}

fn is_host(device: Device, stream: &Stream) -> bool {
    match device {
        Device::Host => true,
        Device::Auto => stream.describe().starts_with("cpu"),
        _ => false,
    }
}

/// The card that geometry is asked for.
fn chip(device: Device) -> Chip {
    let ordinal = match device {
        Device::Simt(chip) => return chip,
        Device::Cuda(n) => n,
        _ => 0,
    };
    let hopper = |(major, _): (i32, i32)| major >= 9;
    match cuda_cards().ok().and_then(|cards| cards.get(ordinal).map(|c| c.capability)) {
        Some(capability) if !hopper(capability) => Chip::A100,
        _ => Chip::H200,
    }
}

fn main() -> Result<()> {
    let o = options();
    let stream = o.device.open(o.threads)?;
    let ceilings =
        if is_host(o.device, &stream) { Ceilings::host(&o) } else { Ceilings::card(&stream, &o)? };
    let mut rows = vec![];
    for case in named().into_iter().filter(|c| c.title().contains(&o.filter)) {
        eprint!("\r{:40}", case.title());
        rows.push(measure(&stream, &case, &o, chip(o.device))?);
    }
    eprint!("\r{:40}\r", "");
    let device = stream.describe();
    if o.json {
        let cases: Vec<Value> = rows.iter().map(|r| r.json(&o)).collect();
        println!("{}", json!({"device": device, "ceilings": ceilings.json(), "cases": cases}));
        return Ok(());
    }
    let read = ceilings.read.map_or("not measured".into(), |r| format!("{:.1} GB/s", r / 1e9));
    let (copy, tflops) = (ceilings.copy / 1e9, ceilings.flops / 1e12);
    println!("{device}, {}; medians. Ceilings of this run: copy {copy:.1} GB/s, ", o.dtype);
    println!("read {read}, {tflops:.3} TFLOP/s\n");
    println!("| kernel | case | variant | us | GB/s | TFLOP/s | of the ceiling |");
    println!("|---|---|---|---|---|---|---|");
    for r in &rows {
        let (gb_s, tflop_s) = (r.bytes / r.us / 1e3, r.flops / r.us / 1e6);
        println!(
            "| {} | {} | {} | {:.1} | {gb_s:.1} | {tflop_s:.3} | {:.0} % |",
            r.case.kernel,
            r.case.name,
            r.variant,
            r.us,
            100.0 * ceilings.share(r)
        );
    }
    Ok(())
}
