//! Questions that a broker can't answer yet, asked again.

use std::time::Duration;

use postrider_core::{Env, Error, Result};

/// The pause between two of them.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks until there is an answer other than an error that is only for now, as `again` tells, or until `patience` is over: the last answer.
///
/// Cancel safety: that of `ask`.
pub(crate) async fn ask_again<T, Asked>(
    env: &Env,
    patience: Duration,
    again: impl Fn(&Error) -> bool,
    mut ask: impl FnMut() -> Asked,
) -> Result<T>
where
    Asked: Future<Output = Result<T>>,
{
    let until = env.deadline(patience);
    loop {
        match ask().await {
            Err(error) if again(&error) && env.now() < until => env.sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

    use super::*;
    use crate::error::{client, is_leaderless};

    fn refused(code: Code) -> Error {
        client("lag", KafkaError::MetadataFetch(code))
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_without_a_leader_is_asked_again_until_the_time_is_over() {
        const PATIENCE: Duration = Duration::from_secs(1);
        let (env, asked) = (Env::system(), Cell::new(0));
        let ask = |code, wins_at| {
            asked.set(asked.get() + 1);
            std::future::ready(if asked.get() == wins_at { Ok(7) } else { Err(refused(code)) })
        };
        let found = ask_again(&env, PATIENCE, is_leaderless, || ask(Code::NotLeaderForPartition, 3)).await;
        assert_eq!((found.ok(), asked.take()), (Some(7), 3));
        let began = env.now();
        let found = ask_again(&env, PATIENCE, is_leaderless, || ask(Code::LeaderNotAvailable, 0)).await;
        assert!(found.is_err_and(|error| error.is_temporary()));
        assert_eq!((asked.take(), env.now() - began), (21, PATIENCE));
        let found = ask_again(&env, PATIENCE, is_leaderless, || ask(Code::TopicAuthorizationFailed, 0)).await;
        assert!(found.is_err());
        assert_eq!(asked.take(), 1, "nothing else is asked again");
    }
}
