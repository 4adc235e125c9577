//! Which tokens are predicted: upstream's masking of labels (open_flamingo/train/train_utils.py).

use super::rules::{Form, LabelRules};
use crate::text::Specials;
use crate::train::batch::NO_LABEL;

/// The label of every token of `ids`, -100 where there is none.
///
/// Pairs: all but `<image>`. Interleaved: what lies between an `<image>` and the next
/// `<|endofchunk|>`, that one included; so the end token after the last one is not predicted.
pub fn label(ids: &[u32], specials: &Specials, form: Form, rules: LabelRules) -> Vec<i32> {
    let mut labels: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let (image, end) = (specials.image as i32, specials.end_of_chunk as i32);
    let has_first_masked = match form {
        Form::Pairs => rules == LabelRules::V1,
        Form::Interleaved => rules != LabelRules::V2,
    };
    if let Some(first) = labels.first_mut().filter(|_| has_first_masked) {
        *first = NO_LABEL;
    }
    if form == Form::Interleaved {
        // With the first label masked, a sequence that begins with `<image>` loses all up to its
        // second: the old releases look for the marker among the labels.
        mask_to(image, &mut labels);
        let ends: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] == end).collect();
        ends.into_iter().for_each(|i| mask_to(image, &mut labels[i + 1..]));
    }
    labels.iter_mut().filter(|label| **label == image).for_each(|label| *label = NO_LABEL);
    labels
}

/// Masks what comes before the first `marker`.
fn mask_to(marker: i32, labels: &mut [i32]) {
    labels.iter_mut().take_while(|label| **label != marker).for_each(|label| *label = NO_LABEL);
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: u32 = 9;
    const END: u32 = 8;
    const NONE: i32 = NO_LABEL;

    fn labels(ids: &[u32], form: Form, rules: LabelRules) -> Vec<i32> {
        let specials = Specials {
            end_of_chunk: END,
            image: IMAGE,
            pad: 7,
            bos: Some(1),
            eos: Some(2),
            unk: None,
        };
        label(ids, &specials, form, rules)
    }

    #[test]
    fn only_chunks_of_an_image_are_predicted() {
        let ids = [1, 3, IMAGE, 4, END, 5, IMAGE, 6, END, 2];
        let expected = [NONE, NONE, NONE, 4, 8, NONE, NONE, 6, 8, NONE];
        for rules in [LabelRules::V2, LabelRules::V20, LabelRules::V1] {
            assert_eq!(labels(&ids, Form::Interleaved, rules), expected);
        }
    }

    #[test]
    fn a_sequence_that_begins_with_an_image_keeps_its_first_chunk_in_v2_only() {
        let ids = [IMAGE, 4, END, IMAGE, 6, END];
        let all = [NONE, 4, 8, NONE, 6, 8];
        assert_eq!(labels(&ids, Form::Interleaved, LabelRules::V2), all);
        for rules in [LabelRules::V20, LabelRules::V1] {
            assert_eq!(labels(&ids, Form::Interleaved, rules), [NONE, NONE, NONE, NONE, 6, 8]);
            assert_eq!(labels(&ids[..3], Form::Interleaved, rules), [NONE; 3]);
        }
    }

    #[test]
    fn a_sequence_that_was_cut_is_predicted_to_its_end() {
        let ids = [1, IMAGE, 4, 5];
        assert_eq!(labels(&ids, Form::Interleaved, LabelRules::V2), [NONE, NONE, 4, 5]);
    }

    #[test]
    fn pairs_predict_the_end_token_and_v1_not_the_first() {
        let ids = [1, IMAGE, 4, END, 2];
        assert_eq!(labels(&ids, Form::Pairs, LabelRules::V2), [1, NONE, 4, 8, 2]);
        assert_eq!(labels(&ids, Form::Pairs, LabelRules::V20), [1, NONE, 4, 8, 2]);
        assert_eq!(labels(&ids, Form::Pairs, LabelRules::V1), [NONE, NONE, 4, 8, 2]);
        assert!(labels(&[], Form::Pairs, LabelRules::V1).is_empty());
    }
}
