//! From a trainer and its sources to a checkpoint, and back to the bit.

use super::checkpoint::{Content, Saved};
use super::config::RunConfig;
use super::tensors::Named;
use crate::checkpoint::Checkpoint;
use crate::comm::Comm;
use crate::model::Config;
use crate::tensor::{Tensor, ViewMut};
use crate::train::data::Feed;
use crate::train::{Progress, Trainer};
use crate::weights::{ROW_IDS, ROWS};
use crate::{DType, Error, Result};
use serde_json::{Value, json};

/// What the names of a trainer's own copies of parameters contain; they are in the checkpoint
/// already, whole.
const PARAM: &str = "/param";

/// What a run is of, besides its configuration.
pub struct Identity {
    /// See [`super::folder::model_identity`].
    pub model: String,
    pub model_folder: String,
}

/// Numbers of the rows that are trained, for [`content`].
///
/// # Errors
/// If the device has failed.
pub fn row_ids(trainer: &Trainer) -> Result<Vec<(String, Tensor)>> {
    let some = trainer.parameters().iter().filter_map(|p| Some((&p.name, p.rows.as_ref()?)));
    some.map(|(name, rows)| {
        let ids: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let tensor = Tensor::upload(trainer.stream(), &ids, &[ids.len()])?;
        Ok((format!("{name}{ROW_IDS}"), tensor))
    })
    .collect()
}

/// Everything that this rank knows.
///
/// # Errors
/// If the device has failed.
pub fn content<'a>(
    config: &RunConfig,
    identity: &Identity,
    trainer: &'a Trainer,
    rows: &'a [(String, Tensor)],
    sources: &[Feed],
) -> Result<Content<'a>> {
    let mut trainable: Vec<Named<'a>> = Vec::new();
    for p in trainer.parameters() {
        let view = trainer.flat().block(0..1, p.range.clone())?.shaped(&p.shape)?;
        let name = if p.rows.is_some() { format!("{}{ROWS}", p.name) } else { p.name.clone() };
        trainable.push((name, view));
    }
    trainable.extend(rows.iter().map(|(name, tensor)| (name.clone(), tensor.view())));
    let own = trainer.state()?.into_iter().filter(|t| !t.name.contains(PARAM));
    let progress = trainer.progress();
    Ok(Content {
        trainable,
        own: own.map(|t| (t.name, t.view)).collect(),
        state: json!({
            "config": config.to_json()?,
            "architecture": trainer.config(),
            "model": identity.model,
            "model_folder": identity.model_folder,
            "progress": progress,
            "sources": sources.iter().map(Feed::state).collect::<Vec<_>>(),
        }),
    })
}

/// Refuses a checkpoint that is not of this run.
///
/// # Errors
/// Another number of ranks, another architecture, model or configuration: by key, with both values.
pub fn check(
    saved: &Saved,
    state: &Value,
    config: &RunConfig,
    architecture: &Config,
    identity: &Identity,
    comm: &Comm,
) -> Result<()> {
    let refuse = |who: &str, expected: String, found: String, advice: &str| {
        let who = format!("{}: {who}", saved.folder.display());
        Err(Error::invalid(who, expected, found).advise(advice))
    };
    let (ranks, world) = (saved.manifest.world, comm.world());
    if ranks != world {
        let advice = "each rank has its own part of the state; start as many as there were";
        return refuse("number of ranks", format!("{world}, as now"), ranks.to_string(), advice);
    }
    let now =
        serde_json::to_value(architecture).map_err(|e| Error::invalid("config.json", "JSON", e))?;
    if let Some((key, was, is)) = super::config::first_difference(&state["architecture"], &now) {
        let advice = "resume with the model folder that the run began with";
        return refuse(&format!("architecture, {key}"), format!("{is}, as now"), was, advice);
    }
    if state["model"] != json!(identity.model) {
        let advice = "resume with the model folder that the run began with";
        let found = state["model"].as_str().unwrap_or_default().to_string();
        return refuse("model", format!("{}, as now", identity.model), found, advice);
    }
    if let Some((key, was, is)) = config.difference(&state["config"])? {
        let advice = "the result depends on it; start another run, or set it back";
        return refuse(&format!("configuration, {key}"), format!("{is}, as now"), was, advice);
    }
    Ok(())
}

/// Goes back to what was saved.
///
/// # Errors
/// Tensors that are missing or of another shape, data that has changed.
pub fn restore(
    saved: &Saved,
    state: &Value,
    rank: usize,
    trainer: &mut Trainer,
    sources: &mut [Feed],
) -> Result<()> {
    let trainable = saved.trainable()?;
    let parameters = trainer.parameters().to_vec();
    trainer.exchange(&mut |_, flat| {
        let (dtype, mut rest, mut start) = (flat.dtype(), flat, 0);
        for p in &parameters {
            let name = if p.rows.is_some() { format!("{}{ROWS}", p.name) } else { p.name.clone() };
            let (_, from) = rest.split_columns(p.range.start - start)?;
            let (mut own, after) = from.split_columns(p.range.len())?;
            own.write_bytes(&bytes(&trainable, &name, dtype, p.range.len())?)?;
            (rest, start) = (after, p.range.end);
        }
        Ok(())
    })?;
    let own = saved.own(rank)?;
    let progress: Progress = serde_json::from_value(state["progress"].clone())
        .map_err(|e| Error::invalid("progress", "that of a checkpoint", e))?;
    trainer.restore(progress, &mut |name, mut to: ViewMut<'_>| {
        if name.contains(PARAM) {
            return Ok(());
        }
        let own = own.as_ref().ok_or_else(|| Error::invalid(name, "a tensor", "no such tensor"))?;
        let elements = to.rows() * to.cols();
        to.write_bytes(&bytes(own, name, to.dtype(), elements)?)
    })?;
    let states = state["sources"].as_array().map(Vec::as_slice).unwrap_or_default();
    if states.len() != sources.len() {
        let expected = format!("{} sources", sources.len());
        return Err(Error::invalid("checkpoint", expected, states.len()));
    }
    sources.iter_mut().zip(states).try_for_each(|(source, state)| source.restore(state))
}

fn bytes(from: &Checkpoint, name: &str, dtype: DType, elements: usize) -> Result<Vec<u8>> {
    let who = format!("{}: {name}", from.path().display());
    let expected = format!("{elements} elements of {dtype}");
    match from.get(name) {
        Some(entry) if entry.dtype == dtype && entry.count() == elements => Ok(entry.to_vec()),
        Some(entry) => {
            let found = format!("{} of {}", entry.count(), entry.dtype);
            Err(Error::invalid(who, expected, found))
        }
        None => Err(Error::invalid(who, expected, "no such tensor")),
    }
}
