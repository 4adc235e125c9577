//! What must hold of the machine code, whatever else changes. CI runs `kernels --check`.

use super::sass::Compiled;

/// Of one kernel.
pub struct Budget {
    pub kernel: &'static str,
    /// bf16 and f16 entries multiply on the tensor cores: HMMA fed by LDSM or other loads of 16
    /// bytes, or HGMMA fed by the copy engine where the entry is for Hopper.
    pub tensor_cores: bool,
    /// Global loads of less than 16 bytes that an entry may have, where a tuned one reads rows.
    pub narrow_loads: Option<u32>,
    /// Registers of a thread, at most.
    pub registers: u32,
    /// Bytes of a thread's stack, at most; if 0, no access to local memory either.
    pub stack: u32,
}

const fn row(
    kernel: &'static str,
    tensor_cores: bool,
    narrow_loads: Option<u32>,
    registers: u32,
) -> Budget {
    Budget { kernel, tensor_cores, narrow_loads, registers, stack: 0 }
}

/// What the other kernels have: no stack, no local memory.
const ANY: Budget = row("", false, None, 255);

/// Loads that may be narrow are those of scalars and of indices (ids, slots, positions); registers
/// are what the wanted blocks on a multiprocessor leave.
pub static BUDGETS: &[Budget] = &[
    row("gemm", true, None, 255),
    row("gemm_quantized", true, None, 255),
    row("attention", true, None, 255),
    row("attention_backward", true, None, 255),
    row("self_attention", true, None, 255),
    row("cross_attention", true, None, 255),
    row("checksum", false, Some(0), 64),
    row("column_sums", false, None, 40),
    // Four packs of a row, of its scale and of its shift; two blocks.
    row("layernorm", false, Some(0), 128),
    row("norm_backward", false, None, 208),
    // Four packs of a row, and of its scale.
    row("rmsnorm", false, Some(0), 80),
    row("swiglu", false, Some(0), 64),
    row("swiglu_backward", false, Some(0), 64),
    row("activation", false, Some(0), 64),
    row("activation_backward", false, Some(0), 64),
    row("gate_backward", false, Some(1), 40),
    // Two blocks of 512.
    row("cross_entropy", false, None, 64),
    row("embedding_backward", false, None, 64),
    row("vision_tokens_backward", false, None, 64),
    row("square_sum", false, Some(0), 40),
    row("transpose", false, Some(0), 40),
    row("quantize", false, Some(0), 40),
    row("dequantize", false, None, 40),
    row("adamw", false, None, 85),
    // Three blocks of 256.
    row("adamw8", false, None, 80),
    row("embedding", false, Some(2), 40),
    row("sampling", false, None, 64),
    // The sine of a huge angle: a table walk that no position within a context reaches.
    Budget { stack: 32, ..row("rope", false, None, 64) },
    Budget { stack: 32, ..row("kv_append", false, Some(3), 80) },
    Budget { stack: 32, ..row("attention_decode", false, None, 128) },
];

/// Instructions for each HMMA of weights of few bits, at most: a product of few rows takes 8
/// weights a lane, for which an H200 that reads at full speed has 32 instructions in int4 and 62 in
/// int8; one of bytes (`_kept`) takes twice as many; their loops have the way into the next tile
/// too, which is taken once a tile. One of a tile is worth the issue slots of 5 on Hopper, of 8 on
/// the A100.
fn most_per_hmma(entry: &str) -> f32 {
    match entry {
        e if !e.starts_with("gemm_quantized_") => f32::INFINITY,
        e if e.ends_with("_tiles") => 4.5,
        e if e.contains("_int8_rows8") => 48.0,
        e if e.contains("_int8_sm90_rows8") => 48.0,
        e if e.ends_with("_int4_rows8_kept") => 40.0,
        _ => 32.0,
    }
}

/// The kernel of an entry and the entry's storage type; None if it belongs to none.
pub fn kernel_of(entry: &str) -> Option<(&'static str, &str)> {
    let parts = |name: &'static str| {
        let rest = entry.strip_prefix(name)?.strip_prefix('_')?;
        let dtype = rest.split('_').next()?;
        ["f32", "bf16", "f16"].contains(&dtype).then_some((name, dtype))
    };
    medflamingo::ops::ALL.iter().filter_map(|e| parts(e.name)).max_by_key(|(name, _)| name.len())
}

/// Everything that does not hold, a line each.
pub fn check(compiled: &[Compiled]) -> Vec<String> {
    let mut broken = Vec::new();
    for c in compiled.iter().filter(|c| !c.is_empty()) {
        let mut say = |what: String| broken.push(format!("{} {}: {what}", c.entry, c.arch));
        let Some((kernel, dtype)) = kernel_of(&c.entry) else {
            say("belongs to no kernel of ops::ALL".into());
            continue;
        };
        let budget = BUDGETS.iter().find(|b| b.kernel == kernel).unwrap_or(&ANY);
        if c.stack > budget.stack {
            say(format!("{} bytes of stack", c.stack));
        }
        if c.mix.local > 0 && budget.stack == 0 {
            say(format!("{} loads and stores of local memory", c.mix.local));
        }
        if c.arch.starts_with("sm_9") && c.mix.waits == 0 {
            say("does not wait for the launch before it".into());
        }
        if c.registers > budget.registers {
            say(format!("{} registers, at most {}", c.registers, budget.registers));
        }
        if c.mix.fences_in_loop > 0 {
            say(format!("{} barriers for the card between products", c.mix.fences_in_loop));
        }
        // The paths for shapes without tiles, and for one query row a warp.
        if c.entry.contains("_plain") || c.entry.ends_with("_row") {
            continue;
        }
        if budget.tensor_cores && dtype != "f32" {
            if c.entry.contains("_sm90") {
                // Of one or two rows bytes are multiplied by a warp.
                let products = if c.entry.ends_with("_rows8") { c.mix.hmma } else { c.mix.hgmma };
                if products == 0 || c.mix.tma == 0 {
                    let (hgmma, hmma) = (c.mix.hgmma, c.mix.hmma);
                    say(format!("{hgmma} HGMMA, {hmma} HMMA, {} UTMALDG", c.mix.tma));
                }
            } else {
                // Few rows multiply weights as they come from memory, not from shared memory.
                let is_fed = c.mix.ldsm + c.mix.wide_shared > 0 || c.entry.contains("_rows");
                if c.mix.hmma == 0 || !is_fed {
                    say(format!("{} HMMA, {} LDSM", c.mix.hmma, c.mix.ldsm));
                }
            }
            let most = most_per_hmma(&c.entry);
            if c.mix.per_hmma > most {
                say(format!("{} instructions for each HMMA, at most {most}", c.mix.per_hmma));
            }
        }
        if let Some(most) = budget.narrow_loads {
            if c.mix.narrow_loads > most {
                say(format!("{} narrow loads, at most {most}", c.mix.narrow_loads));
            }
            if c.mix.wide_loads == 0 {
                say("no loads of 16 bytes".into());
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sass::{self, Mix};

    fn entry(name: &str, mix: Mix) -> Compiled {
        Compiled {
            entry: name.into(),
            arch: "sm_80".into(),
            registers: 64,
            stack: 0,
            shared: 0,
            threads: 128,
            mix: Mix { all: 100, ..mix },
        }
    }

    #[test]
    fn entries_belong_to_the_longest_name() {
        assert_eq!(kernel_of("self_attention_bf16_x"), Some(("self_attention", "bf16")));
        assert_eq!(kernel_of("attention_f32"), Some(("attention", "f32")));
        assert_eq!(kernel_of("attention_of_bf16"), None);
        assert_eq!(kernel_of("nothing_bf16"), None);
    }

    #[test]
    fn what_does_not_hold_is_said() {
        let good = Mix { hmma: 4, ldsm: 2, ..Mix::default() };
        assert_eq!(check(&[entry("gemm_bf16_64x64", good.clone())]), [""; 0]);
        assert_eq!(check(&[entry("gemm_bf16_64x64", Mix { local: 1, ..good })]).len(), 1);
        assert_eq!(check(&[entry("gemm_f16_64x64", Mix::default())]).len(), 1);
        assert_eq!(check(&[entry("gemm_f32", Mix::default())]), [""; 0]);
        let hopper = |waits| Compiled {
            arch: "sm_90a".into(),
            ..entry("swiglu_f32", Mix { waits, wide_loads: 1, ..Mix::default() })
        };
        assert_eq!((check(&[hopper(1)]).len(), check(&[hopper(0)]).len()), (0, 1));
        let fenced = Mix { fences_in_loop: 1, ..Mix::default() };
        assert_eq!(check(&[entry("swiglu_f32", Mix { wide_loads: 1, ..fenced })]).len(), 1);
        let busy = Mix { hmma: 4, wide_shared: 1, per_hmma: 4.6, ..Mix::default() };
        assert_eq!(check(&[entry("gemm_quantized_bf16_int8_rows8", busy.clone())]), [""; 0]);
        assert_eq!(check(&[entry("gemm_quantized_bf16_int8_tiles", busy)]).len(), 1);
        let narrow = Mix { narrow_loads: 1, wide_loads: 1, ..Mix::default() };
        assert_eq!(check(&[entry("rmsnorm_bf16_packs1", narrow.clone())]).len(), 1);
        assert_eq!(check(&[entry("rmsnorm_bf16_plain", narrow)]), [""; 0]);
        assert_eq!(check(&[entry("stranger", Mix::default())]).len(), 1);
    }

    /// Compiles a kernel that cannot but spill, past the script that would refuse it.
    #[test]
    fn a_planted_spill_is_found() {
        let found = std::process::Command::new("sh").args(["kernels/build", "--find"]).output();
        let text = String::from_utf8(found.unwrap().stdout).unwrap();
        let (Some(nvcc), Ok(tools)) = (text.lines().next(), sass::find_tools()) else {
            eprintln!("SKIPPED a_planted_spill_is_found: no nvcc; run tools/cuda-toolkit");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let (source, fatbin) = (folder.path().join("a.cu"), folder.path().join("a.fatbin"));
        std::fs::write(&source, include_str!("samples/spill.cu")).unwrap();
        let status = std::process::Command::new(nvcc)
            .args(["-std=c++17", "-O3", "-arch=sm_80", "--fatbin", "-o"])
            .args([&fatbin, &source])
            .output()
            .unwrap();
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
        let compiled = sass::read(&tools, &fatbin).unwrap();
        let broken = check(&compiled);
        assert!(broken.iter().any(|b| b.contains("local memory")), "{broken:?}");
        assert!(broken.iter().any(|b| b.contains("stack")), "{broken:?}");

        let refused = std::process::Command::new("sh")
            .args(["kernels/build", "--nvcc", nvcc])
            .args([folder.path(), &source])
            .output()
            .unwrap();
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("spilled"));
    }
}
