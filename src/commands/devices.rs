//! `medflamingo devices`

use clap::Args;
use medflamingo::device::{CudaCard, Device, MODULES, Stream, TOOLKIT, cuda_cards};
use medflamingo::{Result, ops};
use serde_json::{Value, json};

/// What this machine offers to run on, and what this build can use of it.
#[derive(Args)]
pub struct Devices {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Devices {
    pub fn run(self) -> Result<()> {
        let host = Stream::host(0).describe();
        let (auto, why) = Device::auto();
        let cards = cuda_cards();
        if self.json {
            let kernels: Vec<_> = ops::ALL.iter().map(|k| k.name).collect();
            let modules: Vec<_> = MODULES.iter().map(|m| m.0).collect();
            return super::print_json(&json!({
                "auto": { "device": auto.to_string(), "why_not_cuda": why },
                "cpu": host,
                "cuda": match &cards {
                    Ok(cards) => cards.iter().map(described).collect(),
                    Err(e) => json!({ "error": e.to_string() }),
                },
                "cuda_kernels": modules,
                "toolkit": TOOLKIT,
                "host_kernels": kernels,
            }));
        }
        println!("{host}");
        match cards {
            Ok(cards) => {
                for (i, card) in cards.iter().enumerate() {
                    println!("cuda:{i}  {}", line(card));
                }
            }
            Err(e) => println!("{e}"),
        }
        println!("kernels: {} on the host, {}", ops::ALL.len(), in_this_build());
        println!("auto is {auto}");
        Ok(())
    }
}

fn described(card: &CudaCard) -> Value {
    json!({
        "name": card.name,
        "capability": [card.capability.0, card.capability.1],
        "memory_bytes": card.memory,
        "kernels": card.kernels().ok(),
        "tiles": tiles(card),
        "why_not": card.kernels().err(),
    })
}

fn line(card: &CudaCard) -> String {
    let CudaCard { name, capability: (major, minor), memory, .. } = card;
    let gib = *memory as f64 / (1u64 << 30) as f64;
    let use_of_it = match card.kernels() {
        Ok(code) => format!("kernels: {code}; tiles: {}", tiles(card)),
        Err(why) => format!("not usable: {why}"),
    };
    format!("{name}, compute {major}.{minor}, {gib:.0} GiB; {use_of_it}")
}

/// Which table its products' tiles are from, or why it cannot be opened.
fn tiles(card: &CudaCard) -> String {
    ops::tiles_in_use(&card.chip).unwrap_or_else(|e| format!("not usable: {e}"))
}

/// What there is for cards.
fn in_this_build() -> String {
    match MODULES.len() {
        0 => "none for CUDA in this build (build where nvcc is, or set MEDFLAMINGO_KERNELS)".into(),
        n => format!("{n} files for CUDA in this build (sm_80, sm_90a, PTX; nvcc {TOOLKIT})"),
    }
}
