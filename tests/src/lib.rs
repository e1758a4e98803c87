//! Whole-system tests of postrider: histories of what processes did, the checker that compares them, and the fault run.
//! Tests of one crate stand in that crate.

pub mod checker;
pub mod faults;
pub mod history;
