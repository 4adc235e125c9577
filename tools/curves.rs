//! `medflamingo-tools curves`: the losses of training runs as a picture.

use crate::report;
use clap::Args;
use medflamingo::run::LINES;
use medflamingo::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

const WIDTH: f64 = 960.0;
const PANEL: f64 = 280.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 190.0;
/// Inside a panel: of its title, and of the labels under the axis.
const HEAD: f64 = 40.0;
const FOOT: f64 = 34.0;
const COLORS: [&str; 6] = ["#1f6f8b", "#c1502e", "#4f7f3a", "#7a4f9a", "#a8802a", "#555555"];

/// Draw the losses of training runs as an SVG: a panel per run folder, a color per source.
///
/// Thin lines are training losses, averaged over windows of steps; thick lines with dots are
/// validation losses. Nats per predicted token, on a logarithmic axis.
#[derive(Args)]
pub struct Curves {
    /// Run folders of `medflamingo train`
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Where to write the picture
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// One line of a panel: (step, nats) in order.
type Line = Vec<(f64, f64)>;

/// The losses of one run by source.
struct Run {
    name: String,
    training: BTreeMap<String, Line>,
    validation: BTreeMap<String, Line>,
}

impl Curves {
    pub fn run(self) -> Result<()> {
        let runs = self.runs.iter().map(|run| read(run)).collect::<Result<Vec<_>>>()?;
        let svg = draw(&runs);
        std::fs::write(&self.output, svg).map_err(|e| Error::io("write", &self.output, e))?;
        report::print(format!("{} runs in {}\n", runs.len(), self.output.display()))
    }
}

fn read(folder: &Path) -> Result<Run> {
    let path = folder.join(LINES);
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut run = Run { name, training: BTreeMap::new(), validation: BTreeMap::new() };
    for (i, line) in text.lines().enumerate() {
        let who = || format!("{}: line {}", path.display(), i + 1);
        let value: Value = serde_json::from_str(line)
            .map_err(|e| Error::invalid(who(), "a JSON object of metrics", e))?;
        let lines = match value["kind"].as_str() {
            Some("train") => &mut run.training,
            Some("validation") => &mut run.validation,
            _ => continue,
        };
        let Some(step) = value["step"].as_f64() else {
            return Err(Error::invalid(who(), "a number `step`", &value["step"]));
        };
        let losses = value.as_object().into_iter().flatten();
        for (source, loss) in losses.filter_map(|(k, v)| Some((k.strip_prefix("loss/")?, v))) {
            if let Some(loss) = loss.as_f64().filter(|loss| loss.is_finite() && *loss > 0.0) {
                lines.entry(source.into()).or_default().push((step, loss));
            }
        }
    }
    if run.training.is_empty() {
        return Err(Error::invalid(path.display(), "losses of training steps", "none"));
    }
    Ok(run)
}

/// Means of windows, at most a hundred of them.
fn smooth(line: &Line) -> Line {
    let window = line.len().div_ceil(100).max(1);
    let mean = |some: &[(f64, f64)]| {
        let n = some.len() as f64;
        (some.iter().map(|p| p.0).sum::<f64>() / n, some.iter().map(|p| p.1).sum::<f64>() / n)
    };
    line.chunks(window).map(mean).collect()
}

/// Where numbers are in a panel.
struct Axes {
    top: f64,
    steps: f64,
    /// Nats at the bottom and at the top.
    losses: (f64, f64),
}

impl Axes {
    fn of(run: &Run, top: f64) -> Self {
        let all = || run.training.values().chain(run.validation.values()).flatten();
        let steps = all().map(|p| p.0).fold(1.0, f64::max);
        let least = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let most = all().map(|p| p.1).fold(0.0, f64::max);
        // What has been learned by heart would take all the room.
        let low = (0.9 * least).clamp(most / 1000.0, most / 2.0);
        Axes { top, steps, losses: (low, most * 1.1) }
    }

    fn x(&self, step: f64) -> f64 {
        LEFT + step / self.steps * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, loss: f64) -> f64 {
        let (low, high) = self.losses;
        let share = (loss.max(low) / low).ln() / (high / low).ln();
        self.top + HEAD + (1.0 - share) * (PANEL - HEAD - FOOT)
    }

    fn draw(&self, out: &mut String, title: &str) {
        let (bottom, right) = (self.y(self.losses.0), WIDTH - RIGHT);
        let _ = writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"15\">{title}</text>\
             <path d=\"M{LEFT} {:.1}V{bottom:.1}H{right}\" fill=\"none\" stroke=\"#999\"/>",
            self.top + 26.0,
            self.top + HEAD
        );
        for i in 0..=4 {
            let step = self.steps * f64::from(i) / 4.0;
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{step:.0}\
                 </text>",
                self.x(step),
                bottom + 16.0
            );
        }
        let decades = (-5..=2).flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d)));
        let (low, high) = self.losses;
        for loss in decades.filter(|loss| (low..=high).contains(loss)) {
            let at = self.y(loss);
            let _ = writeln!(
                out,
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{loss}</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
    }

    fn line(&self, out: &mut String, line: &Line, color: &str, width: f64) {
        let at = |(i, p): (usize, &(f64, f64))| {
            let letter = if i == 0 { 'M' } else { 'L' };
            format!("{letter}{:.1} {:.1}", self.x(p.0), self.y(p.1))
        };
        let path: String = line.iter().enumerate().map(at).collect();
        let _ = writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\"/>"
        );
    }
}

fn draw(runs: &[Run]) -> String {
    let height = PANEL * runs.len() as f64 + 8.0;
    let mut out = String::new();
    for (i, run) in runs.iter().enumerate() {
        let axes = Axes::of(run, PANEL * i as f64);
        axes.draw(&mut out, &format!("{}: nats a predicted token, by step", escaped(&run.name)));
        let mut sources: Vec<&String> = run.training.keys().chain(run.validation.keys()).collect();
        sources.sort();
        sources.dedup();
        for (j, source) in sources.into_iter().enumerate() {
            let color = COLORS[j % COLORS.len()];
            if let Some(line) = run.training.get(source) {
                axes.line(&mut out, &smooth(line), color, 1.0);
            }
            let validation = run.validation.get(source);
            let mut label = source.clone();
            if let Some(line) = validation {
                axes.line(&mut out, line, color, 2.5);
                for p in line {
                    let (x, y) = (axes.x(p.0), axes.y(p.1));
                    let _ = writeln!(
                        out,
                        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"
                    );
                }
                let last = line.last().map_or(0.0, |p| p.1);
                let _ = write!(label, ", at last {last:.3}");
            }
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\">{}</text>",
                WIDTH - RIGHT + 12.0,
                axes.top + HEAD + 14.0 + 18.0 * j as f64,
                escaped(&label)
            );
        }
    }
    report::svg(WIDTH, height, &out)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
