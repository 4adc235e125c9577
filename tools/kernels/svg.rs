//! The launches of the named shapes under both cards' rooflines, both axes logarithmic.

use super::roofline::{CARDS, Card};
use super::{Report, Work};
use crate::report;
use std::collections::BTreeMap;
use std::fmt::Write;

const WIDTH: f64 = 960.0;
const PANEL: f64 = 330.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 50.0;
/// Inside a panel: of its title, and of the labels under the axis.
const HEAD: f64 = 26.0;
const FOOT: f64 = 84.0;
/// Operations per byte.
const X: (f64, f64) = (0.1, 4000.0);
/// TFLOP/s.
const Y: (f64, f64) = (0.1, 1500.0);
const COLORS: [&str; 2] = ["#1f6f8b", "#c1502e"];

fn x(intensity: f64) -> f64 {
    let share = (intensity.clamp(X.0, X.1) / X.0).ln() / (X.1 / X.0).ln();
    LEFT + share * (WIDTH - LEFT - RIGHT)
}

fn y(top: f64, tflops: f64) -> f64 {
    let share = (tflops.clamp(Y.0, Y.1) / Y.0).ln() / (Y.1 / Y.0).ln();
    top + HEAD + (1.0 - share) * (PANEL - HEAD - FOOT)
}

fn roof(card: &Card, intensity: f64) -> f64 {
    (card.bandwidth * intensity).min(card.peak) / 1e12
}

/// One panel per phase; a circle's area is the kernel's share of the phase's least time.
pub fn draw(report: &Report) -> String {
    let phases: Vec<&Work> = report.work.iter().filter(|w| w.card == CARDS[0].name).collect();
    let height = TOP + PANEL * phases.len() as f64;
    let mut out = format!(
        "<text x=\"{LEFT}\" y=\"22\" font-size=\"16\">Launches of {} under the rooflines</text>\n\
         <text x=\"{LEFT}\" y=\"40\" fill=\"#555\">x: operations per byte, y: TFLOP/s at most; \
         area and %: share of the least time (% on the A100); no operations: left edge</text>\n",
        report.model
    );
    for (i, card) in CARDS.iter().enumerate() {
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"22\" text-anchor=\"end\" fill=\"{}\">{}: {} TB/s, {} \
             TFLOP/s</text>",
            WIDTH - RIGHT - 210.0 * (1 - i) as f64,
            COLORS[i],
            card.name,
            card.bandwidth / 1e12,
            card.peak / 1e12
        );
    }
    for (i, phase) in phases.iter().enumerate() {
        let top = TOP + PANEL * i as f64;
        axes(&mut out, top, phase);
        for (card, color) in CARDS.iter().zip(COLORS) {
            let same = |w: &&Work| w.card == card.name && w.name == phase.name;
            if let Some(work) = report.work.iter().find(same) {
                points(&mut out, top, work, card, color);
            }
        }
        labels(&mut out, top, phase);
    }
    report::svg(WIDTH, height, &out)
}

fn axes(out: &mut String, top: f64, phase: &Work) {
    let (bottom, right) = (y(top, Y.0), WIDTH - RIGHT);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}: {} launches, {:.2} GB, {:.2} \
         TFLOP</text>",
        top + 14.0,
        phase.name,
        phase.launches,
        phase.bytes / 1e9,
        phase.flops / 1e12
    );
    for n in [0.1, 1.0, 10.0, 100.0, 1000.0] {
        let (h, v) = (x(n), y(top, n));
        let _ = writeln!(
            out,
            "<path d=\"M{h:.1} {bottom:.1}V{:.1}M{LEFT} {v:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{h:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{n}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{n}</text>",
            top + HEAD,
            bottom + 14.0,
            LEFT - 6.0,
            v + 4.0
        );
    }
    for (card, color) in CARDS.iter().zip(COLORS) {
        let knee = card.peak / card.bandwidth;
        let at = |intensity: f64| (x(intensity), y(top, roof(card, intensity)));
        let ((x0, y0), (x1, y1), (x2, y2)) = (at(X.0), at(knee), at(X.1));
        let _ = writeln!(
            out,
            "<path d=\"M{x0:.1} {y0:.1}L{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" fill=\"none\" \
             stroke=\"{color}\" stroke-width=\"1.5\"/>"
        );
    }
}

/// Kernel to operations per byte and share of the time.
fn kernels(work: &Work) -> BTreeMap<&'static str, (f64, f64)> {
    let mut sums: BTreeMap<&str, (f64, f64, f64)> = BTreeMap::new();
    for g in &work.groups {
        let (sum, n) = (sums.entry(g.kernel).or_default(), g.launches as f64);
        sum.0 += n * g.bytes;
        sum.1 += n * g.flops;
        sum.2 += n * g.roofline_us;
    }
    let share = |us: f64| us / work.roofline_us.max(f64::MIN_POSITIVE);
    sums.into_iter().map(|(k, (bytes, flops, us))| (k, (flops / bytes, share(us)))).collect()
}

fn points(out: &mut String, top: f64, work: &Work, card: &Card, color: &str) {
    for (intensity, share) in kernels(work).into_values() {
        let shown = intensity.clamp(X.0, X.1);
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{:.1}\" fill=\"{color}\" fill-opacity=\"0.45\" \
             stroke=\"{color}\"/>",
            x(shown),
            y(top, roof(card, shown)),
            2.5 + 15.0 * share.sqrt()
        );
    }
}

/// Names under the axis, on as many lines as keep them apart, each with a line to its points.
fn labels(out: &mut String, top: f64, work: &Work) {
    let mut names: Vec<(f64, String)> = kernels(work)
        .into_iter()
        .map(|(kernel, (intensity, share))| {
            let percent =
                if share < 0.001 { "&lt;0.1".into() } else { format!("{:.1}", 100.0 * share) };
            (x(intensity), format!("{kernel} {percent} %"))
        })
        .collect();
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let bottom = y(top, Y.0);
    let mut ends = [0.0_f64; 4];
    for (at, name) in names {
        let width = 6.4 * name.len() as f64;
        let start = |end: f64| (at - 4.0).max(end + 8.0);
        let line =
            (0..ends.len()).min_by(|&a, &b| start(ends[a]).total_cmp(&start(ends[b]))).unwrap_or(0);
        let left = start(ends[line]).min(WIDTH - RIGHT - width);
        ends[line] = left + width;
        let base = bottom + 30.0 + 14.0 * line as f64;
        let _ = writeln!(
            out,
            "<path d=\"M{at:.1} {:.1}V{bottom:.1}L{:.1} {:.1}\" fill=\"none\" stroke=\"#bbb\" \
             stroke-dasharray=\"2 3\"/><text x=\"{left:.1}\" y=\"{base:.1}\" \
             font-size=\"11\">{name}</text>",
            top + HEAD,
            left + 3.0,
            base - 9.0
        );
    }
}
