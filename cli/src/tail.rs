//! `postrider tail`: follows a channel by a copy of its own, which no group notices.

use std::num::NonZeroUsize;

use clap::Args;
use postrider::{
    Capability, Channel, Claim, Delivery, Error, ErrorKind, Group, Order, Publisher, Scope, Settlement,
    Signal, Start, SubscribeOptions, Subscriber, Subscription,
};

use crate::connect::{Target, close};
use crate::end::{End, Failure};
use crate::interrupt::Interrupt;
use crate::message::{self, Shown};
use crate::output;
use crate::when::{When, when};

/// How many messages are taken at once.
const BATCH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);

/// Which channel, from where on.
#[derive(Args)]
#[command(after_help = "\
Examples:
  postrider tail orders
  postrider tail orders --from earliest --limit 10 --json
  postrider tail orders --from 10m
  postrider tail orders --from 2026-01-31T12:00:00Z

Groups keep their places. RabbitMQ keeps nothing for those who come later: there it begins with what is published from now on.")]
pub(crate) struct Options {
    /// The channel to follow
    channel: String,
    /// Where to begin: `earliest`, `latest`, a time, or how long ago
    #[arg(long, value_name = "WHERE", default_value = "latest", value_parser = from)]
    from: From,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy)]
enum From {
    Earliest,
    Latest,
    Time(When),
}

fn from(text: &str) -> Result<From, String> {
    match text {
        "earliest" => Ok(From::Earliest),
        "latest" => Ok(From::Latest),
        time => {
            when(time).map(From::Time).map_err(|why| format!("neither `earliest` nor `latest`, and {why}"))
        }
    }
}

/// Follows until Ctrl-C, or until there were enough.
pub(crate) async fn main(target: &Target, options: Options) -> Result<End, Failure> {
    let channel = Channel::new(&*options.channel)?;
    let broker = target.connect().await?;
    broker.capabilities().require(Capability::Ephemeral, "tail")?;
    let start = match options.from {
        From::Latest => Start::Latest,
        From::Earliest => {
            broker.capabilities().require(Capability::Replay, "tail")?;
            Start::Earliest
        }
        From::Time(time) => {
            broker.capabilities().require(Capability::StartTime, "tail")?;
            Start::Time(time.ms(broker.env().wall_ms()))
        }
    };
    // subscribing would declare it
    if broker.inventory(&Scope::These(vec![(channel.clone(), Vec::new())])).await?.channels.is_empty() {
        let error =
            Error::new(ErrorKind::NotFound, "tail", "there is no such channel").with("channel", &channel);
        close(&broker).await;
        return Err(error.into());
    }
    let mut subscribe = SubscribeOptions::new(channel, Group::Ephemeral);
    (subscribe.start, subscribe.order) = (start, Order::None);
    let interrupt = Interrupt::listen()?;
    let mut subscription = broker.subscribe(&subscribe).await?;
    let mut left = options.limit.unwrap_or(u64::MAX);
    let (mut taken, mut done): (Vec<Delivery>, Vec<(Claim, Settlement)>) = (Vec::new(), Vec::new());
    while left > 0 {
        let most = NonZeroUsize::new(usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(BATCH).min(BATCH);
        let signal = tokio::select! {
            biased;
            () = interrupt.wait() => break,
            signal = subscription.receive(most, &mut taken) => signal?,
        };
        for delivery in taken.drain(..) {
            if options.json {
                output::json(&Shown::of(&delivery.envelope, |_| true))?;
            } else {
                output::line(&message::line(&delivery.envelope))?;
            }
            done.push((delivery.claim, Settlement::Ack));
            left -= 1;
        }
        // a copy of one's own: what comes again after a lost connection is shown again
        let _ = Claim::settle_all(&mut done);
        match signal {
            Signal::Revoking(claims) => subscription.release(&claims).await?,
            Signal::Gap(gap) => {
                eprintln!("messages {} to {} of partition {} are gone already", gap.from, gap.to, gap.shard);
            }
            Signal::Reconnected => {
                eprintln!("the connection was lost and is back; some messages may come twice");
            }
            Signal::Closed => {
                eprintln!("the broker ended the subscription");
                return Ok(End::Failed);
            }
            _ => {}
        }
    }
    subscription.close().await?;
    close(&broker).await;
    // Ctrl-C is how following ends
    Ok(End::Done)
}
