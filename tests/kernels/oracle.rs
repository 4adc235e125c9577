//! Softmax attention of one query, in f64.

/// softmax_j(scale * q . k_j + bias_j) summed over v_j.
pub fn attend(q: &[f64], keys: &[(&[f64], &[f64], f64)], scale: f64) -> Vec<f64> {
    let dot = |k: &[f64]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
    let scores: Vec<f64> = keys.iter().map(|(k, _, bias)| scale * dot(k) + bias).collect();
    let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
    let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let mut o = vec![0.0; q.len()];
    for ((_, v, _), score) in keys.iter().zip(scores) {
        for (o, v) in o.iter_mut().zip(*v) {
            *o += (score - max).exp() / total * v;
        }
    }
    o
}
