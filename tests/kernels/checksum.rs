use crate::judge::{message, normals, streams};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::ops;
use medflamingo::tensor::Tensor;

pub struct Case {
    pub why: &'static str,
    /// Of 16 bytes.
    pub packs: usize,
    pub parts: usize,
}

pub fn cases() -> Vec<Case> {
    vec![
        Case { why: "smallest", packs: 1, parts: 1 },
        Case { why: "ragged", packs: 77, parts: 5 },
        Case { why: "loads_ahead_and_a_rest", packs: 2 * 256 * 8 + 300, parts: 2 },
        Case { why: "more_parts_than_packs", packs: 3, parts: 7 },
        Case { why: "nothing", packs: 0, parts: 2 },
    ]
}

fn oracle(c: &Case, x: &[f32]) -> Vec<i32> {
    let each = 4 * c.packs.div_ceil(c.parts);
    let part = |i: usize| &x[(i * each).min(x.len())..((i + 1) * each).min(x.len())];
    (0..c.parts).map(|i| part(i).iter().fold(0, |sum, x| sum ^ x.to_bits() as i32)).collect()
}

#[test]
fn agrees_with_the_oracle() {
    for stream in streams() {
        for c in cases() {
            let x = normals(1, 4 * c.packs);
            let words = Tensor::upload(&stream, &x, &[4 * c.packs]).unwrap();
            let mut y = Tensor::upload(&stream, &vec![7i32; c.parts], &[c.parts]).unwrap();
            ops::checksum(&stream, y.view_mut(), words.view()).unwrap();
            assert_eq!(y.view().read::<i32>().unwrap(), oracle(&c, &x), "{}", c.why);
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&stream, dtype, shape).unwrap();
    let (mut y, x) = (zeros(DType::I32, &[2]), zeros(DType::F32, &[3]));
    let e = message(ops::checksum(&stream, y.view_mut(), x.view()));
    assert!(e.starts_with("checksum: x: expected whole, aligned packs of 16 bytes"), "{e}");
    let mut wrong = zeros(DType::F32, &[2]);
    let e = message(ops::checksum(&stream, wrong.view_mut(), zeros(DType::F32, &[4]).view()));
    assert_eq!(e, "checksum: y: expected i32, found f32");
}
