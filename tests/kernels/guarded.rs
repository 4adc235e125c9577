//! Memory that ends where an inaccessible page begins: an access beyond the end is a fault, as it
//! is at the end of a mapped file.

use bytemuck::Pod;
use memmap2::MmapMut;

pub struct Guarded<T> {
    map: MmapMut,
    start: usize,
    len: usize,
    element: std::marker::PhantomData<T>,
}

const PAGE: usize = 4096;

impl<T: Pod> Guarded<T> {
    pub fn new(values: &[T]) -> Self {
        let bytes = size_of_val(values);
        let pages = bytes.next_multiple_of(PAGE);
        let mut map = MmapMut::map_anon(pages + PAGE).unwrap();
        let start = pages - bytes;
        map[start..pages].copy_from_slice(bytemuck::cast_slice(values));
        #[cfg(unix)]
        // SAFETY: the last page of our own mapping; nothing refers to it.
        let status =
            unsafe { libc::mprotect(map.as_mut_ptr().add(pages).cast(), PAGE, libc::PROT_NONE) };
        #[cfg(unix)]
        assert_eq!(status, 0);
        Guarded { map, start, len: values.len(), element: std::marker::PhantomData }
    }

    pub fn as_ptr<U>(&self) -> *const U {
        self.map[self.start..].as_ptr().cast()
    }

    pub fn as_mut_ptr<U>(&mut self) -> *mut U {
        self.map[self.start..].as_mut_ptr().cast()
    }

    pub fn values(&self) -> Vec<T> {
        let bytes = &self.map[self.start..self.start + self.len * size_of::<T>()];
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }
}
