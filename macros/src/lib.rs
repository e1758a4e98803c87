//! The attribute and derive macros of postrider.
