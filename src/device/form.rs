//! What the launches of a step follow from, so that they need not be made to know what they are.

use std::sync::Arc;

/// Stands for a list of launches: of equal forms they are equal, byte for byte. What changes from
/// one step to the next must be in device memory, where the launches read it.
#[derive(Clone, Debug)]
pub struct Form {
    /// Whose launches they are. As long as a form is known, nobody else has this address.
    maker: Arc<()>,
    /// Every number and address that is not fixed for this maker.
    numbers: Vec<usize>,
}

impl Form {
    pub fn new(maker: &Arc<()>, numbers: Vec<usize>) -> Self {
        Form { maker: maker.clone(), numbers }
    }
}

impl PartialEq for Form {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.maker, &other.maker) && self.numbers == other.numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_those_of_one_maker() {
        let (a, b) = (Arc::new(()), Arc::new(()));
        let form = Form::new(&a, vec![1, 2]);
        assert!(form == Form::new(&a, vec![1, 2]) && form != Form::new(&a, vec![1, 3]));
        assert!(form != Form::new(&b, vec![1, 2]));
    }
}
