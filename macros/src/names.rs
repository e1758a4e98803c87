//! The rules for names of channels, groups and messages, so that a bad one is found by the compiler. The core checks again.

const MAX: usize = 200;

/// Why a channel's name is wrong.
pub(crate) fn channel(name: &str) -> Result<(), String> {
    length(name)?;
    name.split('.').try_for_each(segment)
}

/// Why a group's name is wrong.
pub(crate) fn group(name: &str) -> Result<(), String> {
    if name.contains('.') {
        return Err("a group's name is one segment, without dots".into());
    }
    length(name)?;
    segment(name)
}

/// Why a message's name is wrong.
pub(crate) fn message(name: &str) -> Result<(), String> {
    length(name)?;
    if name.is_empty() {
        return Err("a message needs a name, as `order.placed`".into());
    }
    match name.chars().find(|c| c.is_control() || c.is_whitespace()) {
        Some(c) => Err(format!("{c:?} is not allowed in a message's name")),
        None => Ok(()),
    }
}

fn length(name: &str) -> Result<(), String> {
    if name.len() > MAX {
        Err(format!("the name has {} bytes, at most {MAX} are allowed", name.len()))
    } else {
        Ok(())
    }
}

fn segment(segment: &str) -> Result<(), String> {
    if segment.is_empty() {
        return Err("the name is empty, or has an empty segment".into());
    }
    if let Some(c) = segment.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-')) {
        return Err(format!(
            "{c:?} is not allowed in a name: use letters, digits, `_`, `-` (and dots in a channel's name)"
        ));
    }
    if segment.contains("--") || segment.starts_with('-') || segment.ends_with('-') {
        return Err("a name can't contain `--`, nor can a segment begin or end with `-`".into());
    }
    Ok(())
}
