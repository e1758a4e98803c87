//! The same subjects under an allocator that counts. `postrider-bench` calls it for the column of allocations.

use std::alloc::System;
use std::process::ExitCode;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    postrider_bench::main(Some(|| {
        let stats = GLOBAL.stats();
        (stats.allocations + stats.reallocations) as u64
    }))
}
