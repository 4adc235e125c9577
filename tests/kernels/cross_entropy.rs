use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Head, HeadGradient, HeadRoom, Labels};
use medflamingo::tensor::{Arena, Tensor};

pub struct Case {
    pub why: &'static str,
    pub cols: usize,
    pub labels: Vec<i32>,
    /// Columns of dx beyond those of x; elements between rows of x.
    pub more: usize,
    pub gap: usize,
    pub spread: f32,
    pub mean: f32,
}

pub fn cases() -> Vec<Case> {
    let case = |why, cols, labels: &[i32]| Case {
        why,
        cols,
        labels: labels.to_vec(),
        more: 0,
        gap: 0,
        spread: 2.0,
        mean: 0.0,
    };
    vec![
        case("one_class", 1, &[0]),
        case("ragged", 77, &[0, 76, 5]),
        case("some_without_label", 40, &[-100, 3, -1, 39]),
        Case { more: 5, gap: 5, ..case("padded_vocabulary", 32003, &[32002, 7]) },
        Case { more: 4, gap: 4, ..case("padded", 36, &[35, 0]) },
        Case { more: 3, gap: 1, ..case("padded_unaligned", 36, &[1, 35]) },
        Case { mean: 3000.0, ..case("far_mean", 128, &[1, 2]) },
        Case { spread: 100.0, ..case("certain", 128, &[1, 2]) },
        case("no_rows", 8, &[]),
    ]
}

/// Loss of a row, and its gradient by the logits.
fn oracle(x: &[f64], label: i32) -> (f64, Vec<f64>) {
    if label < 0 {
        return (0.0, vec![0.0; x.len()]);
    }
    let max = x.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
    let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
    let is = |j: usize| f64::from(j == label as usize);
    let dx = x.iter().enumerate().map(|(j, x)| (x - max).exp() / sum - is(j)).collect();
    (sum.ln() + max - x[label as usize], dx)
}

fn check<T: Real>(stream: &Stream, c: &Case) {
    let (rows, cols, scale) = (c.labels.len(), c.cols, 0.25);
    let x_stride = cols + c.gap;
    let x: Vec<f32> = normals(1, rows * x_stride).iter().map(|x| c.mean + c.spread * x).collect();
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (row, label) in rounded::<f32>(&x).chunks(x_stride).zip(&c.labels) {
        let (loss, dx) = oracle(&row[..cols], *label);
        losses.push(loss);
        gradients.extend(dx.into_iter().map(|d| f64::from(scale) * d));
        gradients.extend(vec![0.0; c.more]);
    }
    let x = Tensor::upload(stream, &x, &[rows, x_stride]).unwrap();
    let mut arena = Arena::new(stream, 4096).unwrap();
    let labels = Labels::new(&mut arena, &c.labels, cols).unwrap();
    let mut loss = Tensor::zeros(stream, DType::F32, &[rows]).unwrap();
    let mark = vec![7.0; rows * (cols + c.more)];
    let mut dx = tensor::<T>(stream, &mark, &[rows, cols + c.more]);
    let (loss_view, x) = (loss.view_mut(), x.view().block(0..rows, 0..cols).unwrap());
    ops::cross_entropy(stream, loss_view, dx.view_mut(), x, &labels, scale).unwrap();
    // exp and sums in f32; the largest logit has few digits behind the point where it is large.
    let atol = 2e-6 * (1.0 + f64::from(c.mean.abs() + c.spread) / 10.0);
    judge::<f32>(c.why, loss.view(), &losses, atol);
    judge::<T>(c.why, dx.view(), &gradients, 1e-6 * f64::from(scale));
}

#[test]
fn agrees_with_the_oracle() {
    for stream in streams() {
        for case in cases() {
            for_every_type!(check(&stream, &case));
        }
    }
}

#[test]
fn the_oracle_is_the_derivative() {
    let x: Vec<f64> = normals(1, 9).into_iter().map(f64::from).collect();
    let (_, dx) = oracle(&x, 4);
    for j in 0..9 {
        let shifted = |by: f64| {
            let mut x = x.clone();
            x[j] += by;
            oracle(&x, 4).0
        };
        let slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
        assert!((dx[j] - slope).abs() < 1e-9, "{j}");
    }
}

#[test]
fn a_logit_that_is_not_a_number_reaches_its_row_and_no_other() {
    for stream in streams() {
        let mut x = normals(1, 3 * 600);
        (x[610], x[1300]) = (f32::NAN, f32::NEG_INFINITY);
        let x = Tensor::upload(&stream, &x, &[3, 600]).unwrap();
        let mut arena = Arena::new(&stream, 4096).unwrap();
        let labels = Labels::new(&mut arena, &[1, 2, 3], 600).unwrap();
        let mut loss = Tensor::zeros(&stream, DType::F32, &[3]).unwrap();
        let mut dx = Tensor::zeros(&stream, DType::F32, &[3, 600]).unwrap();
        let (l, d) = (loss.view_mut(), dx.view_mut());
        ops::cross_entropy(&stream, l, d, x.view(), &labels, 1.0).unwrap();
        let loss = loss.view().to_f32().unwrap();
        let dx = dx.view().to_f32().unwrap();
        assert!(loss[1].is_nan() && dx[600..1200].iter().all(|d| d.is_nan()));
        assert!(loss[0].is_finite() && loss[2].is_finite() && dx[1300] == 0.0);
        assert!(dx[..600].iter().chain(&dx[1200..]).all(|d| d.is_finite()));
    }
}

/// A head, tokens and labels; what the loss and its gradients should be.
struct Linear {
    rows: usize,
    width: usize,
    vocabulary: usize,
    scale: f32,
    x: Vec<f32>,
    w: Vec<f32>,
    labels: Vec<i32>,
}

impl Linear {
    fn new() -> Self {
        let (rows, width, vocabulary) = (11, 24, 37);
        let labels = (0..rows as i32).map(|i| if i == 4 { -100 } else { i * 7 % 37 }).collect();
        let w = scaled(normals(2, vocabulary * width), 0.5);
        Linear { rows, width, vocabulary, scale: 0.5, x: normals(1, rows * width), w, labels }
    }

    /// Loss, dx, dw; with logits' gradients rounded to `T`, as they are stored.
    fn oracle<T: Real>(&self) -> (f64, Vec<f64>, Vec<f64>) {
        let (x, w, width) = (rounded::<T>(&self.x), rounded::<T>(&self.w), self.width);
        let (mut loss, mut dx, mut dw) = (0.0, vec![0.0; x.len()], vec![0.0; w.len()]);
        for r in 0..self.rows {
            let row = &x[r * width..][..width];
            let dot = |w: &[f64]| w.iter().zip(row).map(|(w, x)| w * x).sum::<f64>();
            let logits: Vec<f64> = w.chunks(width).map(dot).collect();
            let (own, d) = oracle(&logits, self.labels[r]);
            loss += own;
            let d: Vec<f32> = d.iter().map(|d| (f64::from(self.scale) * d) as f32).collect();
            for (v, d) in rounded::<T>(&d).into_iter().enumerate() {
                for i in 0..width {
                    dx[r * width + i] += d * w[v * width + i];
                    dw[v * width + i] += d * row[i];
                }
            }
        }
        (loss, dx, dw)
    }
}

fn check_linear<T: Real>(stream: &Stream, chunk: usize) {
    let l = Linear::new();
    let (loss64, dx64, dw64) = l.oracle::<T>();
    let shape = [l.rows, l.width];
    let (x, w) =
        (tensor::<T>(stream, &l.x, &shape), tensor::<T>(stream, &l.w, &[l.vocabulary, l.width]));
    let padded = Head::padded(l.vocabulary);
    let mut turned = Tensor::zeros(stream, T::DTYPE, &[l.width, padded]).unwrap();
    ops::transpose(stream, turned.view_mut(), w.view()).unwrap();
    let head = Head::new(w.view().into(), turned.view()).unwrap();
    let (first, part) = (5, 20);
    let sizes = HeadRoom { chunk, width: l.width, vocabulary: l.vocabulary, gradient: part };
    let mut arena = Arena::new(stream, sizes.footprint(T::DTYPE, l.rows)).unwrap();
    let mut loss = Tensor::upload(stream, &[100f32], &[1]).unwrap();
    let mut dx = Tensor::zeros(stream, T::DTYPE, &shape).unwrap();
    let mut dw = Tensor::upload(stream, &vec![2f32; part * l.width], &[part, l.width]).unwrap();
    let gradient = Some(HeadGradient { dw: dw.view_mut(), first });
    let (to, labels, scale) = (loss.view_mut(), &l.labels, l.scale);
    let (dx_view, x) = (dx.view_mut(), x.view());
    ops::linear_cross_entropy(
        stream, &mut arena, to, dx_view, gradient, x, labels, &head, scale, chunk,
    )
    .unwrap();
    judge::<f32>("loss", loss.view(), &[100.0 + loss64], 1e-4);
    // A gradient of a logit may have been rounded to the neighbour, a share of its size.
    let atol =
        f64::from(T::from_f32(1.0).to_f32()) * if T::DTYPE == DType::F32 { 1e-5 } else { 4e-3 };
    judge::<T>("dx", dx.view(), &dx64, atol);
    let rows: Vec<f64> =
        dw64[first * l.width..][..part * l.width].iter().map(|d| 2.0 + d).collect();
    judge::<f32>("dw", dw.view(), &rows, atol);
}

#[test]
fn a_head_in_chunks_agrees_with_the_whole() {
    for stream in streams() {
        for chunk in [1, 4, 16] {
            for_every_type!(check_linear(&stream, chunk));
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let mut arena = Arena::new(&stream, 4096).unwrap();
    let e = message(Labels::new(&mut arena, &[-5, 8], 8));
    assert_eq!(e, "label: expected less than 8, found 8");
    let labels = Labels::new(&mut arena, &[1, 2], 8).unwrap();
    let mut loss = Tensor::zeros(&stream, DType::F32, &[2]).unwrap();
    let mut dx = Tensor::zeros(&stream, DType::BF16, &[2, 7]).unwrap();
    let x = Tensor::zeros(&stream, DType::F32, &[2, 8]).unwrap();
    let (l, d) = (loss.view_mut(), dx.view_mut());
    let e = message(ops::cross_entropy(&stream, l, d, x.view(), &labels, 1.0));
    assert_eq!(e, "cross_entropy: dx: expected (2, 8 or more), found (2, 7)");
}
