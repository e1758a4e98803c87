//! Room that several bodies share.

use bytes::{Bytes, BytesMut};

/// Room for several small bodies, so that not each of them is two allocations: its bytes, and its count once it is cloned. What is kept
/// of one keeps all of it, 8 KiB, which others fill as well; a body of more than 1 KiB has its own.
///
/// ```
/// use postrider_core::Chunk;
/// let mut chunk = Chunk::default();
/// assert_eq!((chunk.copy(b"one"), chunk.copy(b"two")), ("one".into(), "two".into()));
/// ```
#[derive(Debug, Default)]
pub struct Chunk(BytesMut);

impl Chunk {
    /// Bytes of one.
    const SIZE: usize = 8 * 1024;
    /// The largest body that goes into one.
    const SMALL: usize = Self::SIZE / 8;

    /// A copy of the body.
    pub fn copy(&mut self, body: &[u8]) -> Bytes {
        if body.is_empty() {
            return Bytes::new();
        }
        if body.len() > Self::SMALL {
            return Bytes::copy_from_slice(body);
        }
        if self.0.capacity() < body.len() {
            self.0 = BytesMut::with_capacity(Self::SIZE);
        }
        self.0.extend_from_slice(body);
        self.0.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_bodies_share_a_chunk_and_large_ones_are_alone() {
        let mut chunk = Chunk::default();
        let bodies: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n; usize::from(n) * 30]).collect();
        let copies: Vec<_> = bodies.iter().map(|body| chunk.copy(body)).collect();
        assert!(copies.iter().zip(&bodies).all(|(copy, body)| copy == body));
        let (one, next) = (chunk.copy(&[1; Chunk::SMALL]), chunk.copy(&[2; 4]));
        assert_eq!(one.as_ptr().wrapping_add(Chunk::SMALL), next.as_ptr());
        let (large, after) = (chunk.copy(&[3; Chunk::SMALL + 1]), chunk.copy(&[4; 4]));
        assert_eq!(next.as_ptr().wrapping_add(4), after.as_ptr());
        assert!(large.is_unique() && chunk.copy(b"").is_empty());
    }
}
