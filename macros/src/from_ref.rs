//! `#[derive(FromRef)]`: each field of a state by itself.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::{Data, DeriveInput, Fields};

use crate::errors::Errors;
use crate::handler::own;
use crate::values;

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let input: DeriveInput = match syn::parse2(item) {
        Ok(input) => input,
        Err(error) => return error.into_compile_error(),
    };
    let mut errors = Errors::default();
    let krate = krate(&input, &mut errors);
    for parameter in &input.generics.params {
        errors.at(parameter, "a generic state can't derive `FromRef`; implement it by hand");
    }
    let fields = match &input.data {
        Data::Struct(data) if !matches!(data.fields, Fields::Unit) => data.fields.iter().collect(),
        _ => {
            errors.at(
                &input.ident,
                "`FromRef` is derived on a struct with fields, each of which a handler may take",
            );
            Vec::new()
        }
    };
    let (mut implementations, mut types) = (TokenStream::new(), Vec::new());
    for (index, field) in fields.into_iter().enumerate() {
        let mut skip = false;
        for attribute in field.attrs.iter().filter(|a| a.path().is_ident("from_ref")) {
            let parsed = attribute.parse_nested_meta(|meta| {
                skip = meta.path.is_ident("skip");
                if skip { Ok(()) } else { Err(meta.error("the only setting is `skip`: `#[from_ref(skip)]`")) }
            });
            parsed.unwrap_or_else(|error| errors.push(error));
        }
        if skip {
            continue;
        }
        let (ty, state, from) = (&field.ty, &input.ident, own("__postrider_state"));
        let text = ty.to_token_stream().to_string();
        if types.contains(&text) {
            errors.at(ty, format!("two fields have the type `{text}`, so `State<{text}>` could be either; wrap one in a type of its own, or put `#[from_ref(skip)]` on it"));
            continue;
        }
        types.push(text);
        let member = field
            .ident
            .as_ref()
            .map_or_else(|| syn::Index::from(index).into_token_stream(), ToTokens::to_token_stream);
        implementations.extend(quote! {
            #[automatically_derived]
            impl #krate::FromRef<#state> for #ty {
                fn from_ref(#from: &#state) -> Self {
                    ::core::clone::Clone::clone(&#from.#member)
                }
            }
        });
    }
    if errors.is_empty() { implementations } else { errors.into_tokens() }
}

/// Where the trait is: `::postrider::__private` unless said.
fn krate(input: &DeriveInput, errors: &mut Errors) -> TokenStream {
    let mut krate = None;
    for attribute in input.attrs.iter().filter(|a| a.path().is_ident("from_ref")) {
        let parsed = attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("crate") {
                return Err(
                    meta.error("the only setting of the type is `crate`: `#[from_ref(crate = \"name\")]`")
                );
            }
            krate = values::path(&meta.value()?.parse()?, errors);
            Ok(())
        });
        parsed.unwrap_or_else(|error| errors.push(error));
    }
    krate.unwrap_or_else(|| quote!(::postrider::__private))
}
