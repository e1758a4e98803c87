//! The commands of postrider's developers.
