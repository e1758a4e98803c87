//! `idempotency(…)`: by what a message is known again, and for how long.

use proc_macro2::TokenStream;
use quote::quote;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Expr, Meta, Token};

use crate::errors::{Errors, suggestion};
use crate::values::{duration_tokens, positive, word};

const KNOWN: [&str; 2] = ["key", "ttl"];

/// `idempotency = auto`.
pub(crate) fn by(key: &Expr, krate: &TokenStream, errors: &mut Errors) -> Option<TokenStream> {
    let word = word(key, &["auto", "business"], errors)?;
    let by = syn::Ident::new(word, key.span());
    Some(quote!(#krate::Idempotency::#by()))
}

/// The builder calls of `idempotency(…)`.
pub(crate) fn parse(list: &syn::MetaList, krate: &TokenStream, errors: &mut Errors) -> TokenStream {
    let items = match list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) {
        Ok(items) => items,
        Err(error) => {
            errors.push(error);
            return TokenStream::new();
        }
    };
    let mut key = quote!(#krate::Idempotency::auto());
    let mut calls = TokenStream::new();
    let mut seen: Vec<String> = Vec::new();
    for item in &items {
        let name = item.path().get_ident().map(ToString::to_string).unwrap_or_default();
        if seen.contains(&name) {
            errors.at(item, format!("`{name}` stands twice"));
            continue;
        }
        seen.push(name.clone());
        match (item, &*name) {
            (Meta::NameValue(pair), "key") => key = by(&pair.value, krate, errors).unwrap_or(key),
            (Meta::NameValue(pair), "ttl") => {
                if let Some(ttl) = positive(&pair.value, errors) {
                    let ttl = duration_tokens(ttl);
                    calls.extend(quote!(.ttl(#ttl)));
                }
            }
            (_, "key" | "ttl") => errors.at(item, format!("write `{name} = …`")),
            _ => {
                let help = suggestion(&name, &KNOWN);
                errors.at(item.path(), format!("unknown setting `{name}` of `idempotency`; {help}"));
            }
        }
    }
    quote!(#key #calls)
}
