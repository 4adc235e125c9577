use crate::judge::{for_every_type, judge, message, normals, rounded, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Out};
use medflamingo::tensor::Tensor;

pub struct Case {
    pub why: &'static str,
    pub rows: usize,
    pub cols: usize,
    pub parts: usize,
    pub out: Out,
}

pub fn cases() -> Vec<Case> {
    let case = |why, rows, cols, parts| Case { why, rows, cols, parts, out: Out::Overwrite };
    vec![
        case("smallest", 1, 1, 1),
        case("ragged", 19, 77, 2),
        case("wide", 40, 1024, 3),
        case("more_parts_than_rows", 2, 16, 5),
        case("no_rows", 0, 8, 1),
        Case { out: Out::Accumulate, ..case("added_to", 17, 264, 1) },
    ]
}

fn check<T: Real>(stream: &Stream, c: &Case) {
    let x = normals(1, c.rows * c.cols);
    let old = normals(2, c.parts * c.cols);
    let mut want: Vec<f64> = match c.out {
        Out::Accumulate => rounded::<f32>(&old),
        Out::Overwrite => vec![0.0; old.len()],
    };
    let rounded = rounded::<T>(&x);
    for part in 0..c.parts {
        let part_rows = c.rows.div_ceil(c.parts);
        for r in part * part_rows..c.rows.min((part + 1) * part_rows) {
            for i in 0..c.cols {
                want[part * c.cols + i] += rounded[r * c.cols + i];
            }
        }
    }
    let x = tensor::<T>(stream, &x, &[c.rows, c.cols]);
    let mut y = Tensor::upload(stream, &old, &[c.parts, c.cols]).unwrap();
    ops::column_sums(stream, y.view_mut(), c.out, x.view()).unwrap();
    judge::<f32>(c.why, y.view(), &want, 1e-5);
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
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let mut y = Tensor::zeros(&stream, DType::F32, &[1, 8]).unwrap();
    let x = Tensor::zeros(&stream, DType::BF16, &[4, 9]).unwrap();
    let e = message(ops::column_sums(&stream, y.view_mut(), Out::Overwrite, x.view()));
    assert_eq!(e, "column_sums: y: expected (1, 9), found (1, 8)");
}
