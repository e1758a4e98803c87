//! The program that libFuzzer drives: one target of the library, named by `POSTRIDER_FUZZ_TARGET`. `cargo xtask fuzz` builds it with
//! the compiler's coverage counters and runs it; built without, it only says so.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod driven {
    #![allow(unsafe_code, reason = "libFuzzer finds its function by a name that isn't mangled")]

    use std::sync::LazyLock;

    static TARGET: LazyLock<postrider_fuzz::Target> = LazyLock::new(|| {
        let name = std::env::var("POSTRIDER_FUZZ_TARGET").unwrap_or_default();
        postrider_fuzz::target(&name)
            .unwrap_or_else(|| panic!("POSTRIDER_FUZZ_TARGET names no target: `{name}`"))
    });

    libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
}

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("built without coverage counters; use `cargo xtask fuzz`");
}
