//! Which sentence an image belongs to, given their similarities.

/// The one-to-one assignment of rows to columns with the largest sum: (row, column), by row. With
/// more rows than columns, the rows that lose have none. Every row of `scores` (R, C) is of equal
/// length and finite.
///
/// Shortest augmenting paths with potentials (Jonker and Volgenant 1987), R^2 C steps.
pub(super) fn assign(scores: &[Vec<f64>]) -> Vec<(usize, usize)> {
    let (rows, columns) = (scores.len(), scores.first().map_or(0, Vec::len));
    if rows <= columns {
        let owners = owners(rows, columns, |r, c| -scores[r][c]);
        let mut pairs: Vec<_> =
            (0..columns).filter_map(|c| owners[c].map(|row| (row, c))).collect();
        pairs.sort_unstable();
        return pairs;
    }
    let owners = owners(columns, rows, |c, r| -scores[r][c]);
    (0..rows).filter_map(|r| owners[r].map(|column| (r, column))).collect()
}

/// For each of `columns`, the row it is given to, so that every row has one and the sum of the
/// costs is least; `rows <= columns`.
fn owners(rows: usize, columns: usize, cost: impl Fn(usize, usize) -> f64) -> Vec<Option<usize>> {
    let mut owner: Vec<Option<usize>> = vec![None; columns];
    let (mut of_row, mut of_column) = (vec![0.0; rows], vec![0.0; columns]);
    for start in 0..rows {
        let mut least = vec![f64::INFINITY; columns];
        let mut before: Vec<Option<usize>> = vec![None; columns];
        let mut is_done = vec![false; columns];
        let (mut row, mut last) = (start, None);
        let end = loop {
            let mut next = (f64::INFINITY, 0);
            for c in (0..columns).filter(|&c| !is_done[c]) {
                let reduced = cost(row, c) - of_row[row] - of_column[c];
                if reduced < least[c] {
                    (least[c], before[c]) = (reduced, last);
                }
                if least[c] < next.0 {
                    next = (least[c], c);
                }
            }
            let (step, column) = next;
            of_row[start] += step;
            for (c, &is_done) in is_done.iter().enumerate() {
                if is_done {
                    of_column[c] -= step;
                    if let Some(owner) = owner[c] {
                        of_row[owner] += step;
                    }
                } else {
                    least[c] -= step;
                }
            }
            is_done[column] = true;
            match owner[column] {
                Some(next) => (row, last) = (next, Some(column)),
                None => break column,
            }
        };
        let mut column = end;
        while let Some(from) = before[column] {
            owner[column] = owner[from];
            column = from;
        }
        owner[column] = Some(start);
    }
    owner
}

/// The first largest score of each row.
pub(super) fn nearest(scores: &[Vec<f64>]) -> Vec<(usize, usize)> {
    let best = |row: &Vec<f64>| {
        (0..row.len()).fold(None, |best: Option<usize>, c| match best {
            Some(b) if row[b] >= row[c] => Some(b),
            _ => Some(c),
        })
    };
    scores.iter().enumerate().filter_map(|(r, row)| Some((r, best(row)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::data::random::{Use, numbers, uniform};

    /// The best sum over all ways, by trying them.
    fn best(scores: &[Vec<f64>], row: usize, used: &mut Vec<bool>, left: usize) -> f64 {
        if row == scores.len() {
            return if left == 0 { 0.0 } else { f64::NEG_INFINITY };
        }
        let mut most = best(scores, row + 1, used, left);
        for c in 0..used.len() {
            if !used[c] && left > 0 {
                used[c] = true;
                most = most.max(scores[row][c] + best(scores, row + 1, used, left - 1));
                used[c] = false;
            }
        }
        most
    }

    #[test]
    fn the_assignment_is_the_best_of_all() {
        let mut random = numbers(3, Use::Sample, 0);
        for (rows, columns) in [(1, 1), (1, 4), (4, 1), (3, 3), (2, 5), (5, 3), (5, 5)] {
            for _ in 0..20 {
                let row = |_| (0..columns).map(|_| uniform(&mut random) - 0.3).collect();
                let scores: Vec<Vec<f64>> = (0..rows).map(row).collect();
                let pairs = assign(&scores);
                assert_eq!(pairs.len(), rows.min(columns));
                let sum: f64 = pairs.iter().map(|&(r, c)| scores[r][c]).sum();
                let expected = best(&scores, 0, &mut vec![false; columns], rows.min(columns));
                assert!((sum - expected).abs() < 1e-12, "{sum} {expected}");
                assert!(pairs.windows(2).all(|w| w[0].0 < w[1].0));
            }
        }
        assert!(assign(&[]).is_empty() && assign(&[vec![]]).is_empty());
    }

    #[test]
    fn one_sentence_for_each_image_though_both_like_the_same() {
        let scores = vec![vec![0.30, 0.29], vec![0.31, 0.10]];
        assert_eq!(assign(&scores), [(0, 1), (1, 0)]);
        assert_eq!(nearest(&scores), [(0, 0), (1, 0)]);
    }
}
