//! One way to write message handlers.
