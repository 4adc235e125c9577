//! How self-attention begins before training: keys half like queries, outputs half like values
//! turned round, so that from the start a token attends to what is like it and copies what it finds
//! ("Mimetic initialization of self-attention layers", arXiv:2305.09828; the sign of the outputs is
//! positive here, for copying). The small model of phantom studies learns to copy from examples in
//! a fraction of the steps that it takes from independent matrices.

use crate::Result;
use std::f32::consts::FRAC_1_SQRT_2;

/// Values of a tensor, independent of all others, by name and number of elements.
pub(super) type Draw<'a> = dyn FnMut(&str, usize) -> Result<Vec<f32>> + 'a;

/// The values of `name` if it is `attn.qkv.weight`, (3 D, D), or `attn.out.weight`, (D, D), of a
/// layer of self-attention:
///
/// ```text
/// k = (q + k') / sqrt(2)      out = (v^T + out') / sqrt(2)      k', out': as drawn
/// ```
///
/// # Errors
/// As `draw`.
pub(super) fn values(name: &str, width: usize, draw: &mut Draw) -> Result<Option<Vec<f32>>> {
    let is_self = name.starts_with("language.") || name.starts_with("vision.");
    let square = width * width;
    let half = |a: f32, b: f32| (a + b) * FRAC_1_SQRT_2;
    if let Some(layer) = name.strip_suffix("attn.out.weight").filter(|_| is_self) {
        let qkv = draw(&format!("{layer}attn.qkv.weight"), 3 * square)?;
        let v = &qkv[2 * square..];
        let mut out = draw(name, square)?;
        for (i, x) in out.iter_mut().enumerate() {
            *x = half(*x, v[i % width * width + i / width]);
        }
        return Ok(Some(out));
    }
    if is_self && name.ends_with("attn.qkv.weight") {
        let mut qkv = draw(name, 3 * square)?;
        let (q, k) = qkv[..2 * square].split_at_mut(square);
        q.iter().zip(k).for_each(|(q, k)| *k = half(*q, *k));
        return Ok(Some(qkv));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_like_queries_and_outputs_like_values_turned_round() {
        let mut draw = |name: &str, n: usize| {
            let start = if name.ends_with("qkv.weight") { 0.0 } else { 100.0 };
            Ok((0..n).map(|i| start + i as f32).collect())
        };
        let qkv = values("language.layers.1.attn.qkv.weight", 2, &mut draw).unwrap().unwrap();
        let out = values("language.layers.1.attn.out.weight", 2, &mut draw).unwrap().unwrap();
        let expect = |sums: &[f32]| sums.iter().map(|x| x * FRAC_1_SQRT_2).collect::<Vec<_>>();
        assert_eq!((&qkv[..4], &qkv[8..]), (&[0., 1., 2., 3.][..], &[8., 9., 10., 11.][..]));
        assert_eq!(qkv[4..8], expect(&[4.0, 6.0, 8.0, 10.0]));
        assert_eq!(out, expect(&[108.0, 111.0, 111.0, 114.0]));
        for other in ["xattn.0.attn.out.weight", "language.layers.1.mlp.fc2.weight"] {
            assert!(values(other, 2, &mut draw).unwrap().is_none());
        }
    }
}
