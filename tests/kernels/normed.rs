//! Products that make the norm of their rows: what norm and product give one after the other.

use crate::judge::{cards, judge, normals, rounded, scaled, streams, tensor};
use half::{bf16, f16};
use medflamingo::DType;
use medflamingo::device::{Chip, Stream};
use medflamingo::dtype::Real;
use medflamingo::ops::{
    Epilogue, INT4_GROUP, Input, Norm, Out, Quantized, Weight, linear, linear_swiglu, quantize,
};
use medflamingo::tensor::{Tensor, View};

const EPS: f32 = 1e-5;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Rms,
    Layer,
    LayerWithoutBias,
}

const KINDS: [Kind; 3] = [Kind::Rms, Kind::Layer, Kind::LayerWithoutBias];

/// Of a product, and how far apart rows of x begin.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    shape: (usize, usize, usize),
    /// 16, or those of codes.
    bits: usize,
    pad: usize,
}

struct Operands {
    x: Tensor,
    w: Tensor,
    b: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor,
    start: Tensor,
}

fn values(c: &Case) -> [Vec<f32>; 6] {
    let (m, n, k) = c.shape;
    // Rows far from 0, where a norm is not what a product is anyway.
    let x = normals(1, m * (k + c.pad)).iter().map(|x| 3.0 * x + 1.5).collect();
    let w = normals(2, k).iter().map(|w| 1.0 + 0.3 * w).collect();
    let weight = scaled(normals(4, n * k), 1.0 / (k as f32).sqrt());
    [x, w, normals(3, k), weight, normals(5, n), normals(6, m * n)]
}

impl Operands {
    fn new<T: Real>(stream: &Stream, c: &Case) -> Self {
        let (m, n, k) = c.shape;
        let [x, w, b, weight, bias, start] = values(c);
        let weight = tensor::<T>(stream, &weight, &[n, k]);
        let (codes, scales) = match c.bits {
            16 => (weight, Tensor::zeros(stream, T::DTYPE, &[0]).unwrap()),
            bits => {
                let (dtype, scales) = match bits {
                    8 => (DType::I8, vec![n]),
                    _ => (DType::U8, vec![n, k / INT4_GROUP]),
                };
                let mut codes = Tensor::zeros(stream, dtype, &[n, k * bits / 8]).unwrap();
                let mut scales = Tensor::zeros(stream, DType::BF16, &scales).unwrap();
                quantize(stream, codes.view_mut(), scales.view_mut(), None, weight.view()).unwrap();
                (codes, scales)
            }
        };
        Operands {
            x: tensor::<T>(stream, &x, &[m, k + c.pad]),
            w: tensor::<T>(stream, &w, &[k]),
            b: tensor::<T>(stream, &b, &[k]),
            codes,
            scales,
            bias: tensor::<T>(stream, &bias, &[n]),
            start: tensor::<T>(stream, &start, &[m, n]),
        }
    }

    fn x(&self, c: &Case) -> View<'_> {
        let (m, _, k) = c.shape;
        self.x.view().block(0..m, 0..k).unwrap()
    }

    fn norm(&self, c: &Case) -> Norm<'_> {
        let (w, b, eps) = (self.w.view(), self.b.view(), EPS);
        match c.kind {
            Kind::Rms => Norm::Rms { w, eps },
            Kind::Layer => Norm::Layer { w, b: Some(b), eps },
            Kind::LayerWithoutBias => Norm::Layer { w, b: None, eps },
        }
    }

    fn weight(&self, c: &Case) -> Weight<'_> {
        match c.bits {
            16 => Weight::Dense(self.codes.view()),
            _ => Weight::Quantized(Quantized {
                codes: self.codes.view(),
                scales: self.scales.view(),
            }),
        }
    }
}

/// start + norm(x) W^T + bias, and what roundings of the norm may change of a cell.
fn oracle<T: Real>(c: &Case) -> (Vec<f64>, f64) {
    let (m, n, k) = c.shape;
    let [x, w, b, weight, bias, start] = values(c).map(|v| rounded::<T>(&v));
    let half = if T::DTYPE == DType::BF16 { 2f64.powi(-9) } else { 2f64.powi(-12) };
    let (mut y, mut most) = (Vec::new(), 0f64);
    for row in x.chunks_exact(k + c.pad) {
        let row = &row[..k];
        let mean = match c.kind {
            Kind::Rms => 0.0,
            _ => row.iter().sum::<f64>() / k as f64,
        };
        let squares = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / k as f64;
        let scale = 1.0 / (squares + f64::from(EPS)).sqrt();
        let shift = |i: usize| if c.kind == Kind::Layer { b[i] } else { 0.0 };
        let normed: Vec<f64> = (0..k).map(|i| (row[i] - mean) * scale * w[i] + shift(i)).collect();
        for weights in weight.chunks_exact(k) {
            let products = || normed.iter().zip(weights).map(|(a, b)| a * b);
            let at = y.len();
            y.push(start[at] + products().sum::<f64>() + bias[at % n]);
            most = most.max(products().map(f64::abs).sum());
        }
    }
    assert_eq!(y.len(), m * n);
    (y, 2.2 * half * most)
}

fn agrees<T: Real>(c: Case) {
    let (want, atol) = oracle::<T>(&c);
    let (m, _, k) = c.shape;
    for stream in streams() {
        let o = Operands::new::<T>(&stream, &c);
        let mut y = Tensor::zeros(&stream, T::DTYPE, o.start.shape().sizes()).unwrap();
        y.view_mut().copy_from(o.start.view()).unwrap();
        let mut room = Tensor::zeros(&stream, T::DTYPE, &[m, k]).unwrap();
        let x = Input::normed(o.x(&c), o.norm(&c), room.view_mut());
        let epilogue =
            Epilogue { bias: Some(o.bias.view()), out: Out::Accumulate, ..Default::default() };
        linear(&stream, y.view_mut(), x, o.weight(&c), epilogue).unwrap();
        judge::<T>(&format!("{c:?} {}", stream.describe()), y.view(), &want, atol);
    }
}

#[test]
fn agrees_with_the_oracle() {
    // By the product itself, and more rows than it makes the norm of.
    let few = [(1, 40, 1032), (2, 34, 104), (2, 17, 264)];
    let more = [(3, 34, 104), (8, 17, 264), (5, 18, 1280)];
    for (kind, shape) in KINDS.into_iter().zip(few).chain(KINDS.into_iter().zip(more)) {
        agrees::<bf16>(Case { kind, shape, bits: 16, pad: 0 });
        agrees::<f16>(Case { kind, shape, bits: 16, pad: 0 });
    }
}

/// As a norm of its own and a product after it, to the bit, in one launch for two: of every form of
/// weight, with and without SwiGLU, whatever k is left over from a batch or from the threads. Norms
/// of their own add up narrower rows in another order.
#[test]
fn one_launch_gives_the_bits_of_two() {
    let shapes = [(1, 34, 4096), (1, 16, 1536), (2, 50, 2432), (2, 18, 1280), (1, 34, 1152)];
    for stream in cards([Chip::A100, Chip::H200]) {
        for (kind, bits) in KINDS.into_iter().flat_map(|kind| [16, 8, 4].map(|bits| (kind, bits))) {
            for shape in shapes {
                apart::<bf16>(&stream, Case { kind, shape, bits, pad: 0 }, 1);
            }
            apart::<f16>(&stream, Case { kind, shape: (2, 34, 1152), bits, pad: 0 }, 1);
        }
        // More packs than a lane has at once.
        for bits in [16, 8, 4] {
            let long = (1, 16, 6144);
            apart::<bf16>(&stream, Case { kind: Kind::Rms, shape: long, bits, pad: 0 }, 1);
        }
        // More rows than a block should make, or has room for; a norm that 16-byte copies miss.
        apart::<bf16>(&stream, Case { kind: Kind::Rms, shape: (3, 34, 256), bits: 16, pad: 0 }, 2);
        let wide = (2, 16, 14336);
        apart::<bf16>(&stream, Case { kind: Kind::Rms, shape: wide, bits: 16, pad: 0 }, 2);
        apart::<bf16>(&stream, Case { kind: Kind::Rms, shape: (2, 16, 100), bits: 16, pad: 0 }, 2);
        let strided = Case { kind: Kind::Layer, shape: (2, 34, 1160), bits: 16, pad: 8 };
        apart::<bf16>(&stream, strided, 1);
    }
}

fn apart<T: Real>(stream: &Stream, c: Case, launches: u64) {
    let (m, n, k) = c.shape;
    let o = Operands::new::<T>(stream, &c);
    let mut room = Tensor::zeros(stream, T::DTYPE, &[m, k]).unwrap();
    let mut normed = Tensor::zeros(stream, T::DTYPE, &[m, k]).unwrap();
    o.norm(&c).run(stream, normed.view_mut(), o.x(&c)).unwrap();
    let zeros = |cols| Tensor::zeros(stream, T::DTYPE, &[m, cols]).unwrap();
    let (mut one, mut two) = (zeros(n), zeros(n));
    let before = stream.launches();
    let x = Input::normed(o.x(&c), o.norm(&c), room.view_mut());
    linear(stream, one.view_mut(), x, o.weight(&c), Epilogue::default()).unwrap();
    assert_eq!(stream.launches() - before, launches, "{c:?}");
    let plain = Epilogue::default();
    linear(stream, two.view_mut(), normed.view(), o.weight(&c), plain).unwrap();
    assert!(one.view().to_f32().unwrap() == two.view().to_f32().unwrap(), "{c:?}");
    if n % 2 > 0 {
        return;
    }
    let (mut one, mut two, mut product) = (zeros(n / 2), zeros(n / 2), zeros(n));
    let x = Input::normed(o.x(&c), o.norm(&c), room.view_mut());
    linear_swiglu(stream, one.view_mut(), product.view_mut(), x, o.weight(&c)).unwrap();
    let x = normed.view();
    linear_swiglu(stream, two.view_mut(), product.view_mut(), x, o.weight(&c)).unwrap();
    assert!(one.view().to_f32().unwrap() == two.view().to_f32().unwrap(), "swiglu {c:?}");
}
