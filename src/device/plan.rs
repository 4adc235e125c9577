//! Launches written down instead of run: what a model would ask of a card that is not there.

use super::{Chip, Cost, Geometry, Kernel};
use crate::DType;
use std::cell::RefCell;

/// One launch of a planning stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub kernel: &'static str,
    /// Its name in the module.
    pub entry: String,
    pub grid: [u32; 3],
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared: u32,
    pub cost: Cost,
}

pub(super) struct Plan {
    chip: Chip,
    launches: RefCell<Vec<Planned>>,
}

impl Plan {
    pub(super) fn new(chip: Chip) -> Self {
        Plan { chip, launches: RefCell::default() }
    }

    pub(super) fn capability(&self) -> u32 {
        self.chip.capability
    }

    pub(super) fn add<P>(&self, kernel: &Kernel<P>, dtype: DType, params: &P) {
        let geometry = (kernel.geometry)(params, dtype, &self.chip);
        if geometry.is_empty() {
            return;
        }
        let (entry, cost) = (geometry.entry(kernel.name, dtype), (kernel.cost)(params, dtype));
        let Geometry { grid, threads, shared, .. } = geometry;
        let planned = Planned { kernel: kernel.name, entry, grid, threads, shared, cost };
        self.launches.borrow_mut().push(planned);
    }

    pub(super) fn take(&self) -> Vec<Planned> {
        self.launches.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Stream;

    #[test]
    fn a_planning_stream_runs_nothing() {
        let kernel = Kernel::<i64> {
            name: "count",
            twins: &[(DType::BF16, |_, _| panic!("it ran"))],
            geometry: |n, _, chip| Geometry::linear(*n as u32, chip.capability),
            cost: |n, _| Cost { bytes: *n as f64, flops: 0.0 },
            accounting: 0,
        };
        let stream = Stream::planning(Chip::H200);
        // SAFETY: the params have no pointers.
        unsafe { stream.launch(&kernel, DType::BF16, &7) }.unwrap();
        let planned = stream.planned();
        assert_eq!((planned[0].grid, planned[0].threads), ([7, 1, 1], 90));
        assert_eq!((planned[0].entry.as_str(), planned[0].cost.bytes), ("count_bf16", 7.0));
        assert!(stream.planned().is_empty() && Stream::host(1).planned().is_empty());
    }
}
