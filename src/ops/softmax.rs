//! Softmax-weighted sums.

use crate::dtype::Real;

/// o = softmax(scale * q k_j + bias_j) v_j over all j in `0 .. weights.len()`.
pub(super) fn plain<'a, T: Real>(
    q: &[T],
    scale: f32,
    weights: &mut [f32],
    sums: &mut [f32],
    key: impl Fn(usize) -> (&'a [T], &'a [T], f32),
    o: &mut [T],
) {
    let mut max = f32::NEG_INFINITY;
    for (j, w) in weights.iter_mut().enumerate() {
        let (k, _, bias) = key(j);
        let dot: f32 = q.iter().zip(k).map(|(q, k)| q.to_f32() * k.to_f32()).sum();
        *w = dot * scale + bias;
        max = max.max(*w);
    }
    sums.fill(0.0);
    let mut total = 0.0;
    for (j, w) in weights.iter_mut().enumerate() {
        *w = (*w - max).exp();
        total += *w;
        let (_, v, _) = key(j);
        for (s, v) in sums.iter_mut().zip(v) {
            *s += *w * v.to_f32();
        }
    }
    for (o, s) in o.iter_mut().zip(sums.iter()) {
        *o = T::from_f32(*s / total);
    }
}
