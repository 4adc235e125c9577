//! Steps that repeat: the launches of a step are data, so equal steps are one graph, made once and
//! launched again. Whoever can say what a step's launches follow from need not collect them anew.

use super::launch::Launch;
use super::queue::{Mode, Queue, State};
use crate::Result;
use crate::device::Form;
use cudarc::driver::sys::{self, CUresult};

/// Steps remembered: one per number of sequences and capacity of the page tables.
const REMEMBERED: usize = 16;

/// The launches of a step, in order.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Step {
    launches: Vec<Launch>,
    /// Their params, one after another.
    params: Vec<u8>,
}

impl Step {
    /// `accounting` bytes at the end of the params are nothing to the card, and not compared.
    pub(super) fn push(&mut self, launch: Launch, params: &[u8], accounting: usize) {
        self.launches.push(launch);
        self.params.extend_from_slice(&params[..params.len() - accounting]);
        self.params.resize(self.params.len() + accounting, 0);
    }

    /// Each launch and its params.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Launch, &[u8])> {
        let mut rest = self.params.as_slice();
        self.launches.iter().map(move |launch| {
            let (params, after) = rest.split_at(launch.params);
            rest = after;
            (launch, params)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.launches.len()
    }

    fn clear(&mut self) {
        self.launches.clear();
        self.params.clear();
    }
}

/// A step and the graph that was made of it.
struct Known {
    step: Step,
    graph: sys::CUgraphExec,
    /// What the step last came from, if its maker said so.
    form: Option<Form>,
}

/// The graphs of the last steps, last used last.
#[derive(Default)]
pub(super) struct Graphs {
    known: Vec<Known>,
    pub made: u64,
    pub replayed: u64,
}

impl Graphs {
    /// Launch `n` of the step that ran last.
    pub(super) fn latest(&self, n: usize) -> Option<&Launch> {
        self.known.last().and_then(|known| known.step.launches.get(n))
    }

    /// The last one that is as asked for, now last used.
    fn again(&mut self, is_it: impl Fn(&Known) -> bool) -> Option<&mut Known> {
        let i = self.known.iter().rposition(is_it)?;
        self.known[i..].rotate_left(1);
        self.replayed += 1;
        self.known.last_mut()
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.known.drain(..).for_each(|known| destroy(known.graph));
    }
}

fn destroy(graph: sys::CUgraphExec) {
    // SAFETY: made by `capture`, destroyed once; the driver waits for its last run.
    let _ = unsafe { sys::cuGraphExecDestroy(graph) };
}

impl Queue {
    /// Launches from here on are collected; `form`, if there is one, stands for all of them.
    pub(crate) fn begin_step(&self, form: Option<Form>) -> Result<()> {
        let mut state = self.enter()?;
        state.mode = Mode::Collected;
        state.form = form;
        Ok(())
    }

    /// Runs the step of that form if it is known; how many launches it is.
    pub(crate) fn replay(&self, form: &Form) -> Result<Option<usize>> {
        let mut state = self.enter()?;
        if self.is_single(&state) {
            return Ok(None);
        }
        let known = state.graphs.again(|known| known.form.as_ref() == Some(form));
        let Some(Known { step, graph, .. }) = known else { return Ok(None) };
        let (launches, graph) = (step.len(), *graph);
        self.run_graph(&mut state, graph).map(|()| Some(launches))
    }

    /// Forgets all steps: launches will be others.
    pub(crate) fn forget_steps(&self) -> Result<()> {
        self.enter()?.graphs.clear();
        Ok(())
    }

    /// Launches from here on overlap, or no more.
    pub(crate) fn set_overlapping(&self, overlaps: bool) {
        self.state().mode = if overlaps { Mode::Overlapping } else { Mode::Apart };
    }

    /// Runs what was collected: as a graph, made now or before.
    pub(crate) fn end_step(&self) -> Result<()> {
        let mut state = self.enter()?;
        state.mode = Mode::Apart;
        self.with_step(&mut state, |state, step| {
            if step.launches.is_empty() {
                return Ok(());
            }
            if self.is_single(state) {
                return self.run_all(state, step);
            }
            let graph = self.graph(state, step)?;
            self.run_graph(state, graph)
        })
    }

    /// Runs a graph that is remembered.
    fn run_graph(&self, state: &mut State, graph: sys::CUgraphExec) -> Result<()> {
        self.send(state)?;
        // SAFETY: the graph is remembered, so it is alive.
        let status = unsafe { sys::cuGraphLaunch(graph, self.stream) };
        self.settle(state, "launch of a step", status)
    }

    /// Forgets what was collected.
    pub(crate) fn drop_step(&self) {
        let mut state = self.state();
        state.mode = Mode::Apart;
        state.step.clear();
        state.form = None;
    }

    /// Runs what an open step has collected, because something else comes next.
    pub(super) fn flush(&self, state: &mut State) -> Result<()> {
        if state.step.len() > 0 {
            // What is collected from here on is not all of it.
            state.form = None;
        }
        self.with_step(state, |state, step| self.run_all(state, step))
    }

    fn run_all(&self, state: &mut State, step: &Step) -> Result<()> {
        step.iter().try_for_each(|(launch, params)| self.run(state, launch, params))
    }

    /// Empties the step, whose memory is used again.
    fn with_step(
        &self,
        state: &mut State,
        body: impl FnOnce(&mut State, &Step) -> Result<()>,
    ) -> Result<()> {
        let mut step = std::mem::take(&mut state.step);
        let result = body(state, &step);
        step.clear();
        state.step = step;
        result
    }

    fn graph(&self, state: &mut State, step: &Step) -> Result<sys::CUgraphExec> {
        let form = state.form.take();
        if let Some(known) = state.graphs.again(|known| known.step == *step) {
            known.form = form.or(known.form.take());
            return Ok(known.graph);
        }
        if state.graphs.known.len() == REMEMBERED {
            destroy(state.graphs.known.remove(0).graph);
        }
        let graph = self.capture(state, step)?;
        state.graphs.known.push(Known { step: step.clone(), graph, form });
        state.graphs.made += 1;
        Ok(graph)
    }

    fn capture(&self, state: &mut State, step: &Step) -> Result<sys::CUgraphExec> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours; nothing else is put into it before the capture ends.
        let status = unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) };
        self.settle(state, "capture of a step", status)?;
        let failed = step.iter().find_map(|(launch, params)| {
            let status = launch.run(params, self.stream, self.cublaslt.get());
            (status != CUresult::CUDA_SUCCESS).then_some((launch.key, status))
        });
        let (mut graph, mut ready) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: ends what was begun above; writes the handle it is given.
        let status = unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) };
        let captured = match failed {
            Some((key, status)) => self.settle(state, &format!("launch of {key}"), status),
            None => self.settle(state, "capture of a step", status),
        };
        let made = captured.and_then(|()| {
            // SAFETY: the graph was captured just now; writes the handle it is given.
            let status = unsafe { sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0) };
            self.settle(state, "graph of a step", status)
        });
        if !graph.is_null() {
            // SAFETY: the instance does not need it; destroyed once.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        }
        made.map(|()| ready)
    }
}
