//! What is written is read, and the bounds hold.

use super::arena::Arena;
use super::write::{MAX_OWN, MAX_OWN_VALUE};
use super::*;
use crate::error::ErrorKind;

#[test]
fn every_value_comes_back_in_order_beside_the_attributes() {
    let values = [
        HeaderValue::Text("ä"),
        HeaderValue::Bytes(&[0, 255]),
        HeaderValue::Int(-5),
        HeaderValue::Bool(true),
        HeaderValue::Time(1),
        HeaderValue::Null,
        HeaderValue::Text(""),
    ];
    let mut headers = HeadersMut::new();
    headers.set(Attribute::Key, &[1_u8, 2][..]);
    for value in values {
        headers.insert("x", value).unwrap();
    }
    headers.insert_foreign("y", HeaderValue::Native(b'A', &[9, 9]));
    let frozen = headers.freeze();
    assert_eq!(frozen.get_all("x").collect::<Vec<_>>(), values);
    assert_eq!(frozen.get("y"), Some(HeaderValue::Native(b'A', &[9, 9])));
    assert_eq!(frozen.attribute(Attribute::Key), Some(HeaderValue::Bytes(&[1, 2])));
    assert_eq!(frozen.len(), 8);
    assert_eq!(HeadersMut::from_headers(&frozen).freeze(), frozen);
}

#[test]
fn what_outgrows_the_stack_is_whole_wherever_it_does() {
    let text = "0123456789".repeat(Arena::FEW / 10 + 1);
    for length in 0..text.len() {
        let mut headers = HeadersMut::new();
        headers.set(Attribute::Type, "t");
        headers.insert("a", &text[..length]).unwrap();
        headers.insert("b", "behind").unwrap();
        let frozen = headers.freeze();
        assert_eq!(frozen.get("a"), Some(HeaderValue::Text(&text[..length])), "{length}");
        assert_eq!(frozen.get("b"), Some(HeaderValue::Text("behind")), "{length}");
        assert_eq!(frozen.attribute(Attribute::Type), Some(HeaderValue::Text("t")), "{length}");
        assert_eq!((frozen.get("c"), frozen.attribute(Attribute::Key)), (None, None), "{length}");
        assert_eq!(HeadersMut::from_headers(&frozen).freeze(), frozen, "{length}");
    }
}

#[test]
fn bounds_hold_from_both_sides() {
    let mut headers = HeadersMut::new();
    assert!(headers.insert(&"n".repeat(MAX_HEADER_NAME), "").is_ok());
    assert!(headers.insert(&"n".repeat(MAX_HEADER_NAME + 1), "").is_err());
    assert!(headers.insert("v", &"v".repeat(MAX_HEADER_VALUE)).is_ok());
    assert!(headers.insert("v", &"v".repeat(MAX_HEADER_VALUE + 1)).is_err());
    for _ in 2..MAX_HEADERS {
        headers.insert("h", "").unwrap();
    }
    assert_eq!(headers.insert("h", "").unwrap_err().kind(), ErrorKind::TooLarge);

    let mut full = HeadersMut::new();
    for _ in 0..7 {
        full.insert("v", &"v".repeat(MAX_HEADER_VALUE)).unwrap();
    }
    assert!(full.insert("v", &"v".repeat(MAX_HEADER_VALUE - 8)).is_ok());
    assert!(full.insert("v", "").is_err());
}

#[test]
fn names_that_are_not_the_users_are_refused() {
    for bad in [
        "",
        "a\r",
        "a\nb",
        "a\0",
        "CE-id",
        "ce_x",
        "cloudEvents:id",
        "Postrider-a",
        "Nats-Msg-Id",
        "Content-Type",
    ] {
        assert_eq!(HeadersMut::new().insert(bad, "").unwrap_err().kind(), ErrorKind::Config, "{bad:?}");
    }
}

#[test]
fn a_foreign_header_beyond_a_bound_is_kept_and_noted() {
    let mut headers = HeadersMut::new();
    headers.insert_foreign("big", &*"v".repeat(MAX_HEADER_VALUE + 1));
    assert!(headers.breach());
    assert_eq!(headers.freeze().len(), 1);
}

#[test]
fn headers_of_our_own_that_come_off_the_wire_are_bounded_by_themselves() {
    let mut headers = HeadersMut::new();
    for number in 0..MAX_HEADERS {
        headers.insert_foreign(&format!("user-{number}"), "v");
    }
    for number in 0..MAX_OWN {
        headers.insert_foreign(&format!("postrider-{number}"), &*"v".repeat(MAX_OWN_VALUE));
    }
    assert!(!headers.breach());
    headers.insert_foreign("postrider-more", "v");
    assert!(headers.breach());
    let mut headers = HeadersMut::new();
    headers.insert_foreign("postrider-long", &*"v".repeat(MAX_HEADER_VALUE + 1));
    assert!(headers.breach());
}
