//! `medflamingo-tools kernels`: what the compiler made of every kernel, and what that allows.

mod budget;
mod roofline;
mod sass;
mod shapes;
mod svg;

use crate::report;
use clap::Args;
use medflamingo::convert::Scratch;
use medflamingo::device::{Cost, Launched, MODULES, TOOLKIT};
use medflamingo::model::{PRESETS, preset};
use medflamingo::{Error, Result};
use roofline::{CARDS, Card};
use sass::Compiled;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// Show what the compiler made of the GPU kernels. Needs no GPU.
///
/// For every entry and architecture: registers, shared memory, stack, local-memory accesses,
/// occupancy and the instructions that matter. For named shapes of a model: every launch with its
/// bytes, operations and least time on an A100 (1.7 TB/s, 312 TFLOP/s) and an H200 (4.3, 790).
/// Needs cuobjdump and nvdisasm, which tools/cuda-toolkit installs.
#[derive(Args)]
pub struct Kernels {
    /// Only entries whose name contains TEXT
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Read DIR/*.fatbin (made by kernels/build) instead of this binary's own kernels
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// The published model whose launches are counted
    #[arg(long, value_name = "NAME", default_value = "med-flamingo-9b",
          value_parser = clap::builder::PossibleValuesParser::new(PRESETS))]
    model: String,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Also draw the launches under both rooflines
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Only say which budgets do not hold; exit status 1 if any
    #[arg(long)]
    check: bool,
}

/// Everything, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    toolkit: String,
    model: String,
    entries: Vec<Entry>,
    work: Vec<Work>,
    budgets_broken: Vec<String>,
}

#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    compiled: Compiled,
    /// Most dynamic shared memory of the named shapes, bytes; null if none launches it.
    dynamic_shared: Option<u32>,
    /// Resident warps, of 64.
    occupancy: f64,
}

/// One phase on one card.
#[derive(Serialize)]
struct Work {
    card: &'static str,
    name: &'static str,
    rows: usize,
    launches: usize,
    bytes: f64,
    flops: f64,
    /// Sum of the least times of all launches.
    roofline_us: f64,
    groups: Vec<Group>,
}

/// Launches of one entry with one grid and cost.
#[derive(Serialize)]
struct Group {
    kernel: &'static str,
    entry: String,
    launches: usize,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    /// Of one launch.
    bytes: f64,
    flops: f64,
    roofline_us: f64,
    bound: &'static str,
}

impl Kernels {
    pub fn run(self) -> Result<()> {
        let compiled = self.compiled()?;
        let broken = budget::check(&compiled);
        if self.check {
            for line in &broken {
                eprintln!("{line}");
            }
            let count = compiled.iter().filter(|c| !c.is_empty()).count();
            if broken.is_empty() && count > 0 {
                return report::print(format!("{count} entries within their budgets\n"));
            }
            eprintln!("{} budgets do not hold, of {count} entries", broken.len());
            std::process::exit(1);
        }
        let config = preset(&self.model)?;
        let mut work = Vec::new();
        for card in &CARDS {
            work.extend(shapes::phases(&config, card)?.iter().map(|phase| of_phase(card, phase)));
        }
        let entries = compiled
            .into_iter()
            .filter(|c| !c.is_empty() && c.entry.contains(&self.filter))
            .map(|c| entry(c, &work))
            .collect();
        let toolkit = if self.kernels.is_some() { "" } else { TOOLKIT }.to_string();
        let report = Report { toolkit, model: self.model, entries, work, budgets_broken: broken };
        if let Some(path) = &self.svg {
            std::fs::write(path, svg::draw(&report)).map_err(|e| Error::io("write", path, e))?;
        }
        if self.json {
            return report::print_json(&report);
        }
        report::print(text(&report, &self.filter))
    }

    fn compiled(&self) -> Result<Vec<Compiled>> {
        let mut all = Vec::new();
        if let Some(folder) = &self.kernels {
            let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
            let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
            files.retain(|f| f.extension().is_some_and(|e| e == "fatbin"));
            files.sort();
            if files.is_empty() {
                return Err(Error::invalid(folder.display(), "files *.fatbin", "none"));
            }
            let tools = sass::find_tools()?;
            for file in files {
                all.extend(sass::read(&tools, &file)?);
            }
        } else if MODULES.is_empty() {
            eprintln!(
                "this binary was built without nvcc and has no GPU kernels: only launches are \
                 shown. Give --kernels DIR, or build where nvcc is"
            );
        } else {
            let tools = sass::find_tools()?;
            let scratch = Scratch::new("fatbins")?;
            for (stem, fatbin) in MODULES {
                let file = scratch.path().join(format!("{stem}.fatbin"));
                std::fs::write(&file, fatbin).map_err(|e| Error::io("write", &file, e))?;
                all.extend(sass::read(&tools, &file)?);
            }
        }
        all.sort_by(|a, b| (&a.entry, &a.arch).cmp(&(&b.entry, &b.arch)));
        Ok(all)
    }
}

fn entry(compiled: Compiled, work: &[Work]) -> Entry {
    let card = Card::of(&compiled.arch).unwrap_or(&CARDS[0]);
    let groups = work.iter().filter(|w| w.card == card.name).flat_map(|w| &w.groups);
    let launched: Vec<&Group> = groups.filter(|g| g.entry == compiled.entry).collect();
    let dynamic_shared = launched.iter().map(|g| g.shared).max();
    let threads = launched.iter().map(|g| g.threads).max().unwrap_or(compiled.threads);
    let occupancy = card.occupancy(&compiled, threads, dynamic_shared.unwrap_or(0));
    Entry { compiled, dynamic_shared, occupancy }
}

fn of_phase(card: &Card, phase: &shapes::Phase) -> Work {
    let mut groups = BTreeMap::<_, (usize, &Launched)>::new();
    for l in &phase.launches {
        let key = (l.entry.as_str(), l.grid, l.cost.bytes as u64, l.cost.flops as u64);
        groups.entry(key).or_insert((0, l)).0 += 1;
    }
    let sum = |f: &dyn Fn(Cost) -> f64| phase.launches.iter().map(|l| f(l.cost)).sum::<f64>();
    let group = |(launches, l): &(usize, &Launched)| Group {
        kernel: l.kernel,
        entry: l.entry.clone(),
        launches: *launches,
        grid: l.grid,
        threads: l.threads,
        shared: l.shared,
        bytes: l.cost.bytes,
        flops: l.cost.flops,
        roofline_us: card.us(l.cost),
        bound: if l.cost.flops / card.peak > l.cost.bytes / card.bandwidth {
            "products"
        } else {
            "memory"
        },
    };
    let mut groups: Vec<Group> = groups.values().map(group).collect();
    let total = |g: &Group| g.roofline_us * g.launches as f64;
    groups.sort_by(|a, b| total(b).total_cmp(&total(a)));
    Work {
        card: card.name,
        name: phase.name,
        rows: phase.rows,
        launches: phase.launches.len(),
        bytes: sum(&|c| c.bytes),
        flops: sum(&|c| c.flops),
        roofline_us: sum(&|c| card.us(c)),
        groups,
    }
}

fn text(report: &Report, filter: &str) -> String {
    let mut out = String::new();
    if !report.entries.is_empty() {
        entries_text(report, &mut out);
    }
    for work in &report.work {
        let _ = writeln!(
            out,
            "\n{} on {}, {}: {} launches, {:.2} GB, {:.3} TFLOP, at least {:.3} ms",
            work.name,
            work.card,
            report.model,
            work.launches,
            work.bytes / 1e9,
            work.flops / 1e12,
            work.roofline_us / 1e3
        );
        let _ = writeln!(
            out,
            "{:34} {:>5} {:>14} {:>7} {:>7} {:>10} {:>10} {:>9}  bound",
            "entry", "times", "grid", "threads", "shared", "MB", "GFLOP", "us each"
        );
        for g in work.groups.iter().filter(|g| g.entry.contains(filter)) {
            let [x, y, z] = g.grid;
            let _ = writeln!(
                out,
                "{:34} {:5} {:>14} {:7} {:7} {:10.3} {:10.3} {:9.2}  {}",
                g.entry,
                g.launches,
                format!("{x}x{y}x{z}"),
                g.threads,
                g.shared,
                g.bytes / 1e6,
                g.flops / 1e9,
                g.roofline_us,
                g.bound
            );
        }
    }
    for line in &report.budgets_broken {
        let _ = writeln!(out, "\nbudget: {line}");
    }
    out
}

fn entries_text(report: &Report, out: &mut String) {
    let _ = writeln!(
        out,
        "{:34} {:6} {:>4} {:>7} {:>13} {:>5} {:>5} {:>5}  {:>5} {:>5} {:>5} {:>5} {:>6} {:>4} \
         {:>5} {:>6} {:>4} {:>4}",
        "entry",
        "arch",
        "regs",
        "threads",
        "shared",
        "stack",
        "LDL/S",
        "warps",
        "HMMA",
        "each",
        "HGMMA",
        "LDSM",
        "LDGSTS",
        "TMA",
        "LD128",
        "narrow",
        "BAR",
        "MUFU"
    );
    for e in &report.entries {
        let (c, m) = (&e.compiled, &e.compiled.mix);
        let dynamic = e.dynamic_shared.map_or("-".to_string(), |n| n.to_string());
        let _ = writeln!(
            out,
            "{:34} {:6} {:4} {:7} {:>13} {:5} {:5} {:>5}  {:5} {:>5} {:5} {:5} {:6} {:4} {:5} \
             {:>6} {:4} {:4}",
            c.entry,
            c.arch,
            c.registers,
            c.threads,
            format!("{} + {dynamic}", c.shared),
            c.stack,
            m.local,
            format!("{:.0}", 64.0 * e.occupancy),
            m.hmma,
            if m.per_hmma > 0.0 { format!("{:.1}", m.per_hmma) } else { "-".into() },
            m.hgmma,
            m.ldsm,
            m.ldgsts,
            m.tma,
            m.wide_loads,
            format!("{}({})", m.narrow_loads, m.narrow_loads_in_loops),
            m.barriers,
            m.mufu
        );
    }
    let _ = writeln!(
        out,
        "shared: static + dynamic bytes (-: not in the shapes below). warps: resident, of 64. \
         each: all\ninstructions of the loop with the most HMMA, or IMMA, for each of them. narrow:\
         \nglobal loads below 16 bytes (in innermost loops). Counts are of the code, not of a run."
    );
}
