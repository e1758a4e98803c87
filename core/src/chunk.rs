//! Room that bodies and headers share, and that is used again.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// A copy of the bytes, in room that other copies made on this thread share: so not each is two allocations, its bytes, and its count
/// once it is cloned. What is kept of it keeps all of that room, 8 KiB; more than 1 KiB gets room of its own.
///
/// Room is used again when nothing is left of what was copied into it, so that it needn't be freed, which is mostly on another thread
/// and has the two wait for each other. Each thread keeps 1 MiB of it at most, beside
/// the 8 KiB that it fills; what is copied while all of that is in use has room that is made and freed.
///
/// ```
/// assert_eq!(postrider_core::chunked(b"one"), "one");
/// ```
pub fn chunked(bytes: &[u8]) -> Bytes {
    joined([bytes])
}

/// The same of several pieces, which become one.
pub(crate) fn joined<const N: usize>(pieces: [&[u8]; N]) -> Bytes {
    let copied = CHUNKS.try_with(|chunks| chunks.borrow_mut().joined(&pieces));
    // the thread is at its end
    copied.unwrap_or_else(|_| pieces.concat().into())
}

thread_local! {
    static CHUNKS: RefCell<Chunks> = RefCell::default();
}

#[derive(Default)]
struct Chunks {
    /// Which is being filled.
    open: Option<BytesMut>,
    /// Those that were filled before, from the oldest on.
    full: VecDeque<BytesMut>,
}

impl Chunks {
    /// Bytes of a chunk.
    const SIZE: usize = 8 * 1024;
    /// The most that goes into one.
    const SMALL: usize = Self::SIZE / 8;
    /// How many a thread keeps.
    const KEPT: usize = 128;

    fn joined(&mut self, pieces: &[&[u8]]) -> Bytes {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        if length == 0 {
            return Bytes::new();
        }
        if length > Self::SMALL {
            return pieces.concat().into();
        }
        let mut open = match self.open.take() {
            Some(open) if open.capacity() >= length => open,
            full => self.next(full),
        };
        for piece in pieces {
            open.extend_from_slice(piece);
        }
        let joined = open.split().freeze();
        self.open = Some(open);
        joined
    }

    /// The oldest chunk once more if nothing is left of what was in it, else a new one.
    fn next(&mut self, full: Option<BytesMut>) -> BytesMut {
        let oldest = self.full.pop_front();
        self.full.extend(full);
        if let Some(mut oldest) = oldest {
            if oldest.try_reclaim(Self::SIZE) {
                // more than twice as many as are in use would only be colder than need be
                let middle = self.full.len() / 2;
                if middle > 0 && self.full.get_mut(middle).is_some_and(|chunk| chunk.try_reclaim(Self::SIZE))
                {
                    self.full.pop_front();
                }
                return oldest;
            }
            // of so many the oldest isn't waited for
            if self.full.len() < Self::KEPT {
                self.full.push_front(oldest);
            }
        }
        BytesMut::with_capacity(Self::SIZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills a chunk.
    fn fill(chunks: &mut Chunks) -> Vec<Bytes> {
        (0..8).map(|n| chunks.joined(&[&[n; Chunks::SMALL]])).collect()
    }

    #[test]
    fn what_is_small_shares_a_chunk_and_what_is_large_is_alone() {
        let bodies: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n; usize::from(n) * 30]).collect();
        let copies: Vec<_> = bodies.iter().map(|body| chunked(body)).collect();
        assert!(copies.iter().zip(&bodies).all(|(copy, body)| copy == body));
        let mut chunks = Chunks::default();
        let (one, next) = (chunks.joined(&[&[1; Chunks::SMALL]]), chunks.joined(&[&[2], &[3; 3]]));
        assert_eq!(one.as_ptr().wrapping_add(Chunks::SMALL), next.as_ptr());
        assert_eq!(&next[..], [2, 3, 3, 3]);
        let (large, after) = (chunks.joined(&[&[3; Chunks::SMALL], &[1]]), chunks.joined(&[&[4; 4]]));
        assert_eq!(next.as_ptr().wrapping_add(4), after.as_ptr());
        assert!(large.is_unique() && chunks.joined(&[b""]).is_empty());
    }

    #[test]
    fn a_chunk_is_filled_again_when_nothing_is_left_of_it() {
        let mut chunks = Chunks::default();
        let first = fill(&mut chunks);
        let (place, one) = (first[0].as_ptr(), first[3].clone());
        drop(first);
        let second = fill(&mut chunks);
        assert!(second.iter().all(|copy| copy.as_ptr() != place), "one is kept");
        drop(one);
        let third = fill(&mut chunks);
        assert_eq!(third[0].as_ptr(), place);
        let mut all = second.iter().chain(&third).zip((0..8).chain(0..8));
        assert!(all.all(|(copy, n)| copy[..] == [n; Chunks::SMALL]));
    }

    #[test]
    fn no_more_chunks_are_kept_than_the_bound() {
        let mut chunks = Chunks::default();
        let held: Vec<_> = (0..2 * Chunks::KEPT).map(|_| fill(&mut chunks)).collect();
        assert_eq!(chunks.full.len(), Chunks::KEPT);
        let room = chunks.full.iter().chain(&chunks.open).count() * Chunks::SIZE;
        assert!(room <= (1 << 20) + Chunks::SIZE && held.len() * Chunks::SIZE > room);
    }

    #[test]
    fn those_that_are_needed_no_more_are_given_up() {
        let mut chunks = Chunks::default();
        let held: Vec<_> = (0..100).map(|_| fill(&mut chunks)).collect();
        drop(held);
        (0..300).for_each(|_| drop(fill(&mut chunks)));
        assert!(chunks.full.len() <= 2, "{} are kept for one that is in use", chunks.full.len());
        let held: Vec<_> = (0..9).map(|_| fill(&mut chunks)).collect();
        assert!(chunks.full.len() >= 8);
        drop(held);
    }
}
