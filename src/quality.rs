//! How far a model's next-token distributions are from a reference's: what quantising costs.
//!
//! Both models read the same prompts; at every position KL(reference || model) over the whole
//! vocabulary says how much of the reference's information is lost, and the most probable tokens
//! agree or not.

use crate::engine::{Engine, Request};
use crate::ops::Summary;
use crate::{Error, Result};
use serde::Serialize;

/// The comparison over some positions.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Agreement {
    pub positions: usize,
    /// KL(reference || model), nats: mean, median and largest over the positions.
    pub kl_mean: f64,
    pub kl_median: f64,
    pub kl_max: f64,
    /// Share of the positions at which both models' best tokens are the same.
    pub top1: f64,
}

/// One prompt.
#[derive(Clone, Debug, Serialize)]
pub struct Prompt {
    pub tokens: usize,
    pub all: Agreement,
    /// At the last position alone: the answer's first token.
    pub last: Agreement,
}

/// All prompts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub prompts: Vec<Prompt>,
    /// Every position of every prompt.
    pub all: Agreement,
    /// The last position of every prompt.
    pub last: Agreement,
}

/// KL, and whether the best tokens agree, position by position.
#[derive(Clone, Debug, Default)]
struct Positions(Vec<(f64, bool)>);

impl Positions {
    fn agreement(&self) -> Agreement {
        let mut kl: Vec<f64> = self.0.iter().map(|(kl, _)| *kl).collect();
        kl.sort_by(f64::total_cmp);
        let count = kl.len().max(1) as f64;
        Agreement {
            positions: kl.len(),
            kl_mean: kl.iter().sum::<f64>() / count,
            kl_median: kl.get(kl.len() / 2).copied().unwrap_or(0.0),
            kl_max: kl.last().copied().unwrap_or(0.0),
            top1: self.0.iter().filter(|(_, same)| *same).count() as f64 / count,
        }
    }
}

/// Compares two models over prompts, one after the other.
#[derive(Default)]
pub struct Quality {
    all: Positions,
    last: Positions,
    prompts: Vec<Prompt>,
}

impl Quality {
    /// Runs both models over `request`, which is made for each by its own engine.
    ///
    /// # Errors
    /// Models whose tokens differ; those of [`Engine::inspect`]; logits that are not finite.
    pub fn add(
        &mut self,
        (reference, request): (&mut Engine, &Request),
        (model, own): (&mut Engine, &Request),
    ) -> Result<()> {
        if request.prompt.ids() != own.prompt.ids() {
            let (expected, found) = (request.prompt.len(), own.prompt.len());
            let expected = format!("the reference's {expected} tokens of the prompt");
            return Err(Error::invalid("model", expected, format!("{found} others")));
        }
        let expected = reference.inspect(request, &mut |_, _| {})?;
        let found = model.inspect(own, &mut |_, _| {})?;
        if expected.len() != found.len() {
            let expected = format!("{} logits", expected.len());
            return Err(Error::invalid("model", expected, found.len()));
        }
        let rows = request.prompt.len();
        let vocabulary = expected.len() / rows.max(1);
        let pairs = expected.chunks_exact(vocabulary).zip(found.chunks_exact(vocabulary));
        let positions: Vec<_> = pairs.map(|(p, q)| compared(p, q)).collect::<Result<_>>()?;
        let last = Positions(positions.last().copied().into_iter().collect());
        let own = Positions(positions);
        self.prompts.push(Prompt { tokens: rows, all: own.agreement(), last: last.agreement() });
        self.all.0.extend(own.0);
        self.last.0.extend(last.0);
        Ok(())
    }

    /// What was found so far.
    pub fn report(self) -> Report {
        let (all, last) = (self.all.agreement(), self.last.agreement());
        Report { prompts: self.prompts, all, last }
    }
}

/// KL(p || q) of two rows of logits, and whether their largest entries are the same.
fn compared(p: &[f32], q: &[f32]) -> Result<(f64, bool)> {
    let (of_p, of_q) = (Summary::of(p)?, Summary::of(q)?);
    let log = |s: &Summary, x: f32| f64::from(x - s.maximum) - f64::from(s.log_sum);
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let (p, q) = (log(&of_p, p), log(&of_q, q));
        p.exp() * (p - q)
    });
    // Rounding can leave a sum of equal distributions just below 0.
    Ok((terms.sum::<f64>().max(0.0), of_p.argmax == of_q.argmax))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_distributions() {
        let logits = |p: &[f32]| p.iter().map(|p| p.ln() + 3.0).collect::<Vec<_>>();
        let (p, q) = (logits(&[0.5, 0.25, 0.25]), logits(&[0.25, 0.5, 0.25]));
        let (kl, same) = compared(&p, &q).unwrap();
        assert!((kl - 0.25 * 2f64.ln()).abs() < 1e-6 && !same, "{kl}");
        let (kl, same) = compared(&p, &p).unwrap();
        assert!(kl < 1e-6 && same);
        assert!(compared(&p, &[f32::NAN; 3]).is_err());
        let found = Positions(vec![(0.3, true), (0.1, false), (0.2, true)]).agreement();
        assert!((found.kl_mean - 0.2).abs() < 1e-12 && (found.top1 - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!((found.kl_median, found.kl_max, found.positions), (0.2, 0.3, 3));
    }
}
