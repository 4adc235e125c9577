//! Machine code as `cuobjdump` prints it: what an entry needs and what it is made of.

use medflamingo::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Instructions of one entry that tell how it works; of the code, not of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Mix {
    pub all: u32,
    /// Tensor-core products of one warp.
    pub hmma: u32,
    /// Tensor-core products of a warpgroup.
    pub hgmma: u32,
    /// Of the loop that has the most of them: all instructions, for each.
    pub per_hmma: f32,
    /// Shared memory to fragments.
    pub ldsm: u32,
    /// Loads of 16 bytes from shared memory.
    pub wide_shared: u32,
    /// Global to shared memory past registers: `cp.async`.
    pub ldgsts: u32,
    /// Boxes that the copy engine moves.
    pub tma: u32,
    /// Global loads of 16 bytes.
    pub wide_loads: u32,
    /// Global loads of less.
    pub narrow_loads: u32,
    /// Those of them in innermost loops.
    pub narrow_loads_in_loops: u32,
    /// Loads from and stores to local memory: spills and indexed arrays.
    pub local: u32,
    pub barriers: u32,
    /// Barriers of memory for the whole card, half a microsecond each, in the loop with the most
    /// tensor-core products that have no shorter one around them.
    pub fences_in_loop: u32,
    /// Waits for the launch before: Hopper's launches may overlap.
    pub waits: u32,
    /// exp2, reciprocals, roots.
    pub mufu: u32,
}

/// One entry for one architecture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compiled {
    pub entry: String,
    /// `sm_80`, `sm_90a`.
    pub arch: String,
    pub registers: u32,
    /// Of a thread, bytes.
    pub stack: u32,
    /// Static, bytes.
    pub shared: u32,
    /// Most threads of a block.
    pub threads: u32,
    pub mix: Mix,
}

impl Compiled {
    /// An entry that was written for another architecture has no body here.
    pub fn is_empty(&self) -> bool {
        self.mix.all < 12
    }
}

/// The folder of `cuobjdump` and `nvdisasm`: CUDA_HOME, CUDA_PATH, beside MEDFLAMINGO_NVCC, PATH,
/// /usr/local/cuda, then what tools/cuda-toolkit installed.
pub fn find_tools() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let mut folders: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(|name| variable(name).map(|home| home.join("bin")))
        .collect();
    folders.extend(variable("MEDFLAMINGO_NVCC").and_then(|p| Some(p.parent()?.to_path_buf())));
    if let Some(path) = std::env::var_os("PATH") {
        folders.extend(std::env::split_paths(&path));
    }
    folders.push("/usr/local/cuda/bin".into());
    for entry in std::fs::read_dir(".cuda/toolkit/lib").into_iter().flatten().flatten() {
        folders.push(entry.path().join("site-packages/nvidia/cu13/bin"));
    }
    let has_both = |f: &PathBuf| f.join("cuobjdump").is_file() && f.join("nvdisasm").is_file();
    folders.into_iter().find(has_both).ok_or_else(|| {
        Error::device("cuda", "no cuobjdump and nvdisasm")
            .advise("set CUDA_HOME to a CUDA toolkit, or run tools/cuda-toolkit")
    })
}

/// Every entry of a fatbin, for every architecture.
///
/// # Errors
/// If `cuobjdump` does not start or does not know the file.
pub fn read(tools: &Path, fatbin: &Path) -> Result<Vec<Compiled>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [tools.to_path_buf()].into_iter().chain(std::env::split_paths(&path));
    let path = std::env::join_paths(folders).unwrap_or(path);
    let run = |option: &str| -> Result<String> {
        let mut command = Command::new(tools.join("cuobjdump"));
        let output = command.arg(option).arg(fatbin).env("PATH", &path).output();
        let output = output.map_err(|e| Error::io("run", tools.join("cuobjdump"), e))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_string();
            return Err(Error::invalid(fatbin.display(), "a fatbin", why));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let mut found = resources(&run("-res-usage")?);
    let threads = threads(&run("-ptx")?);
    let mixes = mixes(&run("-sass")?);
    for c in &mut found {
        c.threads = threads.get(&c.entry).copied().unwrap_or(0);
        c.mix = mixes.get(&(c.arch.clone(), c.entry.clone())).cloned().unwrap_or_default();
    }
    Ok(found)
}

/// From `cuobjdump -res-usage`.
fn resources(text: &str) -> Vec<Compiled> {
    let (mut arch, mut entry) = ("", "");
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("arch = ") {
            arch = name;
        } else if let Some(name) = line.strip_prefix("Function ") {
            entry = name.trim_end_matches(':');
        } else if line.starts_with("REG:") {
            let field = |name: &str| {
                let value = line.split_whitespace().find_map(|w| w.strip_prefix(name));
                value.and_then(|v| v.parse().ok()).unwrap_or(0)
            };
            found.push(Compiled {
                entry: entry.to_string(),
                arch: arch.to_string(),
                registers: field("REG:"),
                stack: field("STACK:").max(field("LOCAL:")),
                shared: field("SHARED:").saturating_sub(system_shared(arch)),
                threads: 0,
                mix: Mix::default(),
            });
        }
    }
    found
}

/// What Hopper's files count as static although it is each block's own 1 KiB for the system.
fn system_shared(arch: &str) -> u32 {
    if arch.starts_with("sm_9") { 1024 } else { 0 }
}

/// Launch bounds, from `cuobjdump -ptx`.
fn threads(text: &str) -> BTreeMap<String, u32> {
    let mut entry = "";
    let mut found = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if let Some((_, name)) = line.split_once(".entry ") {
            entry = name.trim_end_matches(['(', ')', ' ']);
        } else if let Some(sizes) = line.strip_prefix(".maxntid ") {
            let product = sizes.split(',').filter_map(|n| n.trim().parse::<u32>().ok()).product();
            found.insert(entry.to_string(), product);
        }
    }
    found
}

/// Instructions by architecture and entry, from `cuobjdump -sass`.
fn mixes(text: &str) -> BTreeMap<(String, String), Mix> {
    let mut found = BTreeMap::new();
    let (mut arch, mut entry) = (String::new(), String::new());
    let mut code = Vec::new();
    for line in text.lines().map(str::trim) {
        let function = line.strip_prefix("Function : ");
        let target = line.strip_prefix("code for ");
        if function.is_some() || target.is_some() {
            if !code.is_empty() {
                found.insert((arch.clone(), std::mem::take(&mut entry)), mix(&code));
                code.clear();
            }
            entry = function.map_or(entry, str::to_string);
            arch = target.map_or(arch, str::to_string);
        } else if let Some(instruction) = instruction(line) {
            code.push(instruction);
        }
    }
    if !code.is_empty() {
        found.insert((arch, entry), mix(&code));
    }
    found
}

struct Instruction<'a> {
    address: u64,
    /// With its modifiers: `LDG.E.128`.
    name: &'a str,
    /// Where a branch goes.
    target: Option<u64>,
}

/// `/*0230*/  @P1 BRA 0xb20 ;  /* encoding */`; other lines are not instructions.
fn instruction(line: &str) -> Option<Instruction<'_>> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    let address = u64::from_str_radix(address, 16).ok()?;
    let mut words = rest.split(';').next()?.split_whitespace().peekable();
    words.next_if(|w| w.starts_with('@'));
    let name = words.next()?;
    let number = |w: &str| u64::from_str_radix(w.strip_prefix("0x")?, 16).ok();
    let target = name.starts_with("BRA").then(|| words.last().and_then(number)).flatten();
    Some(Instruction { address, name, target })
}

fn mix(code: &[Instruction<'_>]) -> Mix {
    // A loop ends in a branch back. What ends the code, a branch to itself, is none.
    let back = |i: &Instruction<'_>| i.target.filter(|&t| t < i.address).map(|t| (t, i.address));
    let loops: Vec<(u64, u64)> = code.iter().filter_map(back).collect();
    let holds = |outer: &(u64, u64), inner: &(u64, u64)| {
        outer != inner && outer.0 <= inner.0 && inner.1 <= outer.1
    };
    let innermost: Vec<_> =
        loops.iter().filter(|o| !loops.iter().any(|inner| holds(o, inner))).collect();
    let mut mix = Mix::default();
    for i in code {
        let mut words = i.name.split('.');
        let (name, is_wide) = (words.next().unwrap_or_default(), words.any(|w| w == "128"));
        match name {
            "NOP" => continue,
            "HMMA" | "IMMA" => mix.hmma += 1,
            "HGMMA" | "IGMMA" | "QGMMA" => mix.hgmma += 1,
            "LDSM" => mix.ldsm += 1,
            "LDS" if is_wide => mix.wide_shared += 1,
            "LDGSTS" => mix.ldgsts += 1,
            "UTMALDG" | "UTMASTG" | "UBLKCP" => mix.tma += 1,
            "LDG" | "LD" if is_wide => mix.wide_loads += 1,
            "LDG" | "LD" => {
                mix.narrow_loads += 1;
                mix.narrow_loads_in_loops += u32::from(innermost.iter().any(|l| within(i, l)));
            }
            "LDL" | "STL" => mix.local += 1,
            "BAR" => mix.barriers += 1,
            "ACQBULK" => mix.waits += 1,
            "MUFU" => mix.mufu += 1,
            _ => {}
        }
        mix.all += 1;
    }
    let hmma_of = |l: &(u64, u64)| {
        let body = code.iter().filter(|i| within(i, l));
        let hmma = body.clone().filter(|i| is_hmma(i)).count();
        (hmma, body.filter(|i| i.name != "NOP").count())
    };
    let busy: Vec<_> = loops.iter().filter(|l| hmma_of(l).0 > 0).collect();
    let innermost = busy.iter().filter(|o| !busy.iter().any(|inner| holds(o, inner)));
    // A wait that was moved behind the code branches back into its loop: another, longer one.
    let fewest = |&(hmma, all): &(usize, usize)| (hmma, std::cmp::Reverse(all));
    if let Some((hmma, all)) = innermost.map(|l| hmma_of(l)).max_by_key(fewest) {
        mix.per_hmma = all as f32 / hmma as f32;
    }
    mix.fences_in_loop = fences_in_loop(code, &loops);
    mix
}

/// A product of a warp, of elements or of bytes.
fn is_hmma(i: &Instruction<'_>) -> bool {
    ["HMMA", "IMMA"].iter().any(|p| i.name.starts_with(p))
}

fn within(i: &Instruction<'_>, (first, last): &(u64, u64)) -> bool {
    (*first..=*last).contains(&i.address)
}

/// See [`Mix::fences_in_loop`].
fn fences_in_loop(code: &[Instruction<'_>], loops: &[(u64, u64)]) -> u32 {
    let is_product = |i: &&Instruction<'_>| is_hmma(i) || i.name.starts_with("HGMMA");
    // Waits that were moved out of a loop make longer ones of what lies between.
    let shortest = |i: &Instruction<'_>| {
        loops.iter().filter(|l| within(i, l)).min_by_key(|(first, last)| last - first)
    };
    let mut products = BTreeMap::<_, u32>::new();
    for around in code.iter().filter(is_product).filter_map(shortest) {
        *products.entry(around).or_default() += 1;
    }
    let Some((most, _)) = products.iter().max_by_key(|(_, count)| **count) else { return 0 };
    let is_fence = |i: &&Instruction<'_>| {
        i.name.starts_with("MEMBAR") && !i.name.ends_with("CTA") && within(i, most)
    };
    code.iter().filter(is_fence).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_usage_is_read_per_architecture() {
        let found = resources(include_str!("samples/res-usage.txt"));
        let lines: Vec<_> = found
            .iter()
            .map(|c| (c.arch.as_str(), c.entry.as_str(), c.registers, c.stack, c.shared))
            .collect();
        assert_eq!(
            lines,
            [
                ("sm_80", "rmsnorm_bf16_plain", 31, 0, 64),
                ("sm_80", "rmsnorm_bf16_packs4", 48, 16, 0),
                ("sm_90a", "rmsnorm_bf16_plain", 30, 0, 64)
            ]
        );
    }

    #[test]
    fn launch_bounds_are_read() {
        let found = threads(include_str!("samples/ptx.txt"));
        assert_eq!(found.get("rmsnorm_f32_packs1"), Some(&256));
        assert_eq!(found.get("gemm_bf16_tile"), Some(&384));
    }

    #[test]
    fn instructions_are_counted_and_loops_found() {
        let found = mixes(include_str!("samples/sass.txt"));
        let of = |arch: &str, entry: &str| &found[&(arch.to_string(), entry.to_string())];
        let mix = of("sm_80", "sum_bf16");
        assert_eq!((mix.all, mix.wide_loads, mix.narrow_loads), (16, 1, 2));
        assert_eq!((mix.hmma, mix.per_hmma, mix.wide_shared), (1, 7.0, 1));
        assert_eq!(mix.fences_in_loop, 1, "not that of a block, nor the one after the loop");
        assert_eq!(mix.narrow_loads_in_loops, 1, "the load before the loop does not count");
        assert_eq!((mix.barriers, mix.mufu, mix.local), (1, 1, 0));
        let mix = of("sm_90a", "gemm_bf16_rows");
        assert_eq!(
            (mix.hmma, mix.per_hmma),
            (1, 4.0),
            "not from the product to the wait behind it"
        );
        let mix = of("sm_90a", "gemm_bf16_sm90");
        assert_eq!((mix.hgmma, mix.tma, mix.hmma), (1, 1, 0));
        assert_eq!((mix.local, mix.ldsm, mix.ldgsts), (2, 1, 1));
    }

    #[test]
    fn damaged_output_is_not_a_crash() {
        for text in ["", "Function : a\n/*zz*/ X ;\n/*0000*/", "REG: STACK:x", ".maxntid 1"] {
            assert!(mixes(text).values().all(|m| m.all == 0), "{text}");
            let _ = (resources(text), threads(text));
        }
    }
}
