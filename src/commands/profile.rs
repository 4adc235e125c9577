//! `medflamingo profile`

use super::generate::request;
use clap::Args;
use medflamingo::device::{Device, Recording, Stream};
use medflamingo::engine::{Control, Engine, EngineOptions, GenerateOptions};
use medflamingo::profile::{
    BRIEF, Case, Ceilings, Effort, Line, NINE_B, QUICK, THOROUGH, cases, chrome, summary,
};
use medflamingo::{DType, Error, Result};
use serde_json::json;
use std::path::PathBuf;

/// Show where the time of one request goes, or of one kernel.
///
/// Every launch is timed and held against what the device gives in the same run: a copy, a
/// read-only pass, a large matrix product. --trace writes a timeline for ui.perfetto.dev.
/// Under ncu or nsys the ranges have names (NVTX) and nothing else is measured; --ncu prints the
/// command line.
///
/// Examples:
///   medflamingo profile --model med-flamingo --image a.jpg --prompt '<image>Question: What is
///   this? Answer:' --trace request.json
///   medflamingo profile --kernel gemm --case lm_head_1
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Profile {
    /// Model folder; profiles the request that --prompt and --image make
    #[arg(long, value_name = "DIR", requires = "prompt", required_unless_present = "kernel")]
    model: Option<PathBuf>,
    /// The prompt
    #[arg(long, value_name = "TEXT", requires = "model")]
    prompt: Option<String>,
    /// An image (JPEG or PNG) for each `<image>`, in order
    #[arg(long = "image", value_name = "FILE", requires = "model")]
    images: Vec<PathBuf>,
    /// Tokens to generate, exactly
    #[arg(long, default_value_t = 8, value_name = "N", requires = "model")]
    max_new_tokens: usize,
    /// Profile this kernel instead, at the shapes of the 9B model
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    kernel: Option<String>,
    /// Only this case of the kernel
    #[arg(long, value_name = "NAME", requires = "kernel")]
    case: Option<String>,
    /// Launches of each case, on operands that the caches do not hold
    #[arg(long, default_value_t = 16, value_name = "N", requires = "kernel",
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    launches: u32,
    /// Storage type of the kernel: f32, bf16 or f16
    #[arg(long, default_value = "bf16", value_name = "TYPE", requires = "kernel",
          value_parser = ["f32", "bf16", "f16"])]
    dtype: String,
    /// A quarter of the shapes in every direction, for a machine without a card
    #[arg(long, requires = "kernel")]
    quick: bool,
    /// Where to run: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: Device,
    /// Threads on the CPU; 0 is one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// Write the timeline, in Chrome's trace format
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    /// Print the command line that runs this under Nsight Compute, and do nothing else
    #[arg(long)]
    ncu: bool,
}

/// What was profiled, and on what.
struct Profiled {
    what: String,
    device: String,
    recording: Recording,
    ceilings: Option<Ceilings>,
}

impl Profile {
    pub fn run(self) -> Result<()> {
        if self.ncu {
            super::print_text(&format!("{}\n", ncu(std::env::args())));
            return Ok(());
        }
        let profiled = match (&self.kernel, &self.model) {
            (None, Some(model)) => self.request(model)?,
            _ => self.kernel()?,
        };
        let Profiled { what, device, recording, ceilings } = &profiled;
        if let Some(path) = &self.trace {
            let text = chrome(recording, ceilings.as_ref(), device).to_string();
            std::fs::write(path, text).map_err(|e| Error::io("write", path, e))?;
        }
        let lines = summary(recording, ceilings.as_ref());
        if self.json {
            return super::print_json(&json!({
                "what": what, "device": device, "ceilings": ceilings,
                "launches": recording.launches.len(), "lines": lines,
            }));
        }
        super::print_text(&table(&profiled, &lines));
        Ok(())
    }

    /// The second run of a request: the first brings the weights in.
    fn request(&self, model: &std::path::Path) -> Result<Profiled> {
        // What is remembered is not launched.
        let mut engine = Engine::open(
            model,
            &EngineOptions {
                device: self.device,
                threads: self.threads,
                image_cache: 0,
                prefixes: 0,
                ..EngineOptions::default()
            },
        )?;
        let prompt = self.prompt.as_deref().unwrap_or_default();
        let options = GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.max_new_tokens,
            ..GenerateOptions::default()
        };
        let asked = request(&engine, prompt, &self.images, options)?;
        if !engine.stream().is_profiled() {
            engine.generate(asked.clone(), &mut |_| Control::Continue)?;
        }
        engine.stream().record();
        engine.generate(asked, &mut |_| Control::Continue)?;
        let recording = engine.stream().recording()?;
        let effort = effort(engine.stream());
        let ceilings = ceilings(engine.stream(), engine.model().dtype(), &effort)?;
        let what = format!("{}, {} new tokens", model.display(), self.max_new_tokens);
        Ok(Profiled { what, device: engine.device(), recording, ceilings })
    }

    fn kernel(&self) -> Result<Profiled> {
        let chosen = self.cases()?;
        let stream = self.device.open(self.threads)?;
        let all = [DType::F32, DType::BF16, DType::F16];
        let dtype = all.into_iter().find(|d| d.name() == self.dtype).unwrap_or(DType::BF16);
        let effort = effort(&stream);
        let mut recording = Recording::default();
        for case in &chosen {
            case.with_operands(&stream, dtype, effort.ring, &mut |copies, launch| {
                if !stream.is_profiled() {
                    // Code is loaded and memory mapped; what caches hold is the last copy.
                    (0..copies).try_for_each(&mut *launch)?;
                }
                stream.record();
                (0..self.launches as usize).try_for_each(|i| launch(i % copies))?;
                recording.append(stream.recording()?, case.name.clone());
                Ok(())
            })?;
        }
        let ceilings = ceilings(&stream, dtype, &effort)?;
        let titles: Vec<String> = chosen.iter().map(Case::title).collect();
        Ok(Profiled { what: titles.join(", "), device: stream.describe(), recording, ceilings })
    }

    fn cases(&self) -> Result<Vec<Case>> {
        let all = cases(if self.quick { &QUICK } else { &NINE_B });
        let kernel = self.kernel.as_deref().unwrap_or_default();
        let mut kernels: Vec<&str> = all.iter().map(|c| c.kernel).collect();
        kernels.sort_unstable();
        kernels.dedup();
        if !kernels.contains(&kernel) {
            let expected = format!("one of {}", kernels.join(", "));
            return Err(Error::invalid("--kernel", expected, format!("`{kernel}`")));
        }
        let own: Vec<Case> = all.into_iter().filter(|c| c.kernel == kernel).collect();
        let Some(name) = &self.case else { return Ok(own) };
        let names: Vec<String> = own.iter().map(|c| c.name.clone()).collect();
        let chosen: Vec<Case> = own.into_iter().filter(|c| c.name == *name).collect();
        if chosen.is_empty() {
            let expected = format!("one of {}", names.join(", "));
            return Err(Error::invalid("--case", expected, format!("`{name}`")));
        }
        Ok(chosen)
    }
}

fn effort(stream: &Stream) -> Effort {
    if stream.is_host() { BRIEF } else { THOROUGH }
}

/// Absent under a profiler, which would time them as well.
fn ceilings(stream: &Stream, dtype: DType, effort: &Effort) -> Result<Option<Ceilings>> {
    if stream.is_profiled() {
        return Ok(None);
    }
    Ceilings::measure(stream, dtype, effort.ring, effort.passes).map(Some)
}

/// The command line that runs `arguments` under Nsight Compute: only what is recorded is looked at.
fn ncu(arguments: impl Iterator<Item = String>) -> String {
    let quoted = arguments.filter(|a| a != "--ncu").map(|a| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,".contains(c);
        match !a.is_empty() && a.chars().all(is_plain) {
            true => a,
            false => format!("'{}'", a.replace('\'', r"'\''")),
        }
    });
    let command: Vec<String> = quoted.collect();
    format!(
        "ncu --profile-from-start off --nvtx --set full --clock-control none \
         --export medflamingo {}",
        command.join(" ")
    )
}

fn table(profiled: &Profiled, lines: &[Line]) -> String {
    use std::fmt::Write;
    let Profiled { what, device, recording, ceilings } = profiled;
    let (launches, us) = (&recording.launches, lines.iter().map(|l| l.us).sum::<f64>());
    let mut out = format!("{what} on {device}: {} launches, {:.3} ms\n", launches.len(), us / 1e3);
    if let Some(c) = ceilings {
        let _ = writeln!(
            out,
            "ceilings of this run: copy {:.1} GB/s, read {:.1} GB/s, product {:.3} TFLOP/s",
            c.copy / 1e9,
            c.read / 1e9,
            c.product / 1e12
        );
    }
    let mut phases: Vec<(&str, usize, f64)> = Vec::new();
    for phase in &recording.phases {
        let us: f64 = launches[phase.begin..phase.end].iter().map(|l| l.us).sum();
        match phases.iter_mut().find(|(name, ..)| *name == phase.name) {
            Some((_, count, sum)) => (*count, *sum) = (*count + 1, *sum + us),
            None => phases.push((&phase.name, 1, us)),
        }
    }
    for (name, count, us) in phases {
        let _ = writeln!(out, "{name:24} {count:5} times {:12.3} ms", us / 1e3);
    }
    let _ = writeln!(
        out,
        "\n{:36} {:>8} {:>12} {:>7} {:>10} {:>9} {:>9} {:>11}",
        "entry", "launches", "us", "time", "us each", "GB/s", "GFLOP/s", "of roofline"
    );
    for l in lines {
        let share = l.share_of_roofline.map_or("-".into(), |s| format!("{:.0} %", 100.0 * s));
        let _ = writeln!(
            out,
            "{:36} {:8} {:12.1} {:>7} {:10.1} {:9.1} {:9.1} {share:>11}",
            l.entry,
            l.launches,
            l.us,
            format!("{:.1} %", 100.0 * l.share_of_time),
            l.us / l.launches as f64,
            l.bytes / l.us.max(1e-9) / 1e3,
            l.flops / l.us.max(1e-9) / 1e3,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ncu_line_can_be_pasted() {
        let arguments =
            ["medflamingo", "profile", "--ncu", "--prompt", "it's <image>", "--case", ""];
        let line = ncu(arguments.into_iter().map(String::from));
        assert!(line.starts_with("ncu --profile-from-start off --nvtx "), "{line}");
        let end = r"medflamingo profile --prompt 'it'\''s <image>' --case ''";
        assert!(line.ends_with(end), "{line}");
    }
}
