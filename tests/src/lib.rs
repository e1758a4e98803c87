//! Whole-system tests of postrider.
