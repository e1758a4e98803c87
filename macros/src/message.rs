//! `#[derive(Message)]`: name, version, key, identity, codec.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote};
use syn::ext::IdentExt;
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Data, DeriveInput, Expr, Fields, Ident, LitStr, Member, Meta, Token};

use crate::errors::{Errors, suggestion};
use crate::names;
use crate::values::{count, named, path, text};

const KNOWN: [&str; 5] = ["name", "version", "key", "idempotency", "codec"];

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let input: DeriveInput = match syn::parse2(item) {
        Ok(input) => input,
        Err(error) => return error.into_compile_error(),
    };
    let mut errors = Errors::default();
    let said = Said::read(&input, &mut errors);
    if let Data::Union(union) = &input.data {
        errors.at(union.union_token, "a union can't be a message; use a struct or an enum");
    }
    for parameter in &input.generics.params {
        errors.at(parameter, "a message can't be generic: its name stands for one contract");
    }
    let key = said.key.as_ref().map(|path| field(&input, path, "key", &mut errors));
    let identity = said.idempotency.as_ref().map(|path| field(&input, path, "idempotency", &mut errors));
    if !errors.is_empty() {
        return errors.into_tokens();
    }
    let krate = said.krate;
    let (ident, version) = (&input.ident, said.version);
    let name = said.name;
    let codec = said.codec.unwrap_or_else(|| quote!(#krate::codec::Json));
    let key = key.map(|access| {
        quote! {
            fn key(&self) -> ::core::option::Option<#krate::Key<'_>> {
                #krate::ToKey::to_key(&self.#access)
            }
        }
    });
    let identity = identity.map(|access| {
        quote! {
            fn idempotency_key(&self) -> ::core::option::Option<::std::borrow::Cow<'_, str>> {
                ::core::option::Option::Some(::std::borrow::Cow::Owned(::std::string::ToString::to_string(&self.#access)))
            }
        }
    });
    quote! {
        #[automatically_derived]
        impl #krate::Message for #ident {
            const NAME: &'static str = #name;
            const VERSION: u32 = #version;
            type Codec = #codec;
            #key
            #identity
        }
    }
}

struct Said {
    name: Option<LitStr>,
    version: u32,
    key: Option<LitStr>,
    idempotency: Option<LitStr>,
    codec: Option<TokenStream>,
    krate: TokenStream,
}

impl Said {
    fn read(input: &DeriveInput, errors: &mut Errors) -> Self {
        let krate = quote!(::postrider::__private);
        let mut said = Self { name: None, version: 1, key: None, idempotency: None, codec: None, krate };
        let mut seen: Vec<String> = Vec::new();
        for attribute in input.attrs.iter().filter(|a| a.path().is_ident("message")) {
            let items = match attribute.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) {
                Ok(items) => items,
                Err(error) => {
                    errors.push(syn::Error::new(
                        error.span(),
                        format!("expected `name = value`, separated by commas ({error})"),
                    ));
                    continue;
                }
            };
            for item in &items {
                let name = item.path().to_token_stream().to_string();
                if seen.contains(&name) {
                    errors.at(item, format!("`{name}` stands twice"));
                    continue;
                }
                seen.push(name.clone());
                match item {
                    Meta::NameValue(pair) => said.pair(&name, &pair.value, item, errors),
                    other if KNOWN.contains(&&*name) => errors.at(other, format!("write `{name} = …`")),
                    other => errors.at(
                        other,
                        format!("unknown setting `{name}` of a message; {}", suggestion(&name, &KNOWN)),
                    ),
                }
            }
        }
        if !seen.iter().any(|name| name == "name") {
            let message =
                "a message needs the name that it has on the wire: `#[message(name = \"order.placed\")]`";
            errors.push(syn::Error::new(Span::call_site(), message));
        }
        said
    }

    fn pair(&mut self, name: &str, value: &Expr, item: &Meta, errors: &mut Errors) {
        match name {
            "name" => self.name = named(value, names::message, errors),
            "version" => match count(value, errors).map(u32::try_from) {
                Some(Ok(version)) => self.version = version,
                Some(Err(_)) => errors.at(value, "a version is a number up to 4294967295"),
                None => {}
            },
            "key" => self.key = text(value, errors),
            "idempotency" => self.idempotency = text(value, errors),
            "codec" => self.codec = Some(value.to_token_stream()),
            "crate" => self.krate = path(value, errors).unwrap_or_else(|| self.krate.clone()),
            _ => errors
                .at(item, format!("unknown setting `{name}` of a message; {}", suggestion(name, &KNOWN))),
        }
    }
}

/// The access to a field, whose first part must be one of the type's.
fn field(input: &DeriveInput, path: &LitStr, setting: &str, errors: &mut Errors) -> TokenStream {
    let Data::Struct(data) = &input.data else {
        errors.at(
            path,
            format!(
                "`{setting}` names a field, and an enum has none of its own; implement `Message` by hand"
            ),
        );
        return TokenStream::new();
    };
    let text = path.value();
    let first = text.split('.').next().unwrap_or_default();
    let first = first.strip_prefix("r#").unwrap_or(first);
    let fields: Vec<String> = match &data.fields {
        Fields::Named(named) => named
            .named
            .iter()
            .filter_map(|f| f.ident.as_ref().map(|ident| ident.unraw().to_string()))
            .collect(),
        Fields::Unnamed(unnamed) => (0..unnamed.unnamed.len()).map(|i| i.to_string()).collect(),
        Fields::Unit => Vec::new(),
    };
    if !fields.iter().any(|field| field == first) {
        let known: Vec<_> = fields.iter().map(String::as_str).collect();
        let help = if known.is_empty() { "it has no fields".into() } else { suggestion(first, &known) };
        errors.at(path, format!("`{}` has no field `{first}`; {help}", input.ident));
        return TokenStream::new();
    }
    let parts: Option<Vec<Member>> = text.split('.').map(|part| member(part, path.span())).collect();
    if let Some(parts) = parts {
        quote!(#(#parts).*)
    } else {
        errors.at(path, "expected a field, or fields joined by dots");
        TokenStream::new()
    }
}

/// A field by its name, which may be a keyword.
fn member(name: &str, span: Span) -> Option<Member> {
    // these can't be fields at all
    if ["self", "Self", "super", "crate", "_"].contains(&name) {
        return None;
    }
    let raw = || Ident::parse_any.parse_str(name).ok().map(|ident| Ident::new_raw(&ident.to_string(), span));
    let mut member = syn::parse_str(name).ok().or_else(|| raw().map(Member::Named))?;
    match &mut member {
        Member::Named(ident) => ident.set_span(span),
        Member::Unnamed(index) => index.span = span,
    }
    Some(member)
}
