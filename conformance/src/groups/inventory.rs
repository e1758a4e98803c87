//! What an adapter tells of what stands at its broker.

use postrider_core::{Channel, Grade, GroupEntry, GroupName, Inventory, Scope, Settlement};

use crate::kit::{Bench, settle, unique, within};
use crate::record::Outcome::{self, Passed};

/// Looks until the group is told with this lag: some brokers count late.
async fn lag_of(bench: &Bench, scope: &Scope, channel: &str, lag: u64) -> (Inventory, GroupEntry) {
    let look = async {
        loop {
            let inventory = bench.broker.inventory(scope).await.expect("the broker tells");
            let group = inventory.channel(channel).and_then(|entry| entry.group("g")).cloned();
            if let Some(group) = group.filter(|group| group.lag == Some(lag)) {
                return (inventory, group);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    within(&format!("a lag of {lag} is told"), look).await
}

pub async fn channels_and_groups_are_listed(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.publish_count(&channel, 5).await;
    let (inventory, group) = lag_of(&bench, &Scope::Everything, &channel, 5).await;
    assert!(group.members.is_none_or(|members| members == 0), "{group:?}");
    assert!(
        inventory.channels.iter().all(|entry| !entry.foreign),
        "with a tenant, others' aren't shown: {inventory:?}"
    );
    let mut reader = bench.subscribe(&channel, "g").await;
    settle(reader.take(5).await, Settlement::Ack);
    reader.close().await;
    lag_of(&bench, &Scope::Everything, &channel, 0).await;
    let other = bench.reconnect_with(|settings| settings.tenant = unique("t")).await;
    let theirs = other.inventory(&Scope::Everything).await.expect("the broker tells");
    assert_eq!(theirs.channel(&channel), None, "another tenant's");
    Passed
}

pub async fn named_ones_are_looked_up(bench: Bench) -> Outcome {
    let channel = bench.channel_with("g", |options| options.partitions = Some(4)).await;
    bench.publish_count(&channel, 5).await;
    let name = |name: &str| Channel::new(name).expect("it is legal");
    let groups = ["g", "nobody"].map(|group| GroupName::new(group).expect("it is legal"));
    let missing = unique("missing");
    let scope = Scope::These(vec![(name(&channel), groups.into()), (name(&missing), Vec::new())]);
    let (inventory, group) = lag_of(&bench, &scope, &channel, 5).await;
    let names: Vec<_> = inventory.channels.iter().map(|entry| &*entry.channel).collect();
    assert_eq!(names, [&*channel], "what isn't there is left out, and nothing was made");
    assert_eq!(inventory.channels[0].groups, [group]);
    if let Some(partitions) = inventory.channels[0].groups[0].partitions {
        assert_eq!(partitions, 4);
    }
    Passed
}

pub async fn examining_finds_no_failure(bench: Bench) -> Outcome {
    let found = bench.broker.examine().await;
    assert!(!found.is_empty());
    for finding in &found {
        assert_ne!(finding.grade, Grade::Failed, "{finding:?}");
        assert_eq!(
            finding.next.is_some(),
            finding.grade != Grade::Ok,
            "what isn't well says what to do: {finding:?}"
        );
    }
    Passed
}
