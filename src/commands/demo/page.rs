//! The demo as one HTML file with everything in it.

use super::phantom::{NOTICE, Results, Shown, timing};
use medflamingo::Result;
use medflamingo::engine::TokenLogprob;
use medflamingo::eval::{Look, Rate, Report, Row};
use medflamingo::image::{Picture, encode_png};
use std::fmt::Write;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2430; background: #fff }
.notice { background: #fff3cd; border: 1px solid #e0c060; padding: .6rem 1rem; font-weight: 600 }
.shots { display: flex; flex-wrap: wrap; gap: .8rem }
figure { margin: 0; width: 11rem }
figcaption { font-size: 13px }
svg.picture { width: 11rem; height: 11rem; display: block; image-rendering: pixelated }
.query { outline: 3px solid #2563eb }
.answer { font-size: 1.1rem; margin: .6rem 0 }
.token { display: inline-block; border: 1px solid #cbd5e1; border-radius: 4px; margin: 2px;
  padding: 2px 6px; vertical-align: top }
.token small { display: block; color: #64748b; font-size: 11px }
.right { color: #15803d } .wrong { color: #b91c1c }
table { border-collapse: collapse; margin: .8rem 0 } td, th { padding: .25rem .8rem;
  border-bottom: 1px solid #e2e8f0; text-align: left } td.number { text-align: right }
.note { color: #64748b; font-size: 13px }
@media (prefers-color-scheme: dark) { body { color: #e2e8f0; background: #10151d }
  .notice { color: #1c2430 } td, th { border-color: #334155 } }
";

/// The page.
///
/// # Errors
/// A picture that PNG does not hold.
pub fn render(results: &Results) -> Result<String> {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>medflamingo: demo</title><style>{STYLE}</style></head><body>\n\
         <p class=\"notice\">{NOTICE}</p>\n<h1>Few-shot questions about pictures</h1>\n\
         <p>A Flamingo of {:.2} million parameters ({}) on {}. Every picture below was drawn by a \
         program, and so was every picture that the model was trained on; none of these was among \
         them.</p>\n",
        results.parameters as f64 / 1e6,
        escape(&results.model),
        escape(&results.device)
    );
    let mut title = "";
    for shown in &results.shown {
        if shown.title != title {
            title = shown.title;
            html += &format!("<h2>{title}</h2>\n");
        }
        example(&mut html, shown)?;
    }
    if let Some(report) = &results.report {
        tables(&mut html, report);
    }
    html += &format!(
        "<p class=\"note\">First token {:.0} ms after the start, everything {:.1} s.</p>\n\
         <p class=\"notice\">{NOTICE}</p>\n</body></html>\n",
        1e3 * results.first_token_seconds,
        results.seconds
    );
    Ok(html)
}

fn example(html: &mut String, shown: &Shown) -> Result<()> {
    if !shown.preamble.is_empty() {
        *html += &format!("<p>{}</p>\n", escape(&shown.preamble));
    }
    *html += "<div class=\"shots\">\n";
    let last = shown.pictures.len().saturating_sub(1);
    for (i, (picture, text)) in shown.pictures.iter().zip(&shown.texts).enumerate() {
        let look = shown.looks.get(i).and_then(Option::as_ref);
        let class = if i == last { "picture query" } else { "picture" };
        *html += &format!(
            "<figure>{}<figcaption>{}</figcaption></figure>\n",
            image(picture, look, class)?,
            escape(&text.replace("<|endofchunk|>", ""))
        );
    }
    let (class, verdict) = match shown.is_right {
        true => ("right", "right".to_string()),
        false => ("wrong", format!("wrong: expected {}", shown.expected)),
    };
    *html += &format!(
        "</div>\n<p class=\"answer\">The model: <b>{}</b> \
         <span class=\"{class}\">({})</span></p>\n",
        escape(shown.answer.text.trim()),
        escape(&verdict)
    );
    *html += "<p>";
    shown.answer.logprobs.iter().for_each(|token| *html += &probability(token));
    *html += &format!("</p>\n<p class=\"note\">{}</p>\n", escape(&timing(&shown.answer)));
    Ok(())
}

/// A token, its probability, and what else it might have been.
fn probability(token: &TokenLogprob) -> String {
    let percent = |p: f32| format!("{:.1} %", 100.0 * p.exp());
    let others = token.top.iter().filter(|(id, _, _)| *id != token.id).take(2);
    let others: String =
        others.map(|(_, t, p)| format!("<small>{} {}</small>", escape(t), percent(*p))).collect();
    let own = percent(token.logprob);
    format!(
        "<span class=\"token\">{}<small><b>{own}</b></small>{others}</span>",
        escape(&token.token)
    )
}

/// A picture with the patches that were looked at, the more the redder.
fn image(picture: &Picture, look: Option<&Look>, class: &str) -> Result<String> {
    let side = picture.width;
    let mut svg = format!(
        "<svg class=\"{class}\" viewBox=\"0 0 {side} {side}\"><image width=\"{side}\" \
         height=\"{side}\" href=\"data:image/png;base64,{}\"/>",
        base64(&encode_png(picture)?)
    );
    if let Some(look) = look {
        let most = look.patches.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        let size = side / look.side.max(1);
        for (i, share) in look.patches.iter().enumerate() {
            let (x, y) = (i % look.side * size, i / look.side * size);
            let opacity = 0.55 * share / most;
            if opacity > 0.02 {
                let _ = write!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{size}\" height=\"{size}\" fill=\"#ff3b1f\" \
                     fill-opacity=\"{opacity:.2}\"><title>{:.1} %</title></rect>",
                    100.0 * share
                );
            }
        }
    }
    Ok(svg + "</svg>")
}

fn tables(html: &mut String, report: &Report) {
    *html += &format!(
        "<h2>How often it is right</h2>\n<p>{} new questions of each sort after {} examples (seed \
         {}), with 95 % intervals (Wilson). Whoever sees the pictures and reads the examples falls \
         to chance when they are taken away; what each control should leave is computed from the \
         questions. Red patches above: where cross-attention took its information from (averaged \
         over layers and heads, through the resampler).</p>\n",
        report.options.questions, report.options.shots, report.options.seed
    );
    for (title, rows) in [
        ("Words the model knows", &report.known),
        ("Words only the examples define; none was trained on", &report.coined),
    ] {
        *html += &format!(
            "<h3>{title}</h3>\n<table><tr><th></th><th>ranked answers</th><th></th>\
             <th>greedy text</th><th>expected</th></tr>\n"
        );
        rows.iter().for_each(|row| *html += &line(row));
        *html += "</table>\n";
    }
}

fn line(row: &Row) -> String {
    let outside = if row.holds { "" } else { " <span class=\"wrong\">outside</span>" };
    format!(
        "<tr><td>{}</td><td class=\"number\">{}</td><td>{}</td><td class=\"number\">{}</td>\
         <td class=\"number\">{}{outside}</td></tr>\n",
        escape(row.control),
        row.ranked,
        interval(&row.ranked, row.expected),
        row.greedy,
        row.expectation()
    )
}

/// A share, its interval, and a mark where chance is.
fn interval(rate: &Rate, chance: Option<f64>) -> String {
    let x = |share: f64| 2.0 + 116.0 * share;
    let mut svg = format!(
        "<svg width=\"120\" height=\"14\"><rect x=\"2\" y=\"6\" width=\"116\" height=\"2\" \
         fill=\"#cbd5e1\"/><rect x=\"{:.1}\" y=\"4\" width=\"{:.1}\" height=\"6\" \
         fill=\"#93c5fd\"/>\
         <circle cx=\"{:.1}\" cy=\"7\" r=\"3.5\" fill=\"#2563eb\"/>",
        x(rate.low),
        x(rate.high) - x(rate.low),
        x(rate.share)
    );
    if let Some(share) = chance {
        let _ = write!(
            svg,
            "<rect x=\"{:.1}\" y=\"1\" width=\"1.5\" height=\"12\" fill=\"#b91c1c\"/>",
            x(share) - 0.75
        );
    }
    svg + "</svg>"
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i)) as usize & 63];
            text.push(if i > three.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[251, 255]), "+/8=");
    }

    #[test]
    fn text_of_a_model_cannot_become_markup() {
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
