//! The members of a group share its partitions: who comes gets some, who leaves leaves them to the others, and no key's order
//! suffers.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider_core::{
    Broker, BrokerUrl, Bytes, Channel, Connector, Declare, Env, Envelope, Group, GroupName, PublisherExt,
    RouteOptions, Router, Running, SubscribeOptions, Subscriber, Subscription,
};
use postrider_nats::NatsConnector;
use tokio::sync::watch;

const KEYS: u32 = 100;
const ROUTE: &str = "work";

/// What was handled: by which member, which number of which key.
#[derive(Clone)]
struct World {
    handled: Arc<Mutex<Vec<(u32, u32, u32)>>>,
    count: watch::Sender<usize>,
}

/// How long a test waits for what must come. Nothing waits that long unless something is stuck.
const PATIENCE: Duration = Duration::from_mins(1);

/// A member that lives keeps its claims also when a busy machine halts it for some seconds.
async fn connect(tenant: &str) -> Broker {
    connect_with(tenant, "claim_timeout=15s").await
}

async fn connect_with(tenant: &str, options: &str) -> Broker {
    let url = support::shared_url();
    let url = format!("{url}{}tenant={tenant}&{options}", if url.contains('?') { '&' } else { '?' });
    NatsConnector.connect(&BrokerUrl::parse(&url).unwrap(), Env::system()).await.expect("the server answers")
}

/// A member on a connection of its own.
async fn member(number: u32, tenant: &str, world: &World) -> Running {
    let world = world.clone();
    let work = RouteOptions::new("work", "workers").name(ROUTE).handle(move |envelope: Envelope| {
        let world = world.clone();
        async move {
            tokio::task::yield_now().await;
            let read = |at: usize| envelope.payload()[at..at + 4].try_into().map(u32::from_be_bytes).unwrap();
            let mut handled = world.handled.lock().unwrap();
            handled.push((number, read(0), read(4)));
            world.count.send_replace(handled.len());
        }
    });
    Router::new().route(work).start(&connect(tenant).await).await.expect("it starts")
}

async fn publish(broker: &Broker, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let round = (0..KEYS).map(|key| {
            let body = [key.to_be_bytes(), number.to_be_bytes()].concat();
            Envelope::builder(Bytes::from(body)).key(format!("key-{key}"))
        });
        for outcome in broker.publish_all("work", round).await {
            outcome.expect("it is confirmed");
        }
    }
}

/// How many partitions a member holds.
fn held(member: &Running) -> usize {
    member.control(ROUTE).unwrap().claims().len()
}

/// Waits until the member holds so many partitions, for which there is no event outside of it.
async fn until_held(member: &Running, expected: usize) {
    let all = async {
        while held(member) != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, all).await.is_ok();
    assert!(in_time, "held: {}", held(member));
}

/// How many messages a member has handled.
fn handled_by(world: &World, number: u32) -> usize {
    world.handled.lock().unwrap().iter().filter(|(member, ..)| *member == number).count()
}

async fn until_handled(world: &World, count: usize) {
    let mut counted = world.count.subscribe();
    let done = counted.wait_for(|handled| *handled >= count);
    tokio::time::timeout(PATIENCE, done).await.expect("all is handled").expect("the world is there");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a NATS server: cargo xtask test --only nats"]
async fn members_that_come_and_go_share_the_partitions_and_keep_every_key_s_order() {
    let tenant = format!("members-{:x}", Env::system().random());
    let world = World { handled: Arc::default(), count: watch::channel(0).0 };
    let broker = connect(&tenant).await;
    let first = member(1, &tenant, &world).await;
    publish(&broker, 0..20).await;
    until_handled(&world, (20 * KEYS) as usize).await;
    until_held(&first, 8).await;

    // while messages flow, two more come: 3, 3 and 2 partitions in some order. A partition that is given away gets its next holder
    // with its next message, so they flow until then
    let joining = async { (member(2, &tenant, &world).await, member(3, &tenant, &world).await) };
    let ((), (second, third)) = tokio::join!(publish(&broker, 20..60), joining);
    let mut rounds = 60;
    let balanced = async {
        loop {
            let mut all = [&first, &second, &third].map(held);
            all.sort_unstable();
            // each has work before two of them leave
            if all == [2, 3, 3] && (1..=3).all(|member| handled_by(&world, member) > 100) {
                break;
            }
            publish(&broker, rounds..rounds + 1).await;
            rounds += 1;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, balanced).await.is_ok();
    assert!(in_time, "every member gets its share, held: {:?}", [&first, &second, &third].map(held));
    until_handled(&world, (rounds * KEYS) as usize).await;

    // two leave in good order, and the third goes on with everything
    first.stop(PATIENCE).await.expect("it drains");
    second.stop(PATIENCE).await.expect("it drains");
    publish(&broker, rounds..rounds + 20).await;
    until_handled(&world, ((rounds + 20) * KEYS) as usize).await;
    until_held(&third, 8).await;
    third.stop(PATIENCE).await.expect("it drains");

    let handled = world.handled.lock().unwrap();
    assert_eq!(handled.len(), ((rounds + 20) * KEYS) as usize, "none twice");
    let mut last: BTreeMap<u32, u32> = BTreeMap::new();
    for (member, key, number) in handled.iter() {
        let expected = last.get(key).map_or(0, |last| last + 1);
        let of_key =
            || handled.iter().filter(|(_, of, _)| of == key).map(|(at, _, n)| (at, n)).collect::<Vec<_>>();
        assert_eq!(*number, expected, "key {key} at member {member}: {:?}", of_key());
        last.insert(*key, *number);
    }
    for number in 1..=3 {
        assert!(
            handled.iter().filter(|(member, ..)| *member == number).count() > 100,
            "member {number} works"
        );
    }
}

/// The next member does not wait for the claim to expire, which takes ten minutes here.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a NATS server: cargo xtask test --only nats"]
async fn a_member_that_leaves_as_its_first_messages_come_leaves_them_to_the_next_at_once() {
    const MESSAGES: usize = 200;
    let most = NonZeroUsize::new(256).unwrap();
    for _ in 0..5 {
        let tenant = format!("leaves-{:x}", Env::system().random());
        let broker = connect_with(&tenant, "claim_timeout=10m").await;
        let group = Group::Named(GroupName::new("workers").unwrap());
        let mut options = SubscribeOptions::new(Channel::new("work").unwrap(), group);
        options.partitions = Some(32);
        broker.declare_all(&[Declare::Group(options.clone())]).await.unwrap();
        let messages = (0..MESSAGES)
            .map(|number| Envelope::builder(Bytes::from_static(b"x")).key(format!("key-{number}")));
        assert!(broker.publish_all("work", messages).await.iter().all(Result::is_ok));

        let mut first = broker.subscribe(&options).await.unwrap();
        let mut came = Vec::new();
        while came.is_empty() {
            first.receive(most, &mut came).await.unwrap();
        }
        drop(came);
        first.close().await.unwrap();
        let mut second = broker.subscribe(&options).await.unwrap();
        let mut came = Vec::new();
        let all = async {
            while came.len() < MESSAGES {
                second.receive(most, &mut came).await.unwrap();
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, all).await.is_ok();
        assert!(in_time, "{} of {MESSAGES} came", came.len());
        second.close().await.unwrap();
    }
}
