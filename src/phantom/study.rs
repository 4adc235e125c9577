//! What is in a picture: nine properties, each with two or three values.

use super::dice::Dice;

/// One thing that can be seen and asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Property {
    Side,
    Level,
    Count,
    Size,
    Margin,
    Texture,
    Kind,
    Outline,
    Line,
}

impl Property {
    pub const ALL: [Property; 9] = [
        Property::Side,
        Property::Level,
        Property::Count,
        Property::Size,
        Property::Margin,
        Property::Texture,
        Property::Kind,
        Property::Outline,
        Property::Line,
    ];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Property::Side => "side",
            Property::Level => "level",
            Property::Count => "count",
            Property::Size => "size",
            Property::Margin => "margin",
            Property::Texture => "texture",
            Property::Kind => "kind",
            Property::Outline => "outline",
            Property::Line => "line",
        }
    }

    /// The words for its values.
    pub const fn values(self) -> &'static [&'static str] {
        match self {
            Property::Side => &["left", "right"],
            Property::Level => &["upper", "lower"],
            Property::Count => &["one", "two", "three"],
            Property::Size => &["small", "large"],
            Property::Margin => &["smooth", "ragged"],
            Property::Texture => &["solid", "hollow", "dotted"],
            Property::Kind => &["film", "slice", "sweep"],
            Property::Outline => &["round", "boxed", "paired"],
            Property::Line => &["no", "yes"],
        }
    }
}

/// The value of every property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Study([u8; Property::ALL.len()]);

impl Study {
    /// Every property uniformly and on its own.
    pub fn draw(dice: &mut Dice) -> Self {
        Study(Property::ALL.map(|p| dice.below(p.values().len()) as u8))
    }

    /// As [`Study::draw`], but with this value of this property.
    pub fn draw_with(dice: &mut Dice, property: Property, value: usize) -> Self {
        let mut study = Study::draw(dice);
        study.set(property, value);
        study
    }

    /// The number of the property's value.
    pub fn get(&self, property: Property) -> usize {
        usize::from(self.0[property as usize])
    }

    /// Changes one property.
    pub fn set(&mut self, property: Property, value: usize) {
        self.0[property as usize] = value as u8;
    }

    /// The word for the property's value.
    pub fn word(&self, property: Property) -> &'static str {
        property.values()[self.get(property)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pearson's chi-squared of a table of pairs against independence and uniformity.
    #[test]
    fn properties_are_uniform_and_independent() {
        const N: usize = 20_000;
        let mut dice = Dice::new(3, "study", 0);
        let studies: Vec<_> = (0..N).map(|_| Study::draw(&mut dice)).collect();
        for a in Property::ALL {
            for b in Property::ALL.into_iter().filter(|b| *b != a) {
                let (rows, cols) = (a.values().len(), b.values().len());
                let expected = N as f64 / (rows * cols) as f64;
                let mut table = vec![0usize; rows * cols];
                studies.iter().for_each(|s| table[s.get(a) * cols + s.get(b)] += 1);
                let chi: f64 =
                    table.iter().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
                // 99.999 % of chi-squared with 8 degrees of freedom.
                assert!(chi < 37.4, "{} and {}: {chi}", a.name(), b.name());
            }
        }
    }
}
