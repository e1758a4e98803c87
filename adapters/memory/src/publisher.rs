//! Publishing into the embedded broker: appended is confirmed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider_core::{
    Adapter, Confirm, DrainReport, Env, Envelope, Error, ErrorKind, Outgoing, PublishError, Publisher,
    Receipt, check_address, check_size, fit_copy,
};

use crate::broker::{MemoryBroker, SEND_DEADLINE};
use crate::channel::{Appended, Channel};

impl Publisher for MemoryBroker {
    fn env(&self) -> &Env {
        self.environment()
    }

    async fn send(&self, mut message: Outgoing<'_>) -> Confirm {
        let fault = self.faults().map(crate::FaultPlan::roll).unwrap_or_default();
        if let Some(delay) = fault.delay {
            self.environment().sleep(delay).await;
        }
        if fault.disconnected {
            self.disconnect();
        }
        if fault.fails || self.take_failure() {
            let error = Error::new(ErrorKind::Broker, "publish", "the fault plan refuses this message")
                .temporary(true);
            return self.count(Confirm::failed(error), Outcome::Failed);
        }
        let channel = match self.checked(&mut message) {
            Ok(channel) => channel,
            Err(error) => return self.count(Confirm::failed(error), Outcome::Failed),
        };
        let deadline = message.options.deadline.unwrap_or(SEND_DEADLINE);
        let to = message.address.group().map(|group| (group, message.options.delay));
        let double = fault.duplicated.then(|| message.envelope.clone());
        let position = match self.append_to(&channel, to, message.envelope, deadline).await {
            Ok(position) => position,
            Err(refused) => return refused,
        };
        if let Some(envelope) = double {
            // the message is stored, whether or not there is room for it twice
            let _ = self.append_to(&channel, to, envelope, deadline).await;
        }
        if fault.lost {
            let error = Error::new(ErrorKind::Timeout, "publish", "the fault plan loses this confirm");
            return self.count(Confirm::ready(Err(PublishError::Unknown(error))), Outcome::Unknown);
        }
        self.confirmed(position)
    }

    fn try_send<'a>(&self, mut message: Outgoing<'a>) -> Result<Confirm, Outgoing<'a>> {
        if self.faults().is_some() || self.has_failures() || message.address.group().is_some() {
            return Err(message);
        }
        let channel = match self.checked(&mut message) {
            Ok(channel) => channel,
            Err(error) => return Ok(self.count(Confirm::failed(error), Outcome::Failed)),
        };
        match channel.append(message.envelope, None) {
            Appended::At(position) => Ok(self.confirmed(position)),
            Appended::Closed => Ok(self.count(Confirm::failed(closed("publish")), Outcome::Failed)),
            Appended::NoRoom(envelope) => {
                message.envelope = envelope;
                Err(message)
            }
        }
    }

    /// Every send has its outcome when it resolves, so there is nothing to wait for.
    async fn flush(&self) -> Result<(), PublishError> {
        Ok(())
    }

    async fn close(&self, _: Instant) -> DrainReport {
        self.end();
        self.drain_report()
    }
}

/// What a send came to, for the report.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Confirmed,
    Failed,
    Unknown,
}

impl MemoryBroker {
    /// The channel of what may be sent; of a copy, leaves out what has no room in the bound of a whole channel.
    fn checked(&self, message: &mut Outgoing<'_>) -> Result<Arc<Channel>, Error> {
        if let Some(read) = message.envelope.read_structured() {
            message.envelope = read;
        }
        let bound = self.config().bound_of(message.address.channel());
        let most = bound.bytes.saturating_sub(message.envelope.payload().len());
        fit_copy(message, most, |envelope| envelope.headers().byte_len())?;
        let message = &*message;
        let Outgoing { address, envelope, .. } = message;
        self.check_open("publish")?;
        check_address(message, self.capabilities())?;
        check_size(envelope, self.capabilities().usable_payload())?;
        if envelope.byte_len() > bound.bytes {
            let message = "the message is larger than the whole channel may be (`max_bytes`)";
            return Err(
                Error::new(ErrorKind::TooLarge, "publish", message).with("bytes", envelope.byte_len())
            );
        }
        let channel = self.channel(address.channel()).ok_or_else(|| {
            let message = "there is no such channel; start the router that reads it first, or declare it: `broker.declare(…)`";
            Error::new(ErrorKind::NotFound, "publish", message).with("channel", address.channel())
        })?;
        if let Some(group) = address.group().filter(|group| !channel.has_group(group)) {
            let message = "the channel has no such group; start the router that reads for it first";
            let error = Error::new(ErrorKind::NotFound, "publish", message);
            return Err(error.with("channel", address.channel()).with("group", group));
        }
        // a copy goes to a place of its own, such as the dead letters
        if self.config().require_readers && message.options.hop.is_none() && !channel.has_groups() {
            let message =
                "no group reads the channel; start the router that reads it (`require_readers` asks for one)";
            return Err(
                Error::new(ErrorKind::NotFound, "publish", message).with("channel", address.channel())
            );
        }
        Ok(channel)
    }

    /// Appends for everybody, or for one group, and then sees to it that its time comes.
    async fn append_to(
        &self,
        channel: &Arc<Channel>,
        to: Option<(&str, Option<Duration>)>,
        envelope: Envelope,
        deadline: Duration,
    ) -> Result<u64, Confirm> {
        let addressed = to.map(|(group, delay)| (group, delay.is_some()));
        let position = self.append(channel, addressed, envelope, deadline).await?;
        if let Some((group, Some(delay))) = to {
            let (channel, group) = (Arc::clone(channel), Arc::<str>::from(group));
            let sleep = self.environment().sleep(delay);
            self.timers().spawn(async move {
                sleep.await;
                channel.due(&group, position);
            });
        }
        Ok(position)
    }

    /// Appends, waiting for room as long as the deadline allows.
    async fn append(
        &self,
        channel: &Arc<Channel>,
        group: Option<(&str, bool)>,
        envelope: Envelope,
        deadline: Duration,
    ) -> Result<u64, Confirm> {
        let mut envelope = match channel.append_to(group, envelope, None) {
            Appended::At(position) => return Ok(position),
            Appended::Closed => return Err(self.count(Confirm::failed(closed("publish")), Outcome::Failed)),
            Appended::NoRoom(envelope) => envelope,
        };
        let (place, settled) = (Place::new(channel), channel.settled());
        let expired = self.environment().sleep(deadline);
        tokio::pin!(expired);
        loop {
            tokio::select! {
                biased;
                () = place.notify.notified() => {}
                () = &mut expired => {
                    return Err(self.count(Confirm::failed(stayed_full(channel, settled)), Outcome::Failed));
                }
            }
            envelope = match channel.append_to(group, envelope, Some(place.ticket)) {
                Appended::At(position) => return Ok(position),
                Appended::Closed => {
                    return Err(self.count(Confirm::failed(closed("publish")), Outcome::Failed));
                }
                Appended::NoRoom(envelope) => envelope,
            };
        }
    }

    fn confirmed(&self, position: u64) -> Confirm {
        self.count(Confirm::ready(Ok(Receipt::new(0, position))), Outcome::Confirmed)
    }
}

/// Why a message found no room; the channel's groups had acknowledged so many when it began to wait.
fn stayed_full(channel: &Channel, settled: u64) -> Error {
    let groups = channel.standing_still(settled);
    let message = if groups.is_empty() {
        "the channel stayed full until the deadline: its groups are slower than its publishers".to_owned()
    } else {
        format!(
            "the channel stayed full until the deadline, and {} acknowledged nothing meanwhile: if one of its handlers sent this, it fills the channel that it reads from, and waits for itself; let it send fewer messages at once, or to another channel, or give this one a larger bound (`MemoryConfig::channel`)",
            groups.join(", ")
        )
    };
    Error::new(ErrorKind::Timeout, "publish", message).with("channel", &channel.name)
}

pub(crate) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation, "the broker is closed; connect again")
}

/// A place in the queue for room; given up when dropped, so that a cancelled send holds nobody up.
struct Place<'a> {
    channel: &'a Channel,
    ticket: u64,
    notify: Arc<tokio::sync::Notify>,
}

impl<'a> Place<'a> {
    fn new(channel: &'a Channel) -> Self {
        let (ticket, notify) = channel.enter_room();
        // room may have come between the refusal and the place in the queue
        notify.notify_one();
        Self { channel, ticket, notify }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.channel.leave_room(self.ticket);
    }
}
