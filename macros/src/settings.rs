//! The settings of an option that has several: `option(name = value, …)`.

use syn::punctuated::Punctuated;
use syn::{Meta, Token};

use crate::errors::{Errors, suggestion};

/// Those that are known and stand once, in their order; the others are reported.
pub(crate) fn of(
    option: &str,
    list: &syn::MetaList,
    known: &[&str],
    errors: &mut Errors,
) -> Vec<(String, Meta)> {
    let items = match list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) {
        Ok(items) => items,
        Err(error) => {
            errors.push(error);
            return Vec::new();
        }
    };
    let mut settings: Vec<(String, Meta)> = Vec::new();
    for item in items {
        let name = item.path().get_ident().map(ToString::to_string).unwrap_or_default();
        if !known.contains(&&*name) {
            let help = suggestion(&name, known);
            errors.at(item.path(), format!("unknown setting `{name}` of `{option}`; {help}"));
        } else if settings.iter().any(|(other, _)| *other == name) {
            errors.at(&item, format!("`{name}` stands twice"));
        } else {
            settings.push((name, item));
        }
    }
    settings
}
