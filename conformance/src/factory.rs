//! What an adapter's author gives the suite.

use std::sync::Arc;
use std::time::Duration;

use postrider_core::{BoxFuture, Broker, Bytes};

/// How a case wants its broker connected. Every field has a value that any adapter can start from.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Settings {
    /// Keeps cases apart: the same name reaches the same channels again.
    pub tenant: String,
    /// After how long without a sign of life a claim ends; the adapter's default if not set.
    pub claim_timeout: Option<Duration>,
    /// Whether an unanswered publish is sent again.
    pub resend: bool,
}

/// What a case wants to have deleted behind its clients' backs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Doomed<'a> {
    /// A channel, with all that is in it.
    Channel(&'a str),
    /// Of a channel, a group's place.
    Group(&'a str, &'a str),
}

/// Makes brokers for cases.
pub trait Factory: Send + Sync + 'static {
    /// The adapter's name, as in the table of results.
    fn adapter(&self) -> &'static str;

    /// The version or mode that is tested.
    fn variant(&self) -> &'static str {
        "default"
    }

    /// How many partitions a channel has, where they are the channel's, so that a group may ask for any number up to that; `None`
    /// where they are the group's own.
    fn channel_partitions(&self) -> Option<u32> {
        None
    }

    /// Connects. Two connects with one tenant reach the same channels; an embedded broker answers the same broker again.
    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker>;

    /// Writes a record as a foreign producer would: without any of our attributes, with these headers.
    fn write_foreign<'a>(
        &'a self,
        settings: &'a Settings,
        channel: &'a str,
        headers: &'a [(&'a str, &'a str)],
        body: Bytes,
    ) -> BoxFuture<'a, ()>;

    /// How many bytes of headers, names and values, a foreign producer can give a message at least; nearly all that the broker takes.
    fn foreign_header_bytes(&self) -> usize {
        60 * 1024
    }

    /// Deletes at the broker; `false` where that can't be done.
    fn delete<'a>(&'a self, settings: &'a Settings, what: Doomed<'a>) -> BoxFuture<'a, bool> {
        let _ = (settings, what);
        Box::pin(async { false })
    }

    /// Removes the oldest `count` messages of each partition of a channel, as retention would; `false` where that can't be done.
    fn retain_from<'a>(
        &'a self,
        settings: &'a Settings,
        channel: &'a str,
        count: u64,
    ) -> BoxFuture<'a, bool> {
        let _ = (settings, channel, count);
        Box::pin(async { false })
    }

    /// Whether the broker has a name that lasts for a record that brings no id of its own.
    fn names_foreign_records(&self) -> bool {
        true
    }

    /// Headers and properties by which a foreign producer would have the broker act, on a channel that is new; with
    /// [`write_foreign`](Self::write_foreign) they are taken. A copy has each as `postrider-orig-NAME`.
    fn acting_headers(&self, settings: &Settings, channel: &str) -> Vec<(String, String)> {
        let _ = (settings, channel);
        Vec::new()
    }

    /// Has the broker itself give up on the one message that a group has to read, so that it goes where the broker puts such messages;
    /// `false` where it never does.
    fn give_up<'a>(
        &'a self,
        settings: &'a Settings,
        channel: &'a str,
        group: &'a str,
    ) -> BoxFuture<'a, bool> {
        let _ = (settings, channel, group);
        Box::pin(async { false })
    }

    /// Whether processes share it: not so where it lives in one.
    fn has_processes(&self) -> bool {
        true
    }

    /// A broker of the case's own that can be killed, paused and cut off; `None` where there is none.
    fn controls(&self) -> BoxFuture<'_, Option<Arc<dyn Controls>>> {
        Box::pin(async { None })
    }

    /// A URL where nobody listens, with a password in it, and how to connect to it; `None` where there is no such thing.
    fn connect_to_nothing(&self) -> Option<BoxFuture<'_, postrider_core::Error>> {
        None
    }

    /// A broker of the case's own that knows who may connect; `None` where there is none.
    fn revocable(&self) -> BoxFuture<'_, Option<Arc<dyn Revocable>>> {
        Box::pin(async { None })
    }

    /// Connects with credentials that are wrong; `None` where there are none.
    fn wrong_credentials(&self) -> BoxFuture<'_, Option<postrider_core::Error>> {
        Box::pin(async { None })
    }
}

/// A broker with an account whose password has `s3cret` in it.
pub trait Revocable: Send + Sync {
    /// Connects by that account.
    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker>;
    /// Closes the account; what is connected by it is cut off.
    fn revoke(&self) -> BoxFuture<'_, ()>;
    /// Opens it again.
    fn restore(&self) -> BoxFuture<'_, ()>;
}

/// A broker under the case's control, reached through a [`Proxy`](crate::proxy::Proxy).
pub trait Controls: Send + Sync {
    /// Connects through the proxy.
    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker>;
    /// The proxy between.
    fn proxy(&self) -> &crate::proxy::Proxy;
    /// Resolves when what was declared before survives a kill. (A broker may write down late what it has.)
    fn settled(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    /// SIGKILL.
    fn kill(&self) -> BoxFuture<'_, ()>;
    /// Starts it again on its data, and waits until it is ready.
    fn start(&self) -> BoxFuture<'_, ()>;
    /// SIGSTOP.
    fn pause(&self) -> BoxFuture<'_, ()>;
    /// SIGCONT.
    fn resume(&self) -> BoxFuture<'_, ()>;
    /// Raises or ends the alarm by which the broker takes no more messages; `false` where it has none.
    fn alarm(&self, raised: bool) -> BoxFuture<'_, bool> {
        let _ = raised;
        Box::pin(async { false })
    }
}
