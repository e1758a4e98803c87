//! Headers as programs set them: what is taken is within the bounds and comes back, what isn't is refused.

use postrider_core::{
    ErrorKind, HeaderValue, HeadersMut, MAX_HEADER_BYTES, MAX_HEADER_NAME, MAX_HEADER_VALUE, MAX_HEADERS,
    RESERVED_PREFIXES,
};

use crate::envelope::NAMES;
use crate::feed::Feed;

/// Any bytes as a list of headers.
pub(crate) fn target(data: &[u8]) {
    let (mut feed, mut headers) = (Feed(data), HeadersMut::new());
    let (mut taken, mut bytes): (Vec<(String, String)>, usize) = (Vec::new(), 0);
    while !feed.is_empty() {
        let mut name = feed.one_of(&NAMES);
        if feed.byte().is_multiple_of(8) {
            name = name.repeat(3);
        }
        feed.value(|value: HeaderValue<'_>| {
            let length = value.as_bytes().map_or(8, <[u8]>::len);
            match headers.insert(&name, value) {
                Ok(()) => {
                    bytes += name.len() + length;
                    let lower = name.to_ascii_lowercase();
                    assert!(!name.is_empty() && name.len() <= MAX_HEADER_NAME && length <= MAX_HEADER_VALUE);
                    assert!(!name.bytes().any(|byte| byte < 0x20 || byte == 0x7f), "{name:?}");
                    assert!(!RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix)), "{name}");
                    taken.push((name.clone(), format!("{value:?}")));
                    assert!(taken.len() <= MAX_HEADERS && bytes <= MAX_HEADER_BYTES, "{bytes}");
                }
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Config | ErrorKind::TooLarge), "{error}");
                }
            }
        });
    }
    let headers = headers.freeze();
    let read: Vec<_> = headers.iter().map(|(name, value)| (name.to_owned(), format!("{value:?}"))).collect();
    assert_eq!(read, taken);
    assert!(headers.attributes().next().is_none(), "no header is an attribute");
}
