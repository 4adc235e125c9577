//! How a vision encoder's position embedding begins before training: sines and cosines of row and
//! column (as in "Better plain ViT baselines for ImageNet-1k", arXiv:2205.01580), which training
//! may change. From small random numbers the small encoder of phantom studies knew textures and
//! outlines after 4000 steps and hardly left from right.

use crate::{Error, Result};

/// The longest wave, over the shortest.
const LONGEST: f32 = 100.0;

/// The embedding of a class token, zero, and of a square grid of patches: (1 + side^2, `width`),
/// where row r and column c are
///
/// ```text
/// sin(r w_i) | cos(r w_i) | sin(c w_i) | cos(c w_i)      w_i = 100^(-i / (width / 4))
/// ```
///
/// # Errors
/// A grid that is not square, a width that four does not divide.
pub(super) fn grid(rows: usize, width: usize) -> Result<Vec<f32>> {
    let side = rows.saturating_sub(1).isqrt();
    let quarter = width / 4;
    if 1 + side * side != rows || width != 4 * quarter {
        let expected = "1 + a square number of rows, a width that 4 divides";
        return Err(Error::invalid("position embedding", expected, format!("({rows}, {width})")));
    }
    let mut values = vec![0.0; rows * width];
    for (patch, to) in values[width..].chunks_exact_mut(width).enumerate() {
        for i in 0..quarter {
            let frequency = LONGEST.powf(-(i as f32) / quarter as f32);
            for (half, place) in [patch / side, patch % side].into_iter().enumerate() {
                let (sin, cos) = (place as f32 * frequency).sin_cos();
                to[2 * half * quarter + i] = sin;
                to[(2 * half + 1) * quarter + i] = cos;
            }
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_alike_and_rows_are_not_columns() {
        let values = grid(17, 96).unwrap();
        let row = |r: usize, c: usize| &values[(1 + 4 * r + c) * 96..][..96];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert!(values[..96].iter().all(|x| *x == 0.0));
        assert!((dot(row(1, 2), row(1, 2)) - 48.0).abs() < 1e-3);
        assert!(dot(row(1, 2), row(1, 3)) > dot(row(1, 2), row(1, 0)));
        assert_eq!(row(0, 2)[..48], row(0, 3)[..48]);
        assert_eq!(row(0, 2)[48..], row(3, 2)[48..]);
        assert_eq!((row(2, 0)[0], row(0, 2)[48 + 24]), (2f32.sin(), 2f32.cos()));
        assert!(grid(16, 96).is_err() && grid(17, 94).is_err());
    }
}
