//! Every case of every kernel on the device at hand, held against what it gives in the same run.
//!
//! `cargo bench --bench kernels -- [--device DEVICE] [--dtype TYPE] [--filter TEXT] [--quick]
//! [--full] [--threads N] [--json]`
//!
//! Launches rotate through copies of their operands that are together larger than the caches, so
//! that each finds its own cold; the figure is the median over passes of a few milliseconds, which
//! on a card are steps, like those of decoding: launches overlap, and products of few rows ask for
//! what the next begins with. Bytes and operations are those of [`medflamingo::device::Cost`]. `of
//! the ceiling` is the least time they allow at the rates of a copy, of a read-only pass and of a
//! large matrix product, measured before the cases, over the time taken. Shapes are those of the 9B
//! model on a card and a quarter of it on a host; `--full` and `--quick` choose.

use medflamingo::device::{Device, Stream};
use medflamingo::profile::{
    BRIEF, Case, Ceilings, Measured, NINE_B, QUICK, THOROUGH, cases, measure,
};
use medflamingo::{DType, Result};
use serde_json::{Value, json};

struct Options {
    device: Device,
    dtype: DType,
    filter: String,
    is_quick: Option<bool>,
    threads: usize,
    json: bool,
}

fn options() -> Options {
    let mut o = Options {
        device: Device::Auto,
        dtype: DType::BF16,
        filter: String::new(),
        is_quick: None,
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
            "--quick" => o.is_quick = Some(true),
            "--full" => o.is_quick = Some(false),
            "--threads" => o.threads = value().parse().expect("a number"),
            "--json" => o.json = true,
            // What cargo itself passes.
            "--bench" => {}
            other => panic!("unknown argument `{other}`; see the first lines of bench/kernels.rs"),
        }
    }
    o
}

fn main() -> Result<()> {
    let o = options();
    let stream = o.device.open(o.threads)?;
    let is_quick = o.is_quick.unwrap_or(stream.is_host());
    let (sizes, effort) = if is_quick { (QUICK, BRIEF) } else { (NINE_B, THOROUGH) };
    let ceilings = Ceilings::measure(&stream, o.dtype, effort.ring, effort.passes)?;
    let mut rows = vec![];
    for case in cases(&sizes).into_iter().filter(|c| c.title().contains(&o.filter)) {
        eprint!("\r{:40}", case.title());
        let measured = measure(&stream, &case, o.dtype, &effort)?;
        rows.push((case, measured));
    }
    eprint!("\r{:40}\r", "");
    match o.json {
        true => println!("{}", report(&o, &stream, &ceilings, &rows)),
        false => print(&o, &stream, &ceilings, &rows),
    }
    Ok(())
}

fn report(o: &Options, stream: &Stream, c: &Ceilings, rows: &[(Case, Measured)]) -> Value {
    let case = |(case, m): &(Case, Measured)| {
        json!({
            "kernel": case.kernel, "case": case.name, "dtype": o.dtype.name(),
            "variant": m.variant, "us": m.us, "bytes": m.cost.bytes, "flops": m.cost.flops,
            "share": c.share(m.cost, m.us), "shape": case.shape(),
        })
    };
    json!({
        "device": stream.describe(),
        "ceilings": {
            "copy_gb_s": c.copy / 1e9, "read_gb_s": c.read / 1e9, "tflops": c.product / 1e12,
        },
        "cases": rows.iter().map(case).collect::<Vec<_>>(),
    })
}

fn print(o: &Options, stream: &Stream, c: &Ceilings, rows: &[(Case, Measured)]) {
    println!("{}, {}; medians. Ceilings of this run:", stream.describe(), o.dtype);
    println!(
        "copy {:.1} GB/s, read {:.1} GB/s, product {:.3} TFLOP/s\n",
        c.copy / 1e9,
        c.read / 1e9,
        c.product / 1e12
    );
    println!("| kernel | case | variant | us | GB/s | TFLOP/s | of the ceiling |");
    println!("|---|---|---|---|---|---|---|");
    for (case, m) in rows {
        println!(
            "| {} | {} | {} | {:.1} | {:.1} | {:.3} | {:.0} % |",
            case.kernel,
            case.name,
            m.variant,
            m.us,
            m.cost.bytes / m.us / 1e3,
            m.cost.flops / m.us / 1e6,
            100.0 * c.share(m.cost, m.us)
        );
    }
}
