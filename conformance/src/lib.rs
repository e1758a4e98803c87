//! The conformance suite that every postrider adapter passes.
