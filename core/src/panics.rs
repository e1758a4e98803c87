//! The panic guard: code of the user's runs inside it, and so does the drop of what it made.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs code of the user's.
///
/// # Errors
/// The text of its panic.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(panic_text)
}

/// Drops a value whose `Drop` may panic.
pub(crate) fn drop_caught<T>(value: T) {
    // the panic hook has reported it already
    let _ = caught(|| drop(value));
}

/// The text of a panic.
pub(crate) fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(|s| &**s));
    let text = text.unwrap_or("no message").to_owned();
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        // the payload's own drop panicked; whether that of the second one does is not tried
        std::mem::forget(second);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::panic_any(Bomb2);
        }
    }

    struct Bomb2;

    impl Drop for Bomb2 {
        fn drop(&mut self) {
            panic!("again");
        }
    }

    #[test]
    fn a_payload_whose_drop_panics_is_caught_as_well() {
        assert_eq!(caught(|| 1), Ok(1));
        assert_eq!(caught(|| panic!("on {}", "purpose")), Err::<(), _>("on purpose".to_owned()));
        assert_eq!(caught(|| std::panic::panic_any(Bomb)), Err::<(), _>("no message".to_owned()));
        drop_caught(Bomb);
    }
}
