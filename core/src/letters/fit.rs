//! Copies that fit: what of a message gives way where its copy would be more than the broker stores. How much that is, and how long a
//! copy is on the wire, is the adapter's to say.

use super::copy::{EDITED_FROM, MAX_VALUE, ORIGIN_ID, PREFIX, REASON, REDRIVES, RETRY_PREFIX, cut};
use crate::envelope::{Envelope, derived_id};
use crate::error::{Error, ErrorKind, Result};
use crate::headers::{Attribute, HeaderValue, HeadersMut};
use crate::id::MessageId;
use crate::publish::Outgoing;

/// What a copy says of what it has lost.
const DROPPED: &str = "postrider-dropped-headers";
/// What a dead letter says of its failure and can do without: left out in this order.
const LESS: [&str; 3] = ["postrider-dlq-error-chain", "postrider-dlq-error", "postrider-dlq-origin"];

/// Makes a copy (a message with a hop) one whose headers are at most `most` bytes by `len`: a dead letter, a redrive or a corrected
/// letter. A first publish is left alone, and so is what fits.
///
/// What doesn't fit leaves out in this order: of what is said of the failure `error-chain`, `error` and `origin`; if that isn't enough,
/// the message's own headers, from the largest on, and no more of them than needed, and then what was left out first has its place again,
/// as far as there is room; at the very last the attributes that say what the message is. What tells why it is a dead letter, whose it
/// is and how often it was redriven stays always; so does the body. How many headers are gone, how many bytes these had, names and values
/// as they came, and which they are stands in `postrider-dropped-headers`: `2 of 61440 bytes: picture, trace`, cut at 2 KiB.
///
/// `len` tells how long an envelope's headers are on the wire. It is asked some twenty times at most, and must not grow where a header is
/// left out.
///
/// ```
/// use postrider_core::{Bytes, Env, Envelope, Outgoing, PublishOptions, fit_copy};
/// let picture = "p".repeat(5000);
/// let letter = Envelope::builder(Bytes::new()).header("picture", &*picture).header("trace", "1");
/// let mut options = PublishOptions::default();
/// options.hop = Some("dlq/billing/0/nats:orders/17".into());
/// let mut copy = Outgoing::new("orders.billing.dlq", letter.build(&Env::seeded(1))?).with(options);
/// fit_copy(&mut copy, 4096, |envelope| envelope.headers().byte_len())?;
/// let names: Vec<_> = copy.envelope.headers().iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["trace", "postrider-dropped-headers"]);
/// # Ok::<(), postrider_core::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::TooLarge`] for a copy that waits for its retry: nothing is left out of that, since the message, which has all its headers,
/// can wait where it is.
pub fn fit_copy(message: &mut Outgoing<'_>, most: usize, len: impl Fn(&Envelope) -> usize) -> Result<()> {
    if message.options.hop.is_none() {
        return Ok(());
    }
    let found = len(&message.envelope);
    if found <= most {
        return Ok(());
    }
    if message.options.delay.is_some() {
        let text = format!(
            "the headers take {found} bytes on the wire, and this broker stores {most} with the message; it waits where it is"
        );
        return Err(Error::new(ErrorKind::TooLarge, "publish", text).with("id", message.envelope.id()));
    }
    message.envelope = fitted(&message.envelope, |envelope| len(envelope) <= most);
    Ok(())
}

/// The envelope without what it has to lose to fit. What can't be made to fit says at least what it is.
fn fitted(source: &Envelope, fits: impl Fn(&Envelope) -> bool) -> Envelope {
    for less in 1..=LESS.len() {
        let copy = without(source, &LESS[..less], &[]);
        if fits(&copy) {
            return copy;
        }
    }
    let parts = parts(source);
    // the fewest with which it fits; all of them, if it never does
    let (mut low, mut high) = (1, parts.len().max(1));
    while low < high {
        let middle = low.midpoint(high);
        let gone = &parts[..middle.min(parts.len())];
        if fits(&without(source, &LESS, gone)) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let mut gone = &parts[..high.min(parts.len())];
    if !fits(&without(source, &LESS, gone)) {
        // the broker refuses it either way
        gone = &parts[..parts.partition_point(|part| !part.says_what_it_is())];
    }
    let copies = (0..LESS.len()).map(|less| without(source, &LESS[..less], gone));
    let fitting = copies.into_iter().find(fits);
    fitting.unwrap_or_else(|| without(source, &LESS, gone))
}

/// Something of a message that its copy can lose.
struct Part<'a> {
    what: What,
    name: &'a str,
    /// Name and value, in bytes.
    bytes: usize,
}

#[derive(PartialEq, Eq)]
enum What {
    /// The header of that number.
    Header(usize),
    Attribute(Attribute),
    /// An id too long to be kept; a hash stands for it.
    Id,
}

/// What a message can lose, in that order.
fn parts(source: &Envelope) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut kept: Vec<&str> = Vec::new();
    for (index, (name, value)) in source.headers().iter().enumerate() {
        let bytes = length(value);
        if LESS.contains(&name) {
            continue;
        }
        // ours has each name once and is cut; whatever else is called so is somebody else's
        if is_ours(name) && bytes <= MAX_VALUE && !kept.contains(&name) {
            kept.push(name);
            continue;
        }
        parts.push(Part { what: What::Header(index), name, bytes: name.len() + bytes });
    }
    let mut seen = Vec::new();
    for (attribute, value) in source.headers().attributes() {
        let name = attribute.as_str();
        if seen.contains(&attribute) {
            continue; // only the first goes on the wire
        }
        seen.push(attribute);
        parts.push(Part { what: What::Attribute(attribute), name, bytes: name.len() + length(value) });
    }
    if let MessageId::Text(id) = source.id()
        && id.len() > MAX_VALUE
    {
        parts.push(Part { what: What::Id, name: "id", bytes: "id".len() + id.len() });
    }
    // a stable sort: of equals, the first goes first
    parts.sort_by_key(|part| (part.says_what_it_is(), std::cmp::Reverse(part.bytes)));
    parts
}

impl Part<'_> {
    /// Whether the message would be another one without it.
    fn says_what_it_is(&self) -> bool {
        use Attribute::{ContentType, IdempotencyKey, Key, SchemaVersion, Source, Type};
        matches!(
            self.what,
            What::Id | What::Attribute(ContentType | IdempotencyKey | Key | SchemaVersion | Source | Type)
        )
    }
}

/// Whether a copy needs the header: to be judged, listed, redriven, or tried again.
fn is_ours(name: &str) -> bool {
    const LETTER: [&str; 9] = [
        "attempts",
        "deliveries",
        "first-failed-at",
        "last-failed-at",
        "channel",
        "group",
        "handler",
        "origin",
        "depth",
    ];
    const RETRY: [&str; 3] = ["attempts", "first-failed-at", "origin"];
    [REASON, REDRIVES, EDITED_FROM, ORIGIN_ID, DROPPED].contains(&name)
        || name.strip_prefix(PREFIX).is_some_and(|rest| LETTER.contains(&rest))
        || name.strip_prefix(RETRY_PREFIX).is_some_and(|rest| RETRY.contains(&rest))
}

fn length(value: HeaderValue<'_>) -> usize {
    match value {
        HeaderValue::Native(_, bytes) => bytes.len(),
        other => other.as_bytes().map_or(8, <[u8]>::len),
    }
}

fn without(source: &Envelope, less: &[&str], gone: &[Part<'_>]) -> Envelope {
    let mut lost = vec![false; source.headers().len()];
    for part in gone {
        if let What::Header(index) = part.what {
            lost[index] = true;
        }
    }
    let mut headers = HeadersMut::new();
    for (attribute, value) in source.headers().attributes() {
        if !gone.iter().any(|part| part.what == What::Attribute(attribute)) {
            headers.set(attribute, value);
        }
    }
    for ((name, value), lost) in source.headers().iter().zip(lost) {
        if !lost && !less.contains(&name) {
            headers.insert_system(name, value);
        }
    }
    if !gone.is_empty() {
        headers.insert_system(DROPPED, &*note(gone));
    }
    let copy = source.clone().with_headers(headers.freeze());
    match source.id() {
        MessageId::Text(id) if gone.iter().any(|part| part.what == What::Id) => {
            copy.with_id(derived_id(&[id.as_bytes()]))
        }
        _ => copy,
    }
}

/// How many are gone, how many bytes they had, and which they are.
fn note(gone: &[Part<'_>]) -> String {
    let bytes: usize = gone.iter().map(|part| part.bytes).sum();
    let mut text = format!("{} of {bytes} bytes", gone.len());
    for (index, part) in gone.iter().enumerate() {
        if text.len() > MAX_VALUE {
            break;
        }
        text.push_str(if index == 0 { ": " } else { ", " });
        text.push_str(part.name);
    }
    cut(&text)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::Env;
    use crate::publish::PublishOptions;

    /// A stand-in for a broker's own form: four bytes a header, as HTTP's lines have.
    fn len(envelope: &Envelope) -> usize {
        let headers = envelope.headers().iter().map(|(name, value)| name.len() + length(value) + 4);
        let mut all = headers.sum();
        envelope.write_attributes(|name, text| all += name.len() + text.len() + 4);
        all
    }

    fn letter(own: &[(&str, usize)]) -> Envelope {
        let built = Envelope::builder(Bytes::from_static(b"\xffbody")).type_name("order").key("k");
        let built = built.build(&Env::seeded(1)).unwrap();
        let mut headers = HeadersMut::from_headers(built.headers());
        for (name, bytes) in own {
            headers.insert_foreign(name, &*"v".repeat(*bytes));
        }
        for name in [REASON, "postrider-dlq-group", "postrider-dlq-channel", REDRIVES] {
            headers.insert_system(name, "1");
        }
        for name in LESS {
            headers.insert_system(name, &*"e".repeat(100));
        }
        built.with_headers(headers.freeze())
    }

    fn fit(envelope: &Envelope, most: usize) -> Envelope {
        let hop = PublishOptions { hop: Some("dlq/g/0/s/1".into()), ..PublishOptions::default() };
        let mut message = Outgoing::new("orders.g.dlq", envelope.clone()).with(hop);
        fit_copy(&mut message, most, len).unwrap();
        message.envelope
    }

    fn names(envelope: &Envelope) -> Vec<&str> {
        envelope.headers().iter().map(|(name, _)| name).collect()
    }

    fn dropped(envelope: &Envelope) -> Option<&str> {
        envelope.headers().get(DROPPED).and_then(HeaderValue::as_text)
    }

    #[test]
    fn what_just_fits_is_whole_and_one_byte_more_costs_the_largest_header_alone() {
        let source = letter(&[("small", 10), ("huge", 5000), ("large", 3000)]);
        assert_eq!(fit(&source, len(&source)).headers(), source.headers());
        // what is said of the failure gives way first, in its order
        let all: usize = LESS.iter().map(|name| name.len() + 104).sum();
        for (short, left) in [(1, &LESS[1..]), (LESS[0].len() + 105, &LESS[2..]), (all, &[])] {
            let copy = fit(&source, len(&source) - short);
            let told: Vec<_> = LESS.iter().filter(|name| names(&copy).contains(name)).collect();
            assert_eq!(told, left.iter().collect::<Vec<_>>(), "{short}");
            assert_eq!((copy.headers().get("huge").is_some(), dropped(&copy)), (true, None), "{short}");
        }
        let copy = fit(&source, len(&source) - all - 1);
        assert_eq!(dropped(&copy), Some("1 of 5004 bytes: huge"));
        assert!(["small", "large", LESS[0], LESS[1], LESS[2]].iter().all(|name| names(&copy).contains(name)));
        assert_eq!(copy.payload(), source.payload());
    }

    #[test]
    fn a_first_publish_is_left_alone_and_a_retry_refused() {
        let source = letter(&[("huge", 5000)]);
        let mut first = Outgoing::new("orders", source.clone());
        fit_copy(&mut first, 100, len).unwrap();
        assert_eq!(first.envelope.headers(), source.headers());
        let delay = Some(std::time::Duration::from_secs(1));
        let options = PublishOptions { hop: Some("retry/g".into()), delay, ..PublishOptions::default() };
        let mut retry = Outgoing::new("orders", source.clone()).with(options);
        assert_eq!(fit_copy(&mut retry, 100, len).unwrap_err().kind(), ErrorKind::TooLarge);
        assert!(fit_copy(&mut retry, len(&source), len).is_ok());
    }

    #[test]
    fn names_of_ours_protect_nobody_elses() {
        // repeated, or longer than ours are
        let source = letter(&[(ORIGIN_ID, 60_000), ("postrider-dlq-group", 2000), ("postrider-x", 3000)]);
        let copy = fit(&source, 3500);
        let told = dropped(&copy).unwrap();
        assert!(told.starts_with(&format!("2 of {} bytes: {ORIGIN_ID}, ", 60_000 + ORIGIN_ID.len() + 3011)));
        assert_eq!(copy.headers().get_all("postrider-dlq-group").count(), 2);
    }

    #[test]
    fn attributes_and_a_monstrous_id_go_last() {
        let long = "i".repeat(9000);
        let source = letter(&[("small", 10)]).with_id(MessageId::Text(long.as_str().into()));
        let copy = fit(&source, 900);
        assert_eq!(dropped(&copy), Some("2 of 9017 bytes: small, id"));
        assert!(len(&copy) <= 900 && copy.headers().get(REASON).is_some());
        assert_eq!((fit(&source, 900).id(), copy.key()), (copy.id(), source.key()), "the same for each try");
        let copy = fit(&source, 280);
        assert_eq!(dropped(&copy), Some("4 of 9046 bytes: small, id, source, partitionkey"));
        assert!(len(&copy) <= 280 && copy.type_name() == "order");
    }

    proptest! {
        #[test]
        fn whatever_comes_fits_and_loses_no_more_than_it_must(own in prop::collection::vec(("[a-c]|postrider-dlq-(reason|group|x)", 0..4000_usize), 0..40), most in 1500..60_000_usize) {
            let own: Vec<_> = own.iter().map(|(name, bytes)| (&**name, *bytes)).collect();
            let source = letter(&own);
            let copy = fit(&source, most);
            // what must stay is little
            let stays = |name: &str| source.headers().get(name).map_or(0, |value| length(value).min(MAX_VALUE));
            prop_assert!(len(&copy) <= most + stays(REASON) + stays("postrider-dlq-group"));
            prop_assert_eq!(copy.payload(), source.payload());
            for name in [REASON, "postrider-dlq-group", "postrider-dlq-channel", REDRIVES] {
                prop_assert!(copy.headers().get(name).is_some());
            }
            let Some(told) = dropped(&copy) else { return Ok(()) };
            let gone: usize = told.split(' ').next().unwrap().parse().unwrap();
            let parts = parts(&source);
            prop_assert!(gone >= 1 && gone <= parts.len());
            if gone > 1 {
                prop_assert!(len(&without(&source, &LESS, &parts[..gone - 1])) > most, "one less would have done");
            }
        }
    }
}
