//! Gathering a tensor that is not stored row by row.
//!
//! A torch tensor is a window on a storage: element (i₀, i₁, …) lies at Σ iₖ·strideₖ elements from
//! its start. A transposed or expanded tensor saved by torch keeps its strides. Readers want the
//! elements in row-major order, from any byte to any byte. The wanted range is cut into boxes
//! (at most two a dimension), and each box is read along its axis of smallest stride, so that a
//! transposed matrix read in chunks of many rows costs one read a column and not one an element.

use std::io;

use crate::source::ReadAt;

/// Most bytes read at once to pick single elements from.
const WINDOW: u64 = 1 << 20;

/// Where the elements of a tensor are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strided {
    /// Offset in the file of element (0, 0, …).
    pub(crate) offset: u64,
    /// Bytes of an element.
    pub(crate) item: usize,
    /// Extents, outermost first.
    pub(crate) shape: Vec<usize>,
    /// Distance, in elements, between neighbours along each dimension.
    pub(crate) strides: Vec<usize>,
}

/// One dimension of a box: extent, stride in the storage, stride in the output.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    from: usize,
    to: usize,
}

/// Whether strides are those of row-major order, so that no gathering is needed. Dimensions of
/// extent 1 may have any stride, and so may all of an empty tensor.
pub(crate) fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&extent, &stride)| {
        let fits = extent == 1 || stride == expected;
        expected *= extent;
        fits
    })
}

impl Strided {
    /// Elements from the first to one past the last in the storage, or `None` on overflow; 0 if
    /// the tensor is empty.
    pub(crate) fn span(&self) -> Option<u64> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape
            .iter()
            .zip(&self.strides)
            .try_fold(1_u64, |end, (&extent, &stride)| {
                end.checked_add((extent as u64 - 1).checked_mul(stride as u64)?)
            })
    }

    /// Fills `out` with the bytes of the row-major tensor from `byte` on. The range must lie inside
    /// the tensor.
    pub(crate) fn read<R: ReadAt + ?Sized>(
        &self,
        source: &R,
        byte: u64,
        out: &mut [u8],
    ) -> io::Result<()> {
        // The first and last element may be wanted in part; whole elements are gathered.
        let item = self.item as u64;
        let first = byte / item;
        let end = (byte + out.len() as u64).div_ceil(item);
        let skip = (byte % item) as usize;
        if skip == 0 && out.len().is_multiple_of(self.item) {
            return self.range(source, 0, self.offset, first as usize, end as usize, out);
        }
        let mut whole = vec![0; ((end - first) * item) as usize];
        self.range(
            source,
            0,
            self.offset,
            first as usize,
            end as usize,
            &mut whole,
        )?;
        out.copy_from_slice(&whole[skip..skip + out.len()]);
        Ok(())
    }

    /// Elements `first..end`, counted row-major, of the subtensor of dimensions `dim..` at `base`.
    fn range<R: ReadAt + ?Sized>(
        &self,
        source: &R,
        dim: usize,
        base: u64,
        first: usize,
        end: usize,
        out: &mut [u8],
    ) -> io::Result<()> {
        if first >= end {
            return Ok(());
        }
        let inner: usize = self.shape[(dim + 1).min(self.shape.len())..]
            .iter()
            .product();
        let Some(&stride) = self.strides.get(dim) else {
            return source.read_exact_at(out, base);
        };
        let row = |index: usize| base + (index * stride * self.item) as u64;
        let (head, tail) = (first.div_ceil(inner), end / inner);
        if head > tail {
            let index = first / inner;
            let start = index * inner;
            return self.range(source, dim + 1, row(index), first - start, end - start, out);
        }
        let (before, rest) = out.split_at_mut((head * inner - first) * self.item);
        let (body, after) = rest.split_at_mut((tail - head) * inner * self.item);
        if !before.is_empty() {
            self.range(
                source,
                dim + 1,
                row(head - 1),
                inner - before.len() / self.item,
                inner,
                before,
            )?;
        }
        if !body.is_empty() {
            self.block(source, dim, row(head), tail - head, body)?;
        }
        if !after.is_empty() {
            self.range(source, dim + 1, row(tail), 0, end - tail * inner, after)?;
        }
        Ok(())
    }

    /// A box: `rows` of dimension `dim`, all of the dimensions below.
    fn block<R: ReadAt + ?Sized>(
        &self,
        source: &R,
        dim: usize,
        base: u64,
        rows: usize,
        out: &mut [u8],
    ) -> io::Result<()> {
        let mut axes = Vec::with_capacity(self.shape.len() - dim);
        let mut to = 1;
        for k in (dim..self.shape.len()).rev() {
            let extent = if k == dim { rows } else { self.shape[k] };
            axes.push(Axis {
                extent,
                from: self.strides[k],
                to,
            });
            to *= extent;
        }
        axes.retain(|axis| axis.extent != 1);
        // Outermost first: repeated axes (stride 0), then from the widest stride to the narrowest.
        axes.sort_by_key(|axis| (axis.from != 0, std::cmp::Reverse(axis.from)));
        self.walk(source, &axes, base, 0, out, &mut Vec::new())
    }

    fn walk<R: ReadAt + ?Sized>(
        &self,
        source: &R,
        axes: &[Axis],
        base: u64,
        to: usize,
        out: &mut [u8],
        window: &mut Vec<u8>,
    ) -> io::Result<()> {
        let item = self.item;
        match axes {
            [] => source.read_exact_at(&mut out[to * item..(to + 1) * item], base),
            [run] => self.run(source, *run, base, to, out, window),
            [outer, inner @ ..] => (0..outer.extent).try_for_each(|i| {
                let from = base + (i * outer.from * item) as u64;
                self.walk(source, inner, from, to + i * outer.to, out, window)
            }),
        }
    }

    /// One run along the innermost axis, read window by window and scattered.
    fn run<R: ReadAt + ?Sized>(
        &self,
        source: &R,
        run: Axis,
        base: u64,
        to: usize,
        out: &mut [u8],
        window: &mut Vec<u8>,
    ) -> io::Result<()> {
        let item = self.item;
        if run.from == 1 && run.to == 1 {
            return source.read_exact_at(&mut out[to * item..(to + run.extent) * item], base);
        }
        let step = (run.from * item) as u64;
        let at_once = WINDOW
            .checked_div(step)
            .map_or(run.extent, |count| count.max(1) as usize);
        let mut i = 0;
        while i < run.extent {
            let count = at_once.min(run.extent - i);
            window.resize((count - 1) * step as usize + item, 0);
            source.read_exact_at(window, base + i as u64 * step)?;
            for j in 0..count {
                let (from, to) = (j * step as usize, (to + (i + j) * run.to) * item);
                out[to..to + item].copy_from_slice(&window[from..from + item]);
            }
            i += count;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Element by element, as the definition says.
    fn naive(tensor: &Strided, storage: &[u8]) -> Vec<u8> {
        let count: usize = tensor.shape.iter().product();
        (0..count)
            .flat_map(|linear| {
                let mut rest = linear;
                let mut at = tensor.offset as usize;
                for (&extent, &stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
                    at += rest % extent * stride * tensor.item;
                    rest /= extent;
                }
                storage[at..at + tensor.item].to_vec()
            })
            .collect()
    }

    #[test]
    fn contiguity() {
        assert!(is_contiguous(&[2, 3], &[3, 1]));
        assert!(is_contiguous(&[2, 1, 3], &[3, 99, 1]));
        assert!(is_contiguous(&[], &[]));
        assert!(is_contiguous(&[0, 3], &[1, 7]));
        assert!(!is_contiguous(&[2, 3], &[1, 2]));
        assert!(!is_contiguous(&[2, 3], &[4, 1]));
        assert!(!is_contiguous(&[2], &[0]));
    }

    #[test]
    fn a_transposed_matrix_costs_one_read_a_column() {
        struct Counting<'a>(&'a [u8], std::cell::Cell<usize>);
        impl ReadAt for Counting<'_> {
            fn size(&self) -> u64 {
                self.0.size()
            }
            fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
                self.1.set(self.1.get() + 1);
                self.0.read_exact_at(buf, offset)
            }
        }
        let storage: Vec<u8> = (0..200).collect();
        let tensor = Strided {
            offset: 0,
            item: 2,
            shape: vec![20, 5],
            strides: vec![1, 20],
        };
        let source = Counting(&storage, std::cell::Cell::new(0));
        let mut out = vec![0; 200];
        tensor.read(&source, 0, &mut out).unwrap();
        assert_eq!(out, naive(&tensor, &storage));
        assert_eq!(source.1.get(), 5);
    }

    #[test]
    fn a_run_wider_than_the_window_is_read_in_pieces() {
        let stride = WINDOW as usize / 3;
        let storage: Vec<u8> = (0..=stride * 9).map(|i| (i / stride) as u8).collect();
        let tensor = Strided {
            offset: 0,
            item: 1,
            shape: vec![10],
            strides: vec![stride],
        };
        let mut out = vec![0; 10];
        tensor.read(&storage[..], 0, &mut out).unwrap();
        assert_eq!(out, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    proptest! {
        #[test]
        fn any_range_of_any_strided_tensor_is_gathered(
            dims in prop::collection::vec((1_usize..5, 0_usize..7), 0..5),
            item in prop::sample::select(vec![1_usize, 2, 8]),
            offset in 0_u64..5,
            range in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = dims.into_iter().unzip();
            let tensor = Strided { offset, item, shape, strides };
            let len = offset + tensor.span().unwrap() * item as u64;
            let storage: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let expected = naive(&tensor, &storage);
            let (a, b) = (range.0.index(expected.len() + 1), range.1.index(expected.len() + 1));
            let (a, b) = (a.min(b), a.max(b));
            let mut out = vec![0; b - a];
            tensor.read(&storage[..], a as u64, &mut out).unwrap();
            prop_assert_eq!(&out, &expected[a..b]);
        }
    }
}
