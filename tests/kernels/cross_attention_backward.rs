//! Attention to the latents of the images that a row may see, against the oracle.

use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use crate::oracle::attend_backward;
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, MediaSpan, MediaSpans};
use medflamingo::tensor::{Arena, Tensor};

pub struct Case {
    pub why: &'static str,
    pub images: usize,
    pub latents: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Per row: begin, end, uniform.
    pub spans: Vec<(i32, i32, i32)>,
    pub spread: f32,
    pub atol: f64,
}

pub fn cases() -> Vec<Case> {
    let plain = |why, images, spans| Case {
        why,
        images,
        latents: 64,
        heads: 2,
        head_dim: 64,
        spans,
        spread: 1.0,
        atol: 8e-6,
    };
    // No image, one, the next in the middle of a tile, all so far, none again, one beyond the next.
    let mut long = vec![(0, 0, 0); 10];
    for (rows, span) in [(110, (0, 1)), (30, (1, 2)), (60, (0, 3)), (20, (0, 0)), (70, (3, 4))] {
        long.extend(vec![(span.0, span.1, 0); rows]);
    }
    let mut prompt = vec![(0, 0, 0); 3];
    prompt.extend((0..40).map(|r| (r / 20, r / 20 + 1, 0)));
    vec![
        Case { latents: 1, heads: 1, head_dim: 1, ..plain("smallest", 1, vec![(0, 1, 0)]) },
        Case {
            latents: 5,
            heads: 3,
            head_dim: 7,
            ..plain("ragged", 2, vec![(0, 1, 0), (1, 2, 0), (1, 2, 0)])
        },
        plain("prompt_with_text_before_the_first_image", 2, prompt),
        Case { heads: 1, ..plain("several_tiles_of_rows", 4, long.clone()) },
        Case { heads: 1, head_dim: 80, latents: 100, ..plain("two_tiles_of_latents", 4, long) },
        plain("no_image", 0, vec![(0, 0, 0); 4]),
        plain("unseen_images", 3, vec![(1, 1, 0), (3, 3, 0), (0, 0, 1)]),
        plain("surplus_marker_is_uniform", 3, vec![(2, 3, 0), (0, 3, 1), (0, 3, 1)]),
        plain("span_of_several_images", 8, vec![(0, 8, 0), (2, 7, 0), (0, 8, 0), (0, 3, 0)]),
        Case { spread: 30.0, atol: 4e-4, ..plain("huge_logits", 2, vec![(0, 2, 0); 14]) },
    ]
}

struct Inputs {
    q: Vec<f32>,
    kv: Vec<f32>,
    d_o: Vec<f32>,
}

fn inputs(c: &Case) -> Inputs {
    let width = c.heads * c.head_dim;
    Inputs {
        q: scaled(normals(1, c.spans.len() * width), c.spread),
        kv: normals(2, c.images * c.latents * 2 * width),
        d_o: normals(3, c.spans.len() * width),
    }
}

/// dq and dkv.
fn oracle<T: Real>(c: &Case, i: &Inputs) -> (Vec<f64>, Vec<f64>) {
    let (width, d) = (c.heads * c.head_dim, c.head_dim);
    let [q, kv, d_o] = [&i.q, &i.kv, &i.d_o].map(|x| rounded::<T>(x));
    let (mut dq, mut dkv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
    for (r, &(begin, end, uniform)) in c.spans.iter().enumerate() {
        for h in 0..c.heads {
            let seen = begin as usize * c.latents..end as usize * c.latents;
            let at = |j: usize, part: usize| {
                let start = j * 2 * width + part * width + h * d;
                start..start + d
            };
            let keys: Vec<_> = seen.clone().map(|j| (&kv[at(j, 0)], &kv[at(j, 1)], 0.0)).collect();
            if keys.is_empty() {
                continue;
            }
            let own = r * width + h * d..r * width + (h + 1) * d;
            let scale = if uniform == 1 { 0.0 } else { 1.0 / (d as f64).sqrt() };
            let of = attend_backward(&d_o[own.clone()], &q[own.clone()], &keys, scale);
            dq[own].copy_from_slice(&of.dq);
            for (j, (dk, dv)) in seen.zip(of.dk.iter().zip(&of.dv)) {
                for (part, x) in [(0, dk), (1, dv)] {
                    dkv[at(j, part)].iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
                }
            }
        }
    }
    (dq, dkv)
}

fn spans(c: &Case) -> Vec<MediaSpan> {
    c.spans.iter().map(|&(begin, end, uniform)| MediaSpan { begin, end, uniform }).collect()
}

fn run<T: Real>(stream: &Stream, c: &Case, i: &Inputs) -> (Tensor, Tensor) {
    let (rows, width, keys) = (c.spans.len(), c.heads * c.head_dim, c.images * c.latents);
    let [q, d_o] = [&i.q, &i.d_o].map(|x| tensor::<T>(stream, x, &[rows, width]));
    let kv = tensor::<T>(stream, &i.kv, &[keys, 2 * width]);
    let mut arena = Arena::new(stream, 1 << 16).unwrap();
    let spans = MediaSpans::new(&mut arena, &spans(c), c.images).unwrap();
    let shape = ops::attention_statistics(rows, c.heads);
    let mut statistics = Tensor::zeros(stream, DType::F32, &shape).unwrap();
    // Rows without an image, and images that no row sees, must be written too.
    let mut dq = tensor::<T>(stream, &vec![7.0; rows * width], &[rows, width]);
    let mut dkv = tensor::<T>(stream, &vec![7.0; i.kv.len()], &[keys, 2 * width]);
    ops::cross_attention_backward(
        stream,
        dq.view_mut(),
        dkv.view_mut(),
        statistics.view_mut(),
        d_o.view(),
        q.view(),
        kv.view(),
        &spans,
        c.heads,
        1.0 / (c.head_dim as f32).sqrt(),
    )
    .unwrap();
    (dq, dkv)
}

fn check<T: Real>(streams: &[Stream], c: &Case) {
    let i = inputs(c);
    let (dq, dkv) = oracle::<T>(c, &i);
    for pair in streams.chunks(2) {
        let one = run::<T>(&pair[0], c, &i);
        judge::<T>(&format!("{} dq", c.why), one.0.view(), &dq, c.atol);
        judge::<T>(&format!("{} dkv", c.why), one.1.view(), &dkv, c.atol);
        let several = run::<T>(&pair[1], c, &i);
        let bits = |t: &(Tensor, Tensor)| [&t.0, &t.1].map(|t| t.view().to_f32().unwrap());
        assert!(bits(&one) == bits(&several), "{}: depends on the number of threads", c.why);
    }
}

#[test]
fn agrees_with_the_oracle() {
    for case in cases() {
        for_every_type!(check(&streams(), &case));
    }
}

#[test]
fn nothing_comes_of_what_is_not_seen() {
    let mut c = cases().into_iter().find(|c| c.why == "no_image").unwrap();
    (c.why, c.images) = ("poisoned", 3);
    c.spans = vec![(0, 1, 0), (2, 3, 0), (2, 3, 1), (0, 0, 0)];
    let width = c.heads * c.head_dim;
    for stream in streams() {
        // An image that no row sees, and a row that sees no image.
        let mut i = inputs(&c);
        i.kv[64 * 2 * width..2 * 64 * 2 * width].fill(f32::NAN);
        i.q[3 * width..].fill(f32::NAN);
        let (dq, dkv) = run::<f32>(&stream, &c, &i);
        let (dq, dkv) = (dq.view().to_f32().unwrap(), dkv.view().to_f32().unwrap());
        assert!(dq.iter().chain(&dkv).all(|x| x.is_finite()));
        assert!(dq[2 * width..].iter().all(|x| *x == 0.0), "uniform, and none");
        assert!(dkv[64 * 2 * width..][..64 * 2 * width].iter().all(|x| *x == 0.0));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let mut arena = Arena::new(&stream, 1 << 12).unwrap();
    let span = MediaSpan { begin: 0, end: 1, uniform: 0 };
    let mut spans = |rows, images| MediaSpans::new(&mut arena, &vec![span; rows], images).unwrap();
    let (good, three_rows, three) = (spans(2, 2), spans(3, 2), spans(2, 3));
    let zeros = |shape: &[usize]| Tensor::zeros(&stream, DType::F32, shape).unwrap();
    let (mut dq, q, mut statistics) = (zeros(&[2, 8]), zeros(&[2, 8]), zeros(&[2, 8]));
    let (mut dkv, kv, wide) = (zeros(&[8, 16]), zeros(&[8, 16]), zeros(&[8, 32]));
    let half = Tensor::zeros(&stream, DType::F16, &[8, 16]).unwrap();
    for (kv, spans, heads, expected) in [
        (&kv, &three_rows, 2, "q: expected (3, 8), found (2, 8)"),
        (&kv, &three, 2, "kv: expected as many rows for each of 3 images, found 8"),
        (&wide, &good, 2, "kv: expected (8, 16), found (8, 32)"),
        (&half, &good, 2, "kv: expected f32, found f16"),
        (&kv, &good, 3, "q: expected 3 heads of equal width"),
    ] {
        let (dq, dkv, statistics) = (dq.view_mut(), dkv.view_mut(), statistics.view_mut());
        let (d_o, q, kv) = (q.view(), q.view(), kv.view());
        let e = message(ops::cross_attention_backward(
            &stream, dq, dkv, statistics, d_o, q, kv, spans, heads, 1.0,
        ));
        assert!(e.starts_with(&format!("attention_backward: {expected}")), "{e}");
    }
}
