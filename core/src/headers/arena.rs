//! The bytes in which headers are kept: where each stands, and the room that they are written into.

/// What an arena holds: bit 0 for user headers, and one for each attribute.
pub(super) type Contents = u32;
pub(super) const USER: Contents = 1;
pub(super) const CONTENTS: usize = size_of::<Contents>();

/// Kind, length of the name, length of the value.
pub(super) const HEAD: usize = 7;

/// Bytes being written, on the stack as long as they are few. What is written is never moved within, so a write is a copy and no more.
#[derive(Clone)]
pub(super) struct Arena {
    few: [u8; Self::FEW],
    length: usize,
    /// All of them, once they are more than that.
    many: Vec<u8>,
}

impl Arena {
    pub(super) const FEW: usize = 256;

    /// The next `count` bytes, to be written.
    pub(super) fn grow(&mut self, count: usize) -> &mut [u8] {
        let from = self.length;
        self.length += count;
        if self.length <= Self::FEW {
            return &mut self.few[from..self.length];
        }
        if self.many.is_empty() {
            // most that outgrow the stack don't outgrow this
            self.many.reserve(4 * Self::FEW);
            self.many.extend_from_slice(&self.few[..from]);
        }
        self.many.resize(self.length, 0);
        &mut self.many[from..]
    }

    pub(super) fn written(&self) -> &[u8] {
        if self.length <= Self::FEW { &self.few[..self.length] } else { &self.many }
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self { few: [0; Self::FEW], length: 0, many: Vec::new() }
    }
}

pub(super) const fn is_attribute(name: &[u8]) -> bool {
    matches!(name, [b, ..] if *b < 0x20)
}

pub(super) fn entries(arena: &[u8]) -> impl Iterator<Item = (&[u8], u8, &[u8])> {
    let mut rest = arena;
    std::iter::from_fn(move || {
        let [kind, n0, n1, v0, v1, v2, v3, tail @ ..] = rest else {
            return None;
        };
        let (name, tail) = tail.split_at_checked(u16::from_le_bytes([*n0, *n1]) as usize)?;
        let (value, tail) = tail.split_at_checked(u32::from_le_bytes([*v0, *v1, *v2, *v3]) as usize)?;
        rest = tail;
        Some((name, *kind, value))
    })
}
