//! cuBLASLt beside our own products: loaded when it is asked for, never needed.
//!
//! It comes as a launch like any other, of `gemm`'s params, so that it is timed, named and captured
//! as one. What it would take for a shape is asked once.

use super::queue::Queue;
use crate::contracts::GemmParams;
use crate::device::Stream;
use crate::{DType, Error, Result};
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::{CUresult, CUstream};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

type Status<T> = std::result::Result<T, result::CublasError>;

/// The library, and what it knows of shapes.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    plans: Mutex<HashMap<Shape, Plan>>,
}

/// What a plan depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    dtype: DType,
    sizes: [i64; 6],
    c_is_f32: bool,
    has_bias: bool,
    /// Of all operands, bytes.
    alignment: u32,
}

/// How the library does products of one shape. Its matrices are column-major: it computes
/// C^T (n,m) = B A^T, of our B as (k,n) transposed, our A as (k,m).
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    /// Of B, of A, of C.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: Option<sys::cublasLtMatmulAlgo_t>,
}

// SAFETY: the library's handles may be used by any thread, one at a time: plans are behind a mutex.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl Queue {
    /// Loads the library.
    ///
    /// # Errors
    /// [`Error::Device`] if it is not there or does not start.
    pub(crate) fn open_cublaslt(&self) -> Result<()> {
        let _state = self.enter()?;
        // SAFETY: only looks for the library; cudarc's other calls panic when it is missing.
        if !unsafe { sys::is_culib_present() } {
            let message = "cuBLASLt is not on this machine: no libcublasLt.so or libcublasLt.so.12 \
                           where libraries are looked for; install it, or leave --gemm own";
            return Err(Error::device(&self.name, message));
        }
        let fail = |e| Error::device(&self.name, format!("cuBLASLt does not start: {e}"));
        let handle = result::create_handle().map_err(fail)?;
        // A second one is given back.
        let _ = self.cublaslt.set(CublasLt { handle, plans: Mutex::default() });
        Ok(())
    }
}

impl CublasLt {
    /// Puts the product into `stream`; `params` are the bytes of [`GemmParams`].
    pub(super) fn run(&self, dtype: DType, params: &[u8], stream: CUstream) -> CUresult {
        assert_eq!(params.len(), size_of::<GemmParams>());
        // SAFETY: a launch of `gemm` has these params.
        let p = unsafe { params.as_ptr().cast::<GemmParams>().read_unaligned() };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        match self.try_run(&mut plans, dtype, &p, stream) {
            Ok(()) => CUresult::CUDA_SUCCESS,
            Err(e) => in_words_of_the_driver(e.0),
        }
    }

    fn try_run(
        &self,
        plans: &mut HashMap<Shape, Plan>,
        dtype: DType,
        p: &GemmParams,
        stream: CUstream,
    ) -> Status<()> {
        let shape = Shape::of(p, dtype);
        if let std::collections::hash_map::Entry::Vacant(place) = plans.entry(shape) {
            place.insert(Plan::new(self.handle, shape)?);
        }
        let plan = &plans[&shape];
        if shape.has_bias {
            plan.set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                &p.bias,
            )?;
        }
        let (one, zero) = (1f32, 0f32);
        let beta = if p.residual.is_null() { zero } else { one };
        let residual = if p.residual.is_null() { p.c.cast_const() } else { p.residual };
        let algorithm = plan.algorithm.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let [b, a, c] = plan.layouts;
        // SAFETY: the wrapper in `ops` promises the operands; the plan is of their shapes. The
        // counters at the beginning of the workspace are not the library's.
        unsafe {
            result::matmul(
                self.handle,
                plan.product,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                p.b,
                b,
                p.a,
                a,
                residual,
                c,
                p.c,
                c,
                algorithm,
                p.workspace.wrapping_byte_add(COUNTERS),
                Stream::WORKSPACE - COUNTERS,
                stream.cast(),
            )
        }
    }
}

/// `CUBLAS_OP_T`, which cudarc has only with the whole of cuBLAS.
const TRANSPOSED: i32 = 1;
/// Bytes of counters at the beginning of the workspace.
const COUNTERS: usize = 64 << 10;

impl Shape {
    fn of(p: &GemmParams, dtype: DType) -> Shape {
        let size = dtype.size();
        let places = [p.a.addr(), p.b.addr(), p.c.addr(), p.residual.addr(), p.bias.addr()];
        let strides = [p.lda, p.ldb, p.ldc].map(|stride| stride as usize * size);
        let is_aligned = places.iter().chain(&strides).all(|n| n.is_multiple_of(16));
        Shape {
            dtype,
            sizes: [p.m, p.n, p.k, p.lda, p.ldb, p.ldc],
            c_is_f32: p.c_is_f32 != 0,
            has_bias: !p.bias.is_null(),
            alignment: if is_aligned { 16 } else { size as u32 },
        }
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, shape: Shape) -> Status<Plan> {
        use sys::cublasLtMatmulDescAttributes_t as Of;
        let [m, n, k, lda, ldb, ldc] = shape.sizes;
        let f32 = sys::cudaDataType::CUDA_R_32F;
        let t = match shape.dtype {
            DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
            DType::F16 => sys::cudaDataType::CUDA_R_16F,
            _ => f32,
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let mut plan = Plan {
            product: result::create_matmul_desc(compute, f32)?,
            layouts: [std::ptr::null_mut(); 3],
            algorithm: None,
        };
        let layouts =
            [(t, k, n, ldb), (t, k, m, lda), (if shape.c_is_f32 { f32 } else { t }, n, m, ldc)];
        for (place, (t, rows, cols, ld)) in plan.layouts.iter_mut().zip(layouts) {
            *place = result::create_matrix_layout(t, rows as u64, cols as u64, ld)?;
        }
        plan.set(Of::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if shape.has_bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            plan.set(Of::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        let wish = Wish(result::create_matmul_pref()?);
        use sys::cublasLtMatmulPreferenceAttributes_t as Pref;
        wish.set(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(Stream::WORKSPACE - COUNTERS))?;
        for operand in [
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            wish.set(operand, &shape.alignment)?;
        }
        let [b, a, c] = plan.layouts;
        // SAFETY: all of them were made above.
        let found =
            unsafe { result::get_matmul_algo_heuristic(handle, plan.product, b, a, c, c, wish.0)? };
        plan.algorithm = Some(found.algo);
        Ok(plan)
    }

    fn set<T>(&self, which: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Status<()> {
        let value: *const c_void = std::ptr::from_ref(value).cast();
        // SAFETY: the library copies the value, which has the attribute's type.
        unsafe { result::set_matmul_desc_attribute(self.product, which, value, size_of::<T>()) }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        unsafe {
            for layout in self.layouts.into_iter().filter(|l| !l.is_null()) {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.product);
        }
    }
}

/// What an algorithm is chosen by.
struct Wish(sys::cublasLtMatmulPreference_t);

impl Wish {
    fn set<T>(&self, which: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Status<()> {
        let value: *const c_void = std::ptr::from_ref(value).cast();
        // SAFETY: the library copies the value, which has the attribute's type.
        unsafe { result::set_matmul_pref_attribute(self.0, which, value, size_of::<T>()) }
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        // SAFETY: made by `Plan::new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: made by `open_cublaslt`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn in_words_of_the_driver(status: sys::cublasStatus_t) -> CUresult {
    match status {
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE => CUresult::CUDA_ERROR_INVALID_VALUE,
        sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED => CUresult::CUDA_ERROR_NOT_SUPPORTED,
        sys::cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED => CUresult::CUDA_ERROR_LAUNCH_FAILED,
        _ => CUresult::CUDA_ERROR_UNKNOWN,
    }
}
