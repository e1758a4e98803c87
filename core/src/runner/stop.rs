//! The order to stop, as a service gives it and its routes see it.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

/// When the service stops: the order to, and by when everything must be over.
#[derive(Clone, Debug)]
pub(crate) struct StopOrder {
    pub(crate) token: CancellationToken,
    pub(crate) deadline: Arc<OnceLock<Instant>>,
}

impl StopOrder {
    /// Whether the service stops. Whoever sees that by the token sees it here, too.
    pub(crate) fn is_given(&self) -> bool {
        self.deadline.get().is_some()
    }
}
