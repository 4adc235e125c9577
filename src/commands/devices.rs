//! `medflamingo devices`

use clap::Args;
use medflamingo::device::{MODULES, Stream, TOOLKIT, cuda_cards};
use medflamingo::{Result, ops};
use serde_json::json;

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
        let cards = cuda_cards();
        if self.json {
            let cuda = match &cards {
                Ok(cards) => json!(
                    cards
                        .iter()
                        .map(|c| json!({
                            "name": c.name,
                            "capability": [c.capability.0, c.capability.1],
                            "memory_bytes": c.memory,
                            "kernels": c.kernels().ok(),
                            "why_not": c.kernels().err(),
                        }))
                        .collect::<Vec<_>>()
                ),
                Err(e) => json!({ "error": e.to_string() }),
            };
            let kernels: Vec<_> = ops::ALL.iter().map(|k| k.name).collect();
            let modules: Vec<_> = MODULES.iter().map(|m| m.0).collect();
            return super::print_json(&json!({
                "cpu": host, "cuda": cuda, "cuda_kernels": modules, "toolkit": TOOLKIT,
                "host_kernels": kernels,
            }));
        }
        println!("{host}");
        match cards {
            Ok(cards) if cards.is_empty() => println!("cuda: a driver but no card"),
            Ok(cards) => {
                for (i, c) in cards.iter().enumerate() {
                    let gib = c.memory as f64 / (1u64 << 30) as f64;
                    let (major, minor) = c.capability;
                    let use_of_it = match c.kernels() {
                        Ok(code) => format!("kernels: {code}"),
                        Err(why) => format!("not usable: {why}"),
                    };
                    let name = &c.name;
                    println!(
                        "cuda:{i}  {name}, compute {major}.{minor}, {gib:.0} GiB; {use_of_it}"
                    );
                }
            }
            Err(e) => println!("{e}"),
        }
        println!("kernels: {} on the host, {}", ops::ALL.len(), in_this_build());
        Ok(())
    }
}

/// What there is for cards.
fn in_this_build() -> String {
    match MODULES.len() {
        0 => "none for CUDA in this build (build where nvcc is, or set MEDFLAMINGO_KERNELS)".into(),
        n => format!("{n} files for CUDA in this build (sm_80, sm_90a, PTX; nvcc {TOOLKIT})"),
    }
}
