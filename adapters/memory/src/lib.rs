//! The embedded broker of postrider.
