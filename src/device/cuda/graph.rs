//! Steps that repeat: the launches of a step are data, so equal steps are one graph, made once and
//! launched again.

use super::check;
use super::queue::{Queue, State};
use crate::Result;
use crate::device::{Geometry, Swizzle, TensorMap};
use cudarc::driver::sys::{self, CUresult};

/// Steps remembered: one per number of sequences and capacity of the page tables.
const REMEMBERED: usize = 16;
/// Where tensor maps begin: their alignment.
const MAP_ALIGN: usize = 64;

/// One launch: everything the card will read of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Launch {
    function: sys::CUfunction,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    cluster: u32,
    /// The params, and the tensor maps if there are some.
    params: Vec<u8>,
}

impl Launch {
    pub(super) fn new(
        device: &str,
        function: sys::CUfunction,
        geometry: &Geometry,
        params: &[u8],
    ) -> Result<Self> {
        let mut bytes = params.to_vec();
        if geometry.maps.iter().any(Option::is_some) {
            bytes.resize(params.len().next_multiple_of(MAP_ALIGN), 0);
            for map in &geometry.maps {
                let encoded = map.as_ref().map(|m| encode(device, m)).transpose()?;
                for word in encoded.map_or([0; 16], |e| e.opaque) {
                    bytes.extend_from_slice(&word.to_ne_bytes());
                }
            }
        }
        let Geometry { grid, threads, shared, cluster, .. } = *geometry;
        Ok(Launch { function, grid, threads, shared, cluster, params: bytes })
    }

    pub(super) fn run(&self, stream: sys::CUstream) -> CUresult {
        let mut size = self.params.len();
        let mut extra: [*mut std::ffi::c_void; 5] = [
            sys::CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT as usize as *mut _,
            self.params.as_ptr().cast_mut().cast(),
            sys::CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT as usize as *mut _,
            (&raw mut size).cast(),
            std::ptr::null_mut(),
        ];
        let x = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: self.cluster, y: 1, z: 1 };
        let mut cluster = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { clusterDim: x },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: self.grid[0],
            gridDimY: self.grid[1],
            gridDimZ: self.grid[2],
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared,
            hStream: stream,
            attrs: &mut cluster,
            numAttrs: u32::from(self.cluster > 1),
        };
        // SAFETY: the wrappers in `ops` promise the params; the driver copies them.
        unsafe {
            sys::cuLaunchKernelEx(&config, self.function, std::ptr::null_mut(), extra.as_mut_ptr())
        }
    }
}

fn encode(device: &str, map: &TensorMap) -> Result<sys::CUtensorMap> {
    use sys::CUtensorMapSwizzle as S;
    let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
    let swizzle = match map.swizzle {
        Swizzle::None => S::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::Bytes64 => S::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::Bytes128 => S::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    // SAFETY: every pointer is to a local array of the stated rank.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            2,
            map.address.cast_mut(),
            map.sizes.as_ptr(),
            &map.stride,
            map.tile.as_ptr(),
            [1u32, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check(device, &format!("tensor map {map:?}"), status)?;
    Ok(encoded)
}

/// The graphs of the last steps, last used last.
#[derive(Default)]
pub(super) struct Graphs(Vec<(Vec<Launch>, sys::CUgraphExec)>);

impl Graphs {
    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        for (_, graph) in self.0.drain(..) {
            // SAFETY: made by `capture`, destroyed once.
            let _ = unsafe { sys::cuGraphExecDestroy(graph) };
        }
    }
}

impl Queue {
    /// Launches from here on are collected.
    pub(crate) fn begin_step(&self) -> Result<()> {
        self.enter()?.step = Some(Vec::new());
        Ok(())
    }

    /// Runs what was collected: as a graph, made now or before.
    pub(crate) fn end_step(&self) -> Result<()> {
        let mut state = self.enter()?;
        let Some(launches) = state.step.take() else { return Ok(()) };
        if launches.is_empty() {
            return Ok(());
        }
        if self.is_synchronous() {
            return launches.iter().try_for_each(|l| self.run(&mut state, l));
        }
        let graph = match state.graphs.0.iter().position(|(of, _)| *of == launches) {
            Some(i) => {
                let known = state.graphs.0.remove(i);
                let graph = known.1;
                state.graphs.0.push(known);
                state.replays += 1;
                graph
            }
            None => {
                let graph = self.capture(&mut state, &launches)?;
                if state.graphs.0.len() == REMEMBERED {
                    let (_, old) = state.graphs.0.remove(0);
                    // SAFETY: made by `capture`; the driver waits for its last run.
                    let _ = unsafe { sys::cuGraphExecDestroy(old) };
                }
                state.graphs.0.push((launches, graph));
                graph
            }
        };
        // SAFETY: the graph is remembered, so it is alive.
        let status = unsafe { sys::cuGraphLaunch(graph, self.stream) };
        self.settle(&mut state, "launch of a step", status)
    }

    /// Forgets what was collected.
    pub(crate) fn drop_step(&self) {
        if let Ok(mut state) = self.enter() {
            state.step = None;
        }
    }

    /// Runs what an open step has collected, because something else comes next.
    pub(super) fn flush(&self, state: &mut State) -> Result<()> {
        let Some(launches) = &mut state.step else { return Ok(()) };
        let launches = std::mem::take(launches);
        launches.iter().try_for_each(|l| self.run(state, l))
    }

    fn capture(&self, state: &mut State, launches: &[Launch]) -> Result<sys::CUgraphExec> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours; nothing else is put into it before the capture ends.
        let status = unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) };
        self.settle(state, "capture", status)?;
        let failed = launches.iter().map(|l| l.run(self.stream));
        let failed = failed.fold(CUresult::CUDA_SUCCESS, |first, status| {
            if first == CUresult::CUDA_SUCCESS { status } else { first }
        });
        let (mut graph, mut ready) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: ends what was begun above; writes the handle it is given.
        let status = unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) };
        self.settle(state, "launch in a step", failed)?;
        self.settle(state, "capture", status)?;
        // SAFETY: the graph was captured just now; it is not needed once there is an instance.
        let status = unsafe {
            let status = sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            status
        };
        self.settle(state, "graph", status)?;
        Ok(ready)
    }
}
