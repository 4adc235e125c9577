//! Which mask a training forward uses.

use super::random::{Use, numbers, uniform};
use crate::model::MaskMode;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One mask for all forwards, or release 0.0.2's `--use_media_placement_augmentation`: for each
/// forward of training, text attends to the image before it or to the one after it, with equal
/// chances. As upstream runs one forward for each source of a micro-batch, each source has a draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Placement {
    Fixed(MaskMode),
    Augmented,
}

/// The name of [`Placement::Augmented`].
const AUGMENTED: &str = "v1-augmented";

impl Placement {
    /// The mask of source number `source` in forward number `forward` under `seed`: nothing else
    /// decides it, so that there is nothing to save.
    pub fn mask(self, seed: u64, forward: u64, source: usize) -> MaskMode {
        match self {
            Placement::Fixed(mask) => mask,
            Placement::Augmented => {
                let mut random = numbers(seed, Use::Placement, forward);
                let draws = (0..=source).map(|_| uniform(&mut random));
                match draws.last().is_some_and(|own| own < 0.5) {
                    true => MaskMode::V1AttendPrevious,
                    false => MaskMode::V1AttendNext,
                }
            }
        }
    }

    /// The mask where nothing is left to chance: at inference release 0.0.2 takes the next image,
    /// however it was trained.
    pub fn at_inference(self) -> MaskMode {
        match self {
            Placement::Fixed(mask) => mask,
            Placement::Augmented => MaskMode::V1AttendNext,
        }
    }
}

impl Default for Placement {
    fn default() -> Self {
        Placement::Fixed(MaskMode::V2)
    }
}

impl FromStr for Placement {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        if name == AUGMENTED {
            return Ok(Placement::Augmented);
        }
        name.parse().map(Placement::Fixed).map_err(|_| {
            let names = format!("{}, {AUGMENTED}", MaskMode::NAMES.join(", "));
            Error::invalid("media placement", names, format!("`{name}`"))
        })
    }
}

impl TryFrom<String> for Placement {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<Placement> for String {
    fn from(placement: Placement) -> Self {
        placement.to_string()
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placement::Fixed(mask) => mask.fmt(f),
            Placement::Augmented => f.write_str(AUGMENTED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn augmentation_draws_both_masks_by_number() {
        let draw = |i, source| Placement::Augmented.mask(5, i, source);
        for source in 0..3 {
            let previous = (0..400).filter(|&i| draw(i, source) == MaskMode::V1AttendPrevious);
            let previous = previous.count();
            assert!((150..250).contains(&previous), "{previous}");
            let is_other = |&i: &u64| draw(i, source) != draw(i, source + 1);
            let others = (0..400).filter(is_other).count();
            assert!((150..250).contains(&others), "{others}");
            assert!((0..400).all(|i| draw(i, source) != MaskMode::V2));
        }
        assert_eq!(Placement::Augmented.at_inference(), MaskMode::V1AttendNext);
        assert_eq!(Placement::Fixed(MaskMode::V2).mask(1, 2, 3), MaskMode::V2);
    }

    #[test]
    fn names_go_both_ways() {
        for name in MaskMode::NAMES.into_iter().chain([AUGMENTED]) {
            assert_eq!(name.parse::<Placement>().unwrap().to_string(), name);
        }
        let text = "v3".parse::<Placement>().unwrap_err().to_string();
        assert!(text.contains("v1-augmented") && text.contains("`v3`"), "{text}");
    }
}
