//! Bugs that are put in on purpose, so that the checker is seen to catch them.

/// What the broker or the store does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A message that is delivered again is acknowledged and never seen.
    RedeliveryLost,
    /// A message is acknowledged when it is handed out.
    AckedTooEarly,
    /// Two messages of a key change places.
    OrderSwapped,
    /// What was handled is forgotten by the store.
    CompletedForgotten,
    /// Dead letters are confirmed and not stored.
    LetterConfirmedTooEarly,
    /// An output is confirmed and not stored.
    OutputConfirmedTooEarly,
    /// More is handed out than the window allows.
    WindowExceeded,
    /// A message appears that nobody sent.
    Phantom,
    /// A message that didn't fail is dead-lettered.
    LetterMadeUp,
    /// The runner isn't told the keys.
    KeyLost,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::RedeliveryLost,
        Self::AckedTooEarly,
        Self::OrderSwapped,
        Self::CompletedForgotten,
        Self::LetterConfirmedTooEarly,
        Self::OutputConfirmedTooEarly,
        Self::WindowExceeded,
        Self::Phantom,
        Self::LetterMadeUp,
        Self::KeyLost,
    ];
}
