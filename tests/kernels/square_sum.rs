use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Out};
use medflamingo::tensor::Tensor;

pub struct Case {
    pub why: &'static str,
    pub n: usize,
    pub parts: usize,
    pub spread: f32,
}

pub fn cases() -> Vec<Case> {
    let case = |why, n, parts| Case { why, n, parts, spread: 1.0 };
    vec![
        case("smallest", 1, 1),
        case("ragged", 7001, 3),
        case("whole_packs", 16384, 2),
        case("more_parts_than_elements", 5, 9),
        case("nothing", 0, 1),
        Case { spread: 1e-4, ..case("small", 4096, 4) },
    ]
}

fn check<T: Real>(stream: &Stream, c: &Case) {
    let x = scaled(normals(1, c.n), c.spread);
    let want: f64 = rounded::<T>(&x).iter().map(|x| x * x).sum();
    let x = tensor::<T>(stream, &x, &[c.n]);
    let mut parts = Tensor::zeros(stream, DType::F32, &[c.parts, 2]).unwrap();
    ops::square_sum(stream, parts.view_mut(), x.view()).unwrap();
    let mut sums = Tensor::zeros(stream, DType::F32, &[1, 2]).unwrap();
    ops::column_sums(stream, sums.view_mut(), Out::Overwrite, parts.view()).unwrap();
    judge::<f32>(c.why, sums.view(), &[want, 0.0], 1e-6 * want);
}

#[test]
fn agrees_with_the_oracle() {
    for stream in streams() {
        for case in cases() {
            for_every_type!(check(&stream, &case));
        }
    }
}

/// The factor of gradients with these two sums, and their norm.
fn factor(stream: &Stream, sums: [f32; 2], max_norm: f32, scale: f32) -> [f32; 2] {
    let sums = Tensor::upload(stream, &sums, &[1, 2]).unwrap();
    let mut made = Tensor::zeros(stream, DType::F32, &[2]).unwrap();
    ops::clip_factor(stream, made.view_mut(), sums.view(), max_norm, scale).unwrap();
    made.view().to_f32().unwrap().try_into().unwrap()
}

#[test]
fn a_norm_beyond_the_bound_is_brought_to_it() {
    for stream in streams() {
        let close = |got: [f32; 2], want: [f32; 2]| {
            let near = |(got, want): (f32, f32)| (got - want).abs() <= 1e-6 * want;
            assert!(got.into_iter().zip(want).all(near), "{got:?} {want:?}");
        };
        close(factor(&stream, [9.0, 0.0], 1.0, 1.0), [1.0 / (3.0 + 1e-6), 3.0]);
        close(factor(&stream, [9.0, 0.0], 4.0, 1.0), [1.0, 3.0]);
        // Of a sum over four micro-batches, the mean is clipped.
        close(factor(&stream, [64.0, 0.0], 1.0, 0.25), [0.25 / (2.0 + 1e-6), 2.0]);
        close(factor(&stream, [9.0, 0.0], f32::INFINITY, 0.5), [0.5, 1.5]);
        assert_eq!(factor(&stream, [0.0, 0.0], 1.0, 1.0), [1.0, 0.0]);
    }
}

#[test]
fn what_is_not_finite_is_counted_and_stops_the_step() {
    for stream in streams() {
        let mut x = normals(1, 3000);
        (x[5], x[1700], x[2999]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        let x = Tensor::upload(&stream, &x, &[3000]).unwrap();
        let mut parts = Tensor::zeros(&stream, DType::F32, &[4, 2]).unwrap();
        ops::square_sum(&stream, parts.view_mut(), x.view()).unwrap();
        let parts = parts.view().to_f32().unwrap();
        assert_eq!([1, 3, 5, 7].map(|i| parts[i]), [1.0, 0.0, 1.0, 1.0]);
        assert!(parts[2].is_finite());
        for sums in [[f32::NAN, 1.0], [1.0, 1.0], [f32::INFINITY, 0.0], [f32::NAN, 0.0]] {
            assert!(factor(&stream, sums, 1.0, 1.0)[0].is_nan(), "{sums:?}");
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let mut parts = Tensor::zeros(&stream, DType::F32, &[3, 1]).unwrap();
    let x = Tensor::zeros(&stream, DType::F32, &[4]).unwrap();
    let e = message(ops::square_sum(&stream, parts.view_mut(), x.view()));
    assert_eq!(e, "square_sum: parts: expected (3, 2), found (3, 1)");
    let mut factor = Tensor::zeros(&stream, DType::F32, &[2]).unwrap();
    let sums = Tensor::zeros(&stream, DType::F32, &[2]).unwrap();
    let e = message(ops::clip_factor(&stream, factor.view_mut(), sums.view(), 0.0, 1.0));
    assert_eq!(e, "clip_factor: max_norm: expected more than 0, found 0");
}
