//! Shapes over buffers: row-major tensors, and views of them with an optional row stride.

use crate::device::{Buffer, Cells, Landing, Stream};
use crate::dtype::Real;
use crate::{DType, Error, Result};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Up to four sizes, last fastest. Copied freely; nothing is allocated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    sizes: [usize; 4],
    rank: usize,
}

impl Shape {
    /// # Panics
    /// If there are more than four sizes, which no tensor here has.
    pub const fn new(sizes: &[usize]) -> Self {
        assert!(sizes.len() <= 4);
        let (mut array, mut i) = ([1; 4], 0);
        while i < sizes.len() {
            array[i] = sizes[i];
            i += 1;
        }
        Shape { sizes: array, rank: sizes.len() }
    }

    pub fn sizes(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }

    /// The product of the sizes.
    pub fn elements(&self) -> usize {
        self.sizes().iter().product()
    }

    /// Size of the last dimension; 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.sizes().last().copied().unwrap_or(1)
    }

    /// Product of all sizes but the last.
    pub fn rows(&self) -> usize {
        self.sizes().split_last().map_or(1, |(_, rest)| rest.iter().product())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<_> = self.sizes().iter().map(usize::to_string).collect();
        write!(f, "({})", sizes.join(", "))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A dense tensor that owns a share of its buffer.
pub struct Tensor {
    buffer: Arc<Buffer>,
    offset: usize,
    dtype: DType,
    shape: Shape,
}

impl Tensor {
    /// `shape` elements of `dtype` from `offset` bytes into `buffer`.
    ///
    /// # Errors
    /// If they do not fit or are not aligned to the element size.
    pub(crate) fn new(
        buffer: Arc<Buffer>,
        offset: usize,
        dtype: DType,
        shape: Shape,
    ) -> Result<Self> {
        let end = shape
            .sizes()
            .iter()
            .try_fold(dtype.size(), |n, &s| n.checked_mul(s))
            .and_then(|bytes| bytes.checked_add(offset));
        if end.is_none_or(|end| end > buffer.len()) {
            let found = format!("{shape} {dtype} at {offset}");
            return Err(Error::invalid("tensor", format!("at most {} bytes", buffer.len()), found));
        }
        if !(buffer.ptr() as usize + offset).is_multiple_of(dtype.size()) {
            let expected = format!("{dtype} aligned to {} bytes", dtype.size());
            return Err(Error::invalid("tensor", expected, format!("offset {offset}")));
        }
        Ok(Tensor { buffer, offset, dtype, shape })
    }

    /// A zeroed tensor of its own.
    pub fn zeros(stream: &Stream, dtype: DType, shape: &[usize]) -> Result<Self> {
        let shape = Shape::new(shape);
        let buffer = stream.zeros(shape.elements() * dtype.size())?;
        Tensor::new(Arc::new(buffer), 0, dtype, shape)
    }

    /// A tensor of its own whose cells hold anything: for who writes all of them.
    pub fn room(stream: &Stream, dtype: DType, shape: &[usize]) -> Result<Self> {
        let shape = Shape::new(shape);
        let buffer = stream.room(shape.elements() * dtype.size())?;
        Tensor::new(Arc::new(buffer), 0, dtype, shape)
    }

    /// A tensor of its own holding `values`.
    pub fn upload<T: Element>(stream: &Stream, values: &[T], shape: &[usize]) -> Result<Self> {
        let mut tensor = Tensor::room(stream, T::DTYPE, shape)?;
        tensor.view_mut().write(values)?;
        Ok(tensor)
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }

    pub fn view(&self) -> View<'_> {
        View {
            // Bounds were checked when the tensor was made.
            ptr: self.buffer.ptr().wrapping_add(self.offset),
            dtype: self.dtype,
            shape: self.shape,
            stride: self.shape.cols(),
            buffer: &self.buffer,
        }
    }

    /// The same cells under another owner: whoever writes to them, both see it.
    pub(crate) fn share(&self) -> Self {
        let Tensor { buffer, offset, dtype, shape } = self;
        Tensor { buffer: buffer.clone(), offset: *offset, dtype: *dtype, shape: *shape }
    }

    /// Copies row `from` onto row `to`.
    ///
    /// # Errors
    /// If either is not a row of the tensor.
    pub fn copy_row(&mut self, from: usize, to: usize) -> Result<()> {
        let cols = self.shape.cols();
        let source = self.view().block(from..from + 1, 0..cols)?.cells();
        let target = self.view().block(to..to + 1, 0..cols)?.cells();
        if from == to { Ok(()) } else { copy_cells(&self.buffer, target, &self.buffer, source) }
    }

    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let View { ptr, dtype, shape, stride, buffer } = self.view();
        ViewMut { ptr, dtype, shape, stride, buffer }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor{} {}", self.shape, self.dtype)
    }
}

/// A Rust type with a dtype: what can be uploaded and downloaded.
pub trait Element: bytemuck::Pod {
    const DTYPE: DType;
}

impl<T: Real> Element for T {
    const DTYPE: DType = <T as Real>::DTYPE;
}
impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
impl Element for i64 {
    const DTYPE: DType = DType::I64;
}
impl Element for i8 {
    const DTYPE: DType = DType::I8;
}
impl Element for u8 {
    const DTYPE: DType = DType::U8;
}

/// Shared borrow of a tensor or of some of its rows and columns.
#[derive(Clone, Copy)]
pub struct View<'a> {
    ptr: *mut u8,
    dtype: DType,
    shape: Shape,
    stride: usize,
    buffer: &'a Buffer,
}

/// Exclusive borrow of a tensor or of some of its rows and columns.
pub struct ViewMut<'a> {
    ptr: *mut u8,
    dtype: DType,
    shape: Shape,
    stride: usize,
    /// Exclusive as far as the cells of the view go.
    buffer: &'a Buffer,
}

macro_rules! view_reads {
    () => {
        pub fn dtype(&self) -> DType {
            self.dtype
        }

        pub fn shape(&self) -> Shape {
            self.shape
        }

        /// Rows: all dimensions but the last, flattened.
        pub fn rows(&self) -> usize {
            self.shape.rows()
        }

        pub fn cols(&self) -> usize {
            self.shape.cols()
        }

        /// Elements between consecutive rows.
        pub fn stride(&self) -> usize {
            self.stride
        }

        /// Bytes that a kernel touches: the cells of the view, not the gaps between rows.
        pub fn bytes(&self) -> usize {
            self.shape.elements() * self.dtype.size()
        }

        fn cells(&self) -> Cells {
            let size = self.dtype.size();
            let (pitch, bytes) = (self.stride * size, self.cols() * size);
            Cells { at: self.ptr.expose_provenance(), pitch, rows: self.rows(), bytes }
        }

        fn narrowed(&self, rows: Range<usize>, cols: Range<usize>) -> Result<(*mut u8, Shape)> {
            let inside = rows.start <= rows.end
                && cols.start <= cols.end
                && rows.end <= self.rows()
                && cols.end <= self.cols();
            if !inside {
                let found = format!("rows {rows:?}, columns {cols:?}");
                return Err(Error::invalid("view", format!("a part of {}", self.shape), found));
            }
            let offset = (rows.start * self.stride + cols.start) * self.dtype.size();
            Ok((self.ptr.wrapping_add(offset), Shape::new(&[rows.len(), cols.len()])))
        }

        fn resized(&self, sizes: &[usize]) -> Result<Shape> {
            let shape = Shape::new(sizes);
            let has_gaps = self.stride != self.cols() && self.rows() > 1;
            if has_gaps || shape.elements() != self.shape.elements() {
                let expected = format!("as many cells without gaps as in {shape}");
                return Err(Error::invalid("view", expected, self.shape));
            }
            Ok(shape)
        }
    };
}

impl<'a> View<'a> {
    view_reads!();

    /// The address kernels read from.
    pub fn ptr<T>(&self) -> *const T {
        self.ptr.cast_const().cast()
    }

    /// A block of rows and columns, as a matrix.
    pub fn block(&self, rows: Range<usize>, cols: Range<usize>) -> Result<View<'a>> {
        let (ptr, shape) = self.narrowed(rows, cols)?;
        Ok(View { ptr, shape, ..*self })
    }

    /// The same cells in another shape.
    ///
    /// # Errors
    /// If there are gaps between rows, or the shape has another number of cells.
    pub fn shaped(self, sizes: &[usize]) -> Result<View<'a>> {
        let shape = self.resized(sizes)?;
        Ok(View { shape, stride: shape.cols(), ..self })
    }

    /// Copies the view out of the device as `T`.
    ///
    /// # Errors
    /// If the dtype is not `T`'s.
    pub fn read<T: Element>(&self) -> Result<Vec<T>> {
        expect_dtype("read", self.dtype, T::DTYPE)?;
        let mut out = vec![T::zeroed(); self.shape.elements()];
        copy_out(self.buffer, self.cells(), bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// Begins to copy the bytes of the cells out, as [`View::to_bytes`] does: what is launched
    /// later need not end before they are there.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has failed.
    pub fn begin_read(&self) -> Result<Landing> {
        begin_copy_out(self.buffer, self.cells())
    }

    /// Copies the bytes of the cells out of the device, row after row, whatever the dtype.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has failed.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.bytes()];
        copy_out(self.buffer, self.cells(), &mut out).map(|()| out)
    }

    /// Copies the view out of the device, widened to `f32`.
    ///
    /// # Errors
    /// If the dtype is not one that kernels compute with.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        fn widen<T: Real>(view: &View<'_>) -> Result<Vec<f32>> {
            Ok(view.read::<T>()?.into_iter().map(T::to_f32).collect())
        }
        match self.dtype {
            DType::F32 => self.read::<f32>(),
            DType::BF16 => widen::<half::bf16>(self),
            DType::F16 => widen::<half::f16>(self),
            other => Err(Error::invalid("read", "f32, bf16 or f16", other)),
        }
    }
}

impl<'a> ViewMut<'a> {
    view_reads!();

    /// The address kernels write to.
    pub fn ptr<T>(&mut self) -> *mut T {
        self.ptr.cast()
    }

    /// The same cells, shared for as long as this borrow lasts.
    pub fn as_view(&self) -> View<'_> {
        View {
            ptr: self.ptr,
            dtype: self.dtype,
            shape: self.shape,
            stride: self.stride,
            buffer: self.buffer,
        }
    }

    /// The same cells, exclusively, for as long as this borrow lasts.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { ..*self }
    }

    /// A block of rows and columns, as a matrix.
    pub fn block(self, rows: Range<usize>, cols: Range<usize>) -> Result<ViewMut<'a>> {
        let (ptr, shape) = self.narrowed(rows, cols)?;
        Ok(ViewMut { ptr, shape, ..self })
    }

    /// The same cells in another shape.
    ///
    /// # Errors
    /// As [`View::shaped`].
    pub fn shaped(self, sizes: &[usize]) -> Result<ViewMut<'a>> {
        let shape = self.resized(sizes)?;
        Ok(ViewMut { shape, stride: shape.cols(), ..self })
    }

    /// The columns before `at`, and the others: two matrices that share no cell.
    ///
    /// # Errors
    /// If there are no such columns.
    pub fn split_columns(self, at: usize) -> Result<(ViewMut<'a>, ViewMut<'a>)> {
        let (rows, cols) = (self.rows(), self.cols());
        let (ptr, first) = self.narrowed(0..rows, 0..at.min(cols))?;
        let (other, second) = self.narrowed(0..rows, at..cols)?;
        Ok((ViewMut { ptr, shape: first, ..self }, ViewMut { ptr: other, shape: second, ..self }))
    }

    /// Copies `values` in; there must be exactly one per cell.
    ///
    /// # Errors
    /// If the dtype is not `T`'s or the number of values differs.
    pub fn write<T: Element>(&mut self, values: &[T]) -> Result<()> {
        expect_dtype("write", self.dtype, T::DTYPE)?;
        if values.len() != self.shape.elements() {
            let found = format!("{} values", values.len());
            return Err(Error::invalid("write", self.shape, found));
        }
        copy_in(self.buffer, self.cells(), bytemuck::cast_slice(values))
    }

    /// Zeros in all cells, from the host: for a few of them.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn zero(&mut self) -> Result<()> {
        copy_in(self.buffer, self.cells(), &vec![0; self.bytes()])
    }

    /// Copies bytes in, row after row, as [`View::to_bytes`] gives them.
    ///
    /// # Errors
    /// If there are more or fewer than the cells have.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() != self.bytes() {
            let expected = format!("{} bytes of {} {}", self.bytes(), self.shape, self.dtype);
            return Err(Error::invalid("write", expected, bytes.len()));
        }
        copy_in(self.buffer, self.cells(), bytes)
    }

    /// Copies another view of the same shape and dtype in.
    ///
    /// # Errors
    /// If shape or dtype differ.
    pub fn copy_from(&mut self, source: View<'_>) -> Result<()> {
        expect_dtype("copy", source.dtype, self.dtype)?;
        if (source.rows(), source.cols()) != (self.rows(), self.cols()) {
            return Err(Error::invalid("copy", self.shape, source.shape));
        }
        copy_cells(self.buffer, self.cells(), source.buffer, source.cells())
    }
}

fn expect_dtype(who: &str, found: DType, expected: DType) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::invalid(who, expected, found)) }
}

#[allow(unsafe_code)]
fn copy_out(buffer: &Buffer, cells: Cells, out: &mut [u8]) -> Result<()> {
    // SAFETY: callers pass the cells of a view of this buffer, and as many bytes.
    unsafe { buffer.get(cells, out.as_mut_ptr()) }
}

#[allow(unsafe_code)]
fn begin_copy_out(buffer: &Buffer, cells: Cells) -> Result<Landing> {
    // SAFETY: callers pass the cells of a view of this buffer; what comes later is in the order of
    // its device.
    unsafe { buffer.begin_get(cells) }
}

#[allow(unsafe_code)]
fn copy_in(buffer: &Buffer, cells: Cells, bytes: &[u8]) -> Result<()> {
    // SAFETY: callers pass cells of this buffer that only they use, and as many bytes.
    unsafe { buffer.put(cells, bytes.as_ptr()) }
}

#[allow(unsafe_code)]
fn copy_cells(buffer: &Buffer, to: Cells, source: &Buffer, from: Cells) -> Result<()> {
    // SAFETY: callers pass cells of the same form, of two views that share none.
    unsafe { buffer.put_cells(to, source, from) }
}

/// One buffer from which a step takes its tensors. Nothing is freed before the whole arena is
/// reset.
pub struct Arena {
    buffer: Arc<Buffer>,
    used: usize,
}

impl Arena {
    /// Tensors start on cache lines.
    const ALIGN: usize = 64;

    pub fn new(stream: &Stream, bytes: usize) -> Result<Self> {
        Ok(Arena { buffer: Arc::new(stream.zeros(bytes)?), used: 0 })
    }

    /// Starts over with room for at least `bytes`; allocates only to grow.
    ///
    /// # Errors
    /// If a tensor of the last step is still alive.
    pub fn reset(&mut self, stream: &Stream, bytes: usize) -> Result<()> {
        if Arc::strong_count(&self.buffer) != 1 {
            let found = format!("{} tensors", Arc::strong_count(&self.buffer) - 1);
            return Err(Error::invalid("arena", "no tensor of the last step", found));
        }
        self.used = 0;
        if self.buffer.len() < bytes {
            self.buffer = Arc::new(stream.zeros(bytes)?);
        }
        Ok(())
    }

    /// The next tensor. Its cells hold whatever the last step left there.
    ///
    /// # Errors
    /// If the arena is too small; the message says by how much.
    pub fn take(&mut self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let tensor = Tensor::new(self.buffer.clone(), self.used, dtype, Shape::new(shape))?;
        self.used += tensor.bytes().next_multiple_of(Self::ALIGN);
        Ok(tensor)
    }

    /// The next tensor, holding `values`. Tensors put one after another reach a card in one copy.
    ///
    /// # Errors
    /// If the arena is too small.
    pub fn put<T: Element>(&mut self, values: &[T], shape: &[usize]) -> Result<Tensor> {
        let start = self.used;
        let mut tensor = self.take(T::DTYPE, shape)?;
        if self.used > self.buffer.len() || values.len() != tensor.shape.elements() {
            tensor.view_mut().write(values)?;
            return Ok(tensor);
        }
        // The gap before the next tensor too, so that nothing is between them.
        let mut bytes = Vec::with_capacity(self.used - start);
        bytes.extend_from_slice(bytemuck::cast_slice(values));
        bytes.resize(self.used - start, 0);
        let at = tensor.view().cells().at;
        let cells = Cells { at, pitch: bytes.len(), rows: 1, bytes: bytes.len() };
        copy_in(&self.buffer, cells, &bytes).map(|()| tensor)
    }

    /// Bytes that are still to be taken.
    pub fn remaining(&self) -> usize {
        self.buffer.len().saturating_sub(self.used)
    }

    /// Where it is, and where its last tensor ends.
    pub(crate) fn form(&self) -> [usize; 2] {
        [self.buffer.ptr().addr(), self.used]
    }

    /// Bytes that a tensor of this size takes from an arena.
    pub fn footprint(dtype: DType, elements: usize) -> usize {
        (elements * dtype.size()).next_multiple_of(Self::ALIGN)
    }

    /// Capacity, bytes.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_the_row_stride() {
        let stream = Stream::host(1);
        let values: Vec<i32> = (0..24).collect();
        let mut t = Tensor::upload(&stream, &values, &[2, 3, 4]).unwrap();
        let block = t.view().block(1..3, 1..3).unwrap();
        assert_eq!(block.read::<i32>().unwrap(), [5, 6, 9, 10]);
        t.view_mut().block(0..1, 0..2).unwrap().write(&[-1, -2]).unwrap();
        assert_eq!(&t.view().read::<i32>().unwrap()[..3], [-1, -2, 2]);
        assert!(t.view().block(0..7, 0..1).is_err() && t.view().block(0..1, 3..5).is_err());
        let shaped = t.view().shaped(&[2, 12]).unwrap().block(1..2, 0..2).unwrap();
        assert_eq!(shaped.read::<i32>().unwrap(), [12, 13]);
        assert!(t.view().shaped(&[5, 5]).is_err());
        let (left, right) = t.view_mut().split_columns(1).unwrap();
        assert_eq!((left.cols(), right.cols(), right.rows()), (1, 3, 6));
        assert_eq!(right.as_view().read::<i32>().unwrap()[..4], [-2, 2, 3, 5]);
        assert!(t.view_mut().split_columns(5).is_err());
        assert!(t.view().block(0..2, 0..2).unwrap().shaped(&[4]).is_err());
        assert!(t.view().read::<f32>().is_err());
        let bytes = t.view().block(1..3, 1..3).unwrap().to_bytes().unwrap();
        assert_eq!(bytes.len(), 16);
        let mut copy = Tensor::zeros(&stream, DType::I32, &[2, 2]).unwrap();
        copy.view_mut().write_bytes(&bytes).unwrap();
        assert_eq!(copy.view().read::<i32>().unwrap(), [5, 6, 9, 10]);
        assert!(copy.view_mut().write_bytes(&bytes[1..]).is_err());
    }

    #[test]
    fn arena_hands_out_disjoint_tensors_and_refuses_a_live_reset() {
        let stream = Stream::host(1);
        let mut arena = Arena::new(&stream, 256).unwrap();
        let mut a = arena.take(DType::F32, &[3]).unwrap();
        let mut b = arena.take(DType::F32, &[4]).unwrap();
        a.view_mut().write(&[1f32, 2.0, 3.0]).unwrap();
        b.view_mut().write(&[4f32; 4]).unwrap();
        assert_eq!(a.view().read::<f32>().unwrap(), [1.0, 2.0, 3.0]);
        assert!(arena.reset(&stream, 0).is_err());
        drop((a, b));
        arena.reset(&stream, 512).unwrap();
        assert_eq!(arena.bytes(), 512);
        assert!(arena.take(DType::F32, &[129]).is_err());
        assert!(arena.take(DType::F32, &[usize::MAX, 4]).is_err());
    }
}
