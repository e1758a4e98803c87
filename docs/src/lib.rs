//! The book of postrider, its code compiled.
