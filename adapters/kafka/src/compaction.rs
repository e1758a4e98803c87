//! Whether a topic is compacted: then each of its messages needs a key, and the broker refuses one without a key together with all that are
//! sent in the same batch.

use std::time::Duration;

use postrider_core::Result;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};

use crate::connection::ClientLog;
use crate::error;

/// How long the request may take.
const REQUEST: Duration = Duration::from_secs(3);
/// The topic's property that says it.
const CLEANUP_POLICY: &str = "cleanup.policy";

/// Whether each message of the topic needs a key.
///
/// # Errors
/// The broker doesn't answer, or doesn't show the topic's configuration to this user.
pub(crate) async fn is_compacted(config: ClientConfig, topic: &str) -> Result<bool> {
    let admin: AdminClient<ClientLog> = config.create_with_context(ClientLog).map_err(error::creation)?;
    let options = AdminOptions::new().request_timeout(Some(REQUEST));
    let answers = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await;
    // ends with a join of the client's thread, which may take a moment
    tokio::task::spawn_blocking(move || drop(admin));
    let answers = answers.map_err(|e| error::client("publish", e).with("topic", topic))?;
    let found = match answers.into_iter().next() {
        Some(Ok(found)) => found,
        Some(Err(code)) => return Err(error::code("publish", code).with("topic", topic)),
        None => return Ok(false),
    };
    Ok(found.get(CLEANUP_POLICY).and_then(|entry| entry.value.as_deref()).is_some_and(compacts))
}

/// Whether a policy, or a list of policies, compacts.
fn compacts(policy: &str) -> bool {
    policy.split(',').any(|policy| policy.trim() == "compact")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_several_policies_may_compact() {
        assert!(compacts("compact") && compacts("delete,compact") && compacts("compact, delete"));
        assert!(!compacts("delete") && !compacts(""));
    }
}
