//! The tracker of one subscription: what it handed out is settled here, and written down by the member's thread.

use std::sync::Arc;
use std::time::Duration;

use postrider_core::{BoxFuture, Env, Settle, SettleError, Settlement, Token};

use crate::reader::Own;
use crate::shared::Shared;
use crate::source::Source;

/// How long a flush waits for a broker that is away; what it then leaves is written when the broker is back.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) channel: Arc<Shared>,
    /// None of an ephemeral group, which has no place either that could be written down.
    pub(crate) own: Option<Arc<Own>>,
    pub(crate) env: Env,
}

impl Settle for Tracker {
    fn settle(&self, batch: &[(Token, Settlement)]) -> Result<(), SettleError> {
        let mut stale = Vec::new();
        for (part, of) in parts(batch) {
            let own = self.own.as_ref().and_then(|own| own.get());
            match (own, of) {
                (Some(own), Source::Group) => stale.extend(own.shared.settle(part)),
                _ => stale.extend(self.channel.settle(part)),
            }
        }
        if stale.is_empty() { Ok(()) } else { Err(SettleError { stale }) }
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(async {
            let Some(own) = &self.own else {
                return Ok(());
            };
            let both = async {
                let Some(own) = own.get() else {
                    return self.channel.flush().await;
                };
                let (mut stale, more) = tokio::join!(self.channel.flush(), own.shared.flush());
                stale.extend(more);
                stale
            };
            let stale = tokio::select! {
                stale = both => stale,
                () = self.env.sleep(PATIENCE) => Vec::new(),
            };
            if stale.is_empty() { Ok(()) } else { Err(SettleError { stale }) }
        })
    }
}

/// The batch in its order, in runs of one topic each: nearly always one.
fn parts(batch: &[(Token, Settlement)]) -> impl Iterator<Item = (&[(Token, Settlement)], Source)> {
    let source = |(token, _): &(Token, Settlement)| Source::of(token.claim.shard);
    batch.chunk_by(move |a, b| source(a) == source(b)).map(move |part| (part, source(&part[0])))
}
