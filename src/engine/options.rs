//! What a request may ask of generation, its defaults, and the limits it is held to.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Most beams of one request.
pub const MAX_BEAMS: usize = 16;
/// Most stop strings of one request.
pub const MAX_STOPS: usize = 16;
/// Longest stop string, in bytes of UTF-8.
pub const MAX_STOP_BYTES: usize = 64;
/// Most alternatives reported with each token.
pub const MAX_LOGPROBS: usize = 20;

/// How to turn logits into text. Fields left out of a JSON object take the defaults.
///
/// The default is greedy decoding with no penalties, which is what the published demo and the
/// published scores use: the same prompt always gives the same answer. A `temperature` above 0
/// turns sampling on; `top_k`, `top_p` and `min_p` are refused without it, because they would
/// change nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateOptions {
    /// Most tokens to generate, in 1..=context. Default 128; answers usually end long before.
    pub max_new_tokens: usize,
    /// Tokens to generate before the end of the answer is allowed. Default 0.
    pub min_new_tokens: usize,
    /// Beams, in 1..=16. Default 1: no beam search.
    pub num_beams: usize,
    /// A beam's score is its log-probability / length^`length_penalty`, where the length includes
    /// the prompt; in -10..=10. Default 1. OpenFlamingo's evaluation uses 0, its first release -2.
    pub length_penalty: f64,
    /// When beam search may stop. Default [`EarlyStopping::False`].
    pub early_stopping: EarlyStopping,
    /// 0 (the default) is greedy; otherwise logits are divided by it, in 0.001..=100.
    pub temperature: f64,
    /// Sample from the `top_k` most probable tokens and those that tie with the last of them.
    /// Default 0: from all.
    pub top_k: usize,
    /// Sample from the fewest most probable tokens whose probabilities reach `top_p`, in 0..=1.
    /// Default 1: from all.
    pub top_p: f64,
    /// Sample from tokens at least `min_p` times as probable as the most probable one, in 0..=1.
    /// Default 0: from all.
    pub min_p: f64,
    /// Divides positive and multiplies negative scores of tokens that the prompt or the answer
    /// already holds; in 0.01..=100. Default 1: none.
    pub repetition_penalty: f64,
    /// No sequence of this many tokens may occur twice in prompt and answer. Default 0: allowed.
    pub no_repeat_ngram_size: usize,
    /// Seed of the random numbers; the same seed gives the same tokens on any machine. Default 0.
    pub seed: u64,
    /// The answer ends before the first of these; at most 16 of 1..=64 bytes. Default none.
    pub stop: Vec<String>,
    /// Alternatives to report with each token, in 0..=20. Default 0.
    pub logprobs: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new_tokens: 128,
            min_new_tokens: 0,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::False,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            seed: 0,
            stop: Vec::new(),
            logprobs: 0,
        }
    }
}

impl GenerateOptions {
    /// Refuses what no model can do, before anything is allocated. `context` is the most tokens
    /// that prompt and answer together may have.
    ///
    /// # Errors
    /// Names the option, what it may be and what it is.
    pub fn check(&self, context: usize) -> Result<()> {
        within("max_new_tokens", self.max_new_tokens, 1, context)?;
        within("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)?;
        within("num_beams", self.num_beams, 1, MAX_BEAMS)?;
        within("length_penalty", self.length_penalty, -10.0, 10.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        within("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, context)?;
        within("logprobs", self.logprobs, 0, MAX_LOGPROBS)?;
        self.check_temperature()?;
        self.check_beams()?;
        self.check_stop()
    }

    /// True if tokens are drawn at random rather than the most probable one taken.
    pub fn is_sampling(&self) -> bool {
        self.temperature > 0.0
    }

    fn check_temperature(&self) -> Result<()> {
        if self.temperature != 0.0 {
            return match within("temperature", self.temperature, 0.001, 100.0) {
                Err(_) => {
                    let found = self.temperature;
                    Err(Error::invalid("temperature", "0 (greedy) or 0.001..=100", found))
                }
                ok => ok,
            };
        }
        let idle = |who, off: &str, found: &dyn fmt::Display| {
            Err(Error::invalid(who, format!("{off} (off) when temperature is 0"), found)
                .advise("greedy decoding never samples; give a temperature above 0, such as 0.7"))
        };
        match () {
            () if self.top_k != 0 => idle("top_k", "0", &self.top_k),
            () if self.top_p != 1.0 => idle("top_p", "1", &self.top_p),
            () if self.min_p != 0.0 => idle("min_p", "0", &self.min_p),
            () => Ok(()),
        }
    }

    fn check_beams(&self) -> Result<()> {
        if self.num_beams == 1 {
            return Ok(());
        }
        if self.is_sampling() {
            let expected = "0 (greedy) with more than one beam";
            return Err(Error::invalid("temperature", expected, self.temperature).advise(
                "beam search is deterministic: leave out either num_beams or temperature",
            ));
        }
        if self.logprobs != 0 {
            return Err(Error::invalid("logprobs", "0 with more than one beam", self.logprobs)
                .advise("the log-probabilities of the chosen tokens are reported all the same"));
        }
        Ok(())
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.len() > MAX_STOPS {
            let expected = format!("at most {MAX_STOPS} strings");
            return Err(Error::invalid("stop", expected, self.stop.len()));
        }
        for (i, stop) in self.stop.iter().enumerate() {
            if !(1..=MAX_STOP_BYTES).contains(&stop.len()) {
                let expected = format!("1..={MAX_STOP_BYTES} bytes");
                let found = format!("{} bytes", stop.len());
                return Err(Error::invalid(format!("stop[{i}]"), expected, found));
            }
        }
        Ok(())
    }
}

/// `least <= found <= most`, which no NaN satisfies.
fn within<T: PartialOrd + fmt::Display>(who: &str, found: T, least: T, most: T) -> Result<()> {
    if found >= least && found <= most {
        return Ok(());
    }
    Err(Error::invalid(who, format!("{least}..={most}"), found))
}

/// When a beam search with as many finished answers as beams stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "EarlyStoppingForm", into = "EarlyStoppingForm")]
pub enum EarlyStopping {
    /// When the most probable open beam, at its present length, could not beat the worst of them.
    #[default]
    False,
    /// At once.
    True,
    /// When no open beam could beat the worst of them at any length up to the limit.
    Never,
}

/// `true`, `false` or `"never"`, as in a `generation_config.json`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum EarlyStoppingForm {
    Flag(bool),
    Word(String),
}

impl TryFrom<EarlyStoppingForm> for EarlyStopping {
    type Error = Error;

    fn try_from(form: EarlyStoppingForm) -> Result<Self> {
        match form {
            EarlyStoppingForm::Flag(false) => Ok(EarlyStopping::False),
            EarlyStoppingForm::Flag(true) => Ok(EarlyStopping::True),
            EarlyStoppingForm::Word(word) => word.parse(),
        }
    }
}

impl From<EarlyStopping> for EarlyStoppingForm {
    fn from(value: EarlyStopping) -> Self {
        match value {
            EarlyStopping::False => EarlyStoppingForm::Flag(false),
            EarlyStopping::True => EarlyStoppingForm::Flag(true),
            EarlyStopping::Never => EarlyStoppingForm::Word("never".into()),
        }
    }
}

impl FromStr for EarlyStopping {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "false" => Ok(EarlyStopping::False),
            "true" => Ok(EarlyStopping::True),
            "never" => Ok(EarlyStopping::Never),
            _ => Err(Error::invalid("early_stopping", "false, true or \"never\"", word)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: usize = 2048;

    fn refused(change: impl FnOnce(&mut GenerateOptions)) -> String {
        let mut options = GenerateOptions::default();
        change(&mut options);
        options.check(CONTEXT).unwrap_err().to_string()
    }

    fn accepted(change: impl FnOnce(&mut GenerateOptions)) {
        let mut options = GenerateOptions::default();
        change(&mut options);
        options.check(CONTEXT).unwrap();
    }

    #[test]
    fn defaults_are_greedy_and_pass() {
        let options = GenerateOptions::default();
        options.check(CONTEXT).unwrap();
        assert!(!options.is_sampling());
    }

    #[test]
    fn limits_hold_at_both_ends() {
        accepted(|o| o.max_new_tokens = CONTEXT);
        let e = refused(|o| o.max_new_tokens = CONTEXT + 1);
        assert_eq!(e, "max_new_tokens: expected 1..=2048, found 2049");
        assert!(refused(|o| o.max_new_tokens = 0).starts_with("max_new_tokens"));
        accepted(|o| o.min_new_tokens = 128);
        assert!(refused(|o| o.min_new_tokens = 129).starts_with("min_new_tokens"));
        accepted(|o| o.num_beams = 16);
        assert!(refused(|o| o.num_beams = 17).starts_with("num_beams"));
        assert!(refused(|o| o.num_beams = 0).starts_with("num_beams"));
        accepted(|o| o.logprobs = 20);
        assert!(refused(|o| o.logprobs = 21).starts_with("logprobs"));
        accepted(|o| o.stop = vec!["x".repeat(64); 16]);
        assert!(refused(|o| o.stop = vec!["x".into(); 17]).starts_with("stop: "));
        assert!(refused(|o| o.stop = vec!["a".into(), "x".repeat(65)]).starts_with("stop[1]"));
        assert!(refused(|o| o.stop = vec!["".into()]).contains("found 0 bytes"));
        accepted(|o| o.repetition_penalty = 0.01);
        assert!(refused(|o| o.repetition_penalty = 0.0).starts_with("repetition_penalty"));
        assert!(refused(|o| o.no_repeat_ngram_size = 2049).starts_with("no_repeat_ngram_size"));
        assert!(refused(|o| o.length_penalty = 10.5).starts_with("length_penalty"));
    }

    #[test]
    fn no_number_may_be_nan_or_infinite() {
        type Field = fn(&mut GenerateOptions) -> &mut f64;
        let fields: [Field; 5] = [
            |o| &mut o.length_penalty,
            |o| &mut o.temperature,
            |o| &mut o.top_p,
            |o| &mut o.min_p,
            |o| &mut o.repetition_penalty,
        ];
        for field in fields {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                refused(|o| *field(o) = value);
            }
        }
    }

    #[test]
    fn what_would_change_nothing_is_refused() {
        assert!(refused(|o| o.top_k = 50).starts_with("top_k: expected 0 (off) when"));
        assert!(refused(|o| o.top_p = 0.9).contains("give a temperature"));
        assert!(refused(|o| o.min_p = 0.1).starts_with("min_p"));
        assert!(refused(|o| o.temperature = -0.5).contains("0 (greedy) or"));
        assert!(refused(|o| o.temperature = 1e-9).contains("0 (greedy) or"));
        accepted(|o| (o.temperature, o.top_k, o.top_p, o.min_p) = (0.7, 50, 0.9, 0.1));
        assert!(refused(|o| (o.num_beams, o.temperature) = (3, 0.7)).contains("deterministic"));
        assert!(refused(|o| (o.num_beams, o.logprobs) = (3, 1)).starts_with("logprobs"));
    }

    #[test]
    fn json_takes_defaults_and_refuses_unknown_names() {
        let read = |text: &str| serde_json::from_str::<GenerateOptions>(text);
        assert_eq!(read("{}").unwrap(), GenerateOptions::default());
        let options =
            read(r#"{"num_beams": 3, "early_stopping": "never", "stop": ["\n"]}"#).unwrap();
        assert_eq!(options.num_beams, 3);
        assert_eq!(options.early_stopping, EarlyStopping::Never);
        assert!(read(r#"{"tempreature": 1}"#).unwrap_err().to_string().contains("tempreature"));
        assert!(read(r#"{"early_stopping": "maybe"}"#).unwrap_err().to_string().contains("never"));
        assert!(read(r#"{"top_k": -1}"#).is_err());
        assert!(read(r#"{"max_new_tokens": 1e30}"#).is_err());
        for early in [EarlyStopping::False, EarlyStopping::True, EarlyStopping::Never] {
            let options = GenerateOptions { early_stopping: early, top_p: 0.9, ..options.clone() };
            let text = serde_json::to_string(&options).unwrap();
            assert_eq!(read(&text).unwrap(), options);
        }
    }
}
