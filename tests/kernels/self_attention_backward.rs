//! Causal attention of sequences without a past, against the oracle.

use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use crate::oracle::attend_backward;
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Ragged, Sequence};
use medflamingo::tensor::{Arena, Tensor};

pub struct Case {
    pub why: &'static str,
    /// Tokens of each sequence.
    pub sequences: Vec<usize>,
    pub heads: usize,
    pub head_dim: usize,
    pub is_alibi: bool,
    pub spread: f32,
    pub atol: f64,
}

pub fn cases() -> Vec<Case> {
    let plain = |why, sequences, heads, head_dim| Case {
        why,
        sequences,
        heads,
        head_dim,
        is_alibi: false,
        spread: 1.0,
        atol: 8e-6,
    };
    vec![
        plain("smallest", vec![1], 1, 1),
        plain("ragged", vec![5, 1, 9], 3, 5),
        plain("tile_borders", vec![64, 65, 63, 32, 33], 1, 16),
        plain("llama", vec![70], 2, 128),
        plain("neox_head_of_80", vec![45, 20], 2, 80),
        plain("mpt_head_of_64", vec![150, 3, 66], 1, 64),
        plain("more_rows_than_a_task", vec![401, 2], 1, 32),
        Case { is_alibi: true, ..plain("alibi", vec![50, 77], 4, 32) },
        Case { spread: 30.0, atol: 4e-4, ..plain("huge_logits", vec![60], 2, 64) },
    ]
}

struct Inputs {
    qkv: Vec<f32>,
    d_o: Vec<f32>,
    slopes: Vec<f32>,
}

fn inputs(c: &Case) -> Inputs {
    let (rows, width) = (c.sequences.iter().sum::<usize>(), c.heads * c.head_dim);
    let mut qkv = normals(1, rows * 3 * width);
    for row in qkv.chunks_exact_mut(3 * width) {
        let q = scaled(row[..width].to_vec(), c.spread);
        row[..width].copy_from_slice(&q);
    }
    let slope = |h: usize| 2f32.powf(-8.0 * h as f32 / c.heads as f32);
    Inputs { qkv, d_o: normals(2, rows * width), slopes: (1..=c.heads).map(slope).collect() }
}

fn oracle<T: Real>(c: &Case, i: &Inputs) -> Vec<f64> {
    let (width, d) = (c.heads * c.head_dim, c.head_dim);
    let (qkv, d_o) = (rounded::<T>(&i.qkv), rounded::<T>(&i.d_o));
    let mut dqkv = vec![0.0; qkv.len()];
    let mut begin = 0;
    for &rows in &c.sequences {
        for (h, row) in (0..c.heads).flat_map(|h| (0..rows).map(move |row| (h, row))) {
            let slope = if c.is_alibi { f64::from(i.slopes[h]) } else { 0.0 };
            let at = |row: usize, part: usize| {
                let start = (begin + row) * 3 * width + part * width + h * d;
                start..start + d
            };
            let bias = |j: usize| slope * (j as f64 - row as f64);
            let keys: Vec<_> =
                (0..=row).map(|j| (&qkv[at(j, 1)], &qkv[at(j, 2)], bias(j))).collect();
            let d_o = &d_o[(begin + row) * width + h * d..][..d];
            let of = attend_backward(d_o, &qkv[at(row, 0)], &keys, 1.0 / (d as f64).sqrt());
            let mut add = |to: std::ops::Range<usize>, x: &[f64]| {
                dqkv[to].iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
            };
            add(at(row, 0), &of.dq);
            for (j, (dk, dv)) in of.dk.iter().zip(&of.dv).enumerate() {
                add(at(j, 1), dk);
                add(at(j, 2), dv);
            }
        }
        begin += rows;
    }
    dqkv
}

fn run<T: Real>(stream: &Stream, c: &Case, i: &Inputs) -> Tensor {
    let width = c.heads * c.head_dim;
    let tables: Vec<[i32; 1]> = (0..c.sequences.len() as i32).map(|s| [s]).collect();
    let all = c.sequences.iter().zip(&tables);
    let sequences: Vec<_> =
        all.map(|(&rows, table)| Sequence { table, kv_len: rows, rows }).collect();
    let mut arena = Arena::new(stream, 1 << 16).unwrap();
    let batch = Ragged::new(&mut arena, &sequences, 512, tables.len()).unwrap();
    let rows = batch.rows();
    let qkv = tensor::<T>(stream, &i.qkv, &[rows, 3 * width]);
    let d_o = tensor::<T>(stream, &i.d_o, &[rows, width]);
    let slopes = Tensor::upload(stream, &i.slopes, &[c.heads]).unwrap();
    let shape = ops::attention_statistics(rows, c.heads);
    let mut statistics = Tensor::zeros(stream, DType::F32, &shape).unwrap();
    let mut dqkv = tensor::<T>(stream, &vec![7.0; rows * 3 * width], &[rows, 3 * width]);
    ops::self_attention_backward(
        stream,
        dqkv.view_mut(),
        statistics.view_mut(),
        d_o.view(),
        qkv.view(),
        &batch,
        c.is_alibi.then(|| slopes.view()),
        c.heads,
        c.head_dim,
        1.0 / (c.head_dim as f32).sqrt(),
    )
    .unwrap();
    dqkv
}

fn check<T: Real>(streams: &[Stream], c: &Case) {
    let i = inputs(c);
    let want = oracle::<T>(c, &i);
    for pair in streams.chunks(2) {
        let one = run::<T>(&pair[0], c, &i);
        judge::<T>(c.why, one.view(), &want, c.atol);
        let several = run::<T>(&pair[1], c, &i);
        let same = one.view().to_f32().unwrap() == several.view().to_f32().unwrap();
        assert!(same, "{}: depends on the number of threads", c.why);
    }
}

#[test]
fn agrees_with_the_oracle() {
    for case in cases() {
        for_every_type!(check(&streams(), &case));
    }
}

#[test]
fn sequences_do_not_hear_of_each_other() {
    let c = cases().into_iter().find(|c| c.why == "neox_head_of_80").unwrap();
    for stream in streams() {
        let mut i = inputs(&c);
        // A key of the second sequence.
        let width = 3 * c.heads * c.head_dim;
        i.qkv[45 * width + width / 3] = f32::NAN;
        let dqkv = run::<f32>(&stream, &c, &i).view().to_f32().unwrap();
        assert!(dqkv[..45 * width].iter().all(|x| x.is_finite()));
        assert!(dqkv[45 * width..].iter().any(|x| x.is_nan()));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let mut arena = Arena::new(&stream, 1 << 12).unwrap();
    let mut batch = |kv_len| {
        Ragged::new(&mut arena, &[Sequence { table: &[0], kv_len, rows: 2 }], 4, 1).unwrap()
    };
    let (all, older) = (batch(2), batch(3));
    let zeros = |shape: &[usize]| Tensor::zeros(&stream, DType::F32, shape).unwrap();
    let (mut dqkv, qkv, d_o) = (zeros(&[2, 24]), zeros(&[2, 24]), zeros(&[2, 8]));
    let (mut statistics, slopes) = (zeros(&[2, 8]), zeros(&[3]));
    for (batch, slopes, heads, expected) in [
        (&older, None, 2, "batch: expected 2 tokens, all new, found 3"),
        (&all, None, 3, "qkv: expected (2, 36), found (2, 24)"),
        (&all, None, 0, "heads: expected at least one"),
        (&all, Some(slopes.view()), 2, "slopes: expected (2), found (3)"),
    ] {
        let (dqkv, statistics) = (dqkv.view_mut(), statistics.view_mut());
        let (d_o, qkv) = (d_o.view(), qkv.view());
        let e = message(ops::self_attention_backward(
            &stream, dqkv, statistics, d_o, qkv, batch, slopes, heads, 4, 1.0,
        ));
        assert!(e.starts_with(&format!("attention_backward: {expected}")), "{e}");
    }
}
