//! `medflamingo-tools inspect`.

use crate::report::{self, bytes};
use clap::Args;
use medflamingo::Result;
use medflamingo::convert::inspect::{self, Report};
use medflamingo::model::PRESETS;
use std::fmt::Write;
use std::path::PathBuf;

/// Show what is in a model folder or a checkpoint.
///
/// Tensors with type, shape and size; parameters by part; for a model folder, or a published model
/// that is not there (--preset), also the memory needed to run it at each precision. Reads headers
/// only and executes nothing.
#[derive(Args)]
pub struct Inspect {
    /// A model folder, a Hugging Face folder, a safetensors or a torch file
    #[arg(value_name = "PATH", required_unless_present = "preset", conflicts_with = "preset")]
    path: Option<PathBuf>,
    /// A published shape instead, without its weights
    #[arg(long, value_name = "NAME", value_parser = PRESETS)]
    preset: Option<String>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let found = match (&self.path, &self.preset) {
            (Some(path), _) => inspect::inspect(path)?,
            (None, preset) => inspect::inspect_preset(preset.as_deref().unwrap_or_default())?,
        };
        if self.json { report::print_json(&found) } else { report::print(text(&found)) }
    }
}

fn text(found: &Report) -> String {
    let mut out = String::new();
    for t in &found.tensors {
        let shape: Vec<_> = t.shape.iter().map(usize::to_string).collect();
        let shape = format!("({})", shape.join(", "));
        let _ = writeln!(out, "{:5} {shape:18} {:>9}  {}", t.dtype, bytes(t.bytes), t.name);
    }
    for (name, why) in &found.ignored {
        let _ = writeln!(out, "left out {name}: {why}");
    }
    let _ = writeln!(out, "\n{} ({})", found.path, found.format);
    for part in &found.parts {
        let parameters = part.parameters;
        let _ = writeln!(
            out,
            "{:28} {:5} tensors {parameters:>14} parameters {:>10}",
            part.name,
            part.tensors,
            bytes(part.bytes)
        );
    }
    let _ = writeln!(
        out,
        "{:28} {:5} tensors {:>14} parameters {:>10}",
        "all",
        found.tensors.len(),
        found.parameters,
        bytes(found.bytes)
    );
    let Some(model) = &found.model else { return out };
    let _ = writeln!(
        out,
        "\n{}: {} layers, {} gated blocks, {} tokens, context {}",
        model.family, model.layers, model.gated_blocks, model.vocabulary, model.context
    );
    let _ = writeln!(
        out,
        "precision     weights   cache per token  per image  with 300 tokens  with a full context"
    );
    for m in &model.memory {
        let _ = writeln!(
            out,
            "{:9} {:>11} {:>17} {:>10} {:>16} {:>20}",
            m.precision,
            bytes(m.weights),
            bytes(m.kv_per_token),
            bytes(m.per_image),
            bytes(m.at_300_tokens),
            bytes(m.total)
        );
    }
    out
}
