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

/// Of one query: what it is given and what it looks at.
pub struct Gradients {
    pub dq: Vec<f64>,
    /// Of each key.
    pub dk: Vec<Vec<f64>>,
    pub dv: Vec<Vec<f64>>,
}

/// The gradients of sum(d_o * attend(q, keys, scale)).
pub fn attend_backward(
    d_o: &[f64],
    q: &[f64],
    keys: &[(&[f64], &[f64], f64)],
    scale: f64,
) -> Gradients {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let times = |x: &[f64], factor: f64| x.iter().map(|x| x * factor).collect::<Vec<_>>();
    let scores: Vec<f64> = keys.iter().map(|(k, _, bias)| scale * dot(q, k) + bias).collect();
    let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
    let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let p: Vec<f64> = scores.iter().map(|s| (s - max).exp() / total).collect();
    let dp: Vec<f64> = keys.iter().map(|(_, v, _)| dot(d_o, v)).collect();
    let delta = dot(&p, &dp);
    let ds: Vec<f64> = p.iter().zip(&dp).map(|(p, dp)| p * (dp - delta)).collect();
    let mut dq = vec![0.0; q.len()];
    for ((k, _, _), ds) in keys.iter().zip(&ds) {
        dq.iter_mut().zip(*k).for_each(|(dq, k)| *dq += scale * ds * k);
    }
    Gradients {
        dq,
        dk: ds.iter().map(|ds| times(q, scale * ds)).collect(),
        dv: p.iter().map(|p| times(d_o, *p)).collect(),
    }
}
