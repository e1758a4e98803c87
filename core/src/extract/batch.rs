//! Many messages in one call.

use super::{Declaration, FromIncoming, Incoming, Rejection, RouteContext};
use crate::error::{BoxError, text_of};
use crate::message::{Message, decode};
use crate::outcome::Outcome;
use crate::panics::drop_caught;

/// Consecutive messages, handled in one call. One that can't be decoded goes to the dead letters by itself and is not in
/// here, so a batch may be empty. Return one outcome for all, or `Vec<Result<_, _>>` with one for each in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T>(pub Vec<T>);

impl<T> IntoIterator for Batch<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<T: Message, S: Sync> FromIncoming<S> for Batch<T> {
    fn declare(declaration: &mut Declaration) {
        declaration.types.push(T::NAME);
        declaration.batch = true;
    }

    async fn extract(incoming: &mut Incoming, _: &RouteContext<S>) -> Result<Self, Rejection> {
        let (mut messages, mut rejected) = (Vec::with_capacity(incoming.len()), Vec::new());
        for (i, envelope) in incoming.envelopes().enumerate() {
            match decode(envelope) {
                Ok(message) => messages.push(message),
                Err(error) => rejected.push((i, Outcome::from(error))),
            }
        }
        incoming.rejected = rejected;
        Ok(Self(messages))
    }
}

impl Incoming {
    /// The items of a batch that were handed to the function.
    pub(crate) fn decoded(&self) -> Vec<&crate::Envelope> {
        let bad = |i: &usize| self.rejected.iter().any(|(r, _)| r == i);
        self.envelopes().enumerate().filter(|(i, _)| !bad(i)).map(|(_, e)| e).collect()
    }

    /// Puts the outcomes of the items that couldn't be decoded beside the function's own.
    pub(crate) fn merge(&mut self, outcome: Outcome) -> Outcome {
        if self.rejected.is_empty() {
            return outcome;
        }
        let total = self.len();
        let mut each = match outcome {
            Outcome::Each(each) => each,
            // one verdict for all: spread over the items that were handed over
            Outcome::Done(outputs) => {
                let mut all: Vec<_> = (self.rejected.len()..total).map(|_| Outcome::done()).collect();
                match all.first_mut() {
                    Some(first) => *first = Outcome::Done(outputs),
                    None => drop(outputs),
                }
                all
            }
            Outcome::Retry(error, after) => {
                let text = taken(error);
                let spread = (self.rejected.len()..total).map(|_| Outcome::Retry(text.clone().into(), after));
                spread.collect()
            }
            Outcome::Reject(reason, error) => {
                let text = taken(error);
                let spread =
                    (self.rejected.len()..total).map(|_| Outcome::Reject(reason, text.clone().into()));
                spread.collect()
            }
        };
        for (i, bad) in self.rejected.drain(..) {
            each.insert(i.min(each.len()), bad);
        }
        Outcome::Each(each)
    }
}

/// The text of the function's error, which is dropped.
fn taken(error: BoxError) -> String {
    let text = text_of(&*error);
    drop_caught(error);
    text
}
