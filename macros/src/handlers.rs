//! `#[handlers]` on an impl block: its `#[handler]` methods become routes whose state is `self`.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::ext::IdentExt;
use syn::{Attribute, Expr, FnArg, Ident, ImplItem, ItemImpl, Meta, MetaNameValue, ReceiverKind};

use crate::errors::Errors;
use crate::handler::{argument, check, own, own_argument};
use crate::options;

pub(crate) fn expand(arguments: &TokenStream, item: &TokenStream) -> TokenStream {
    let mut errors = Errors::default();
    let routes_name = routes_name(arguments, &mut errors);
    let mut block: ItemImpl = if let Ok(block) = syn::parse2(item.clone()) {
        block
    } else {
        errors.at(item, "`#[handlers]` goes on an impl block (for a function, use `#[handler]`)");
        let errors = errors.into_tokens();
        return quote!(#errors #item);
    };
    if let Some((path, _)) = &block.trait_ {
        errors.at(path, "`#[handlers]` goes on a type's own impl block, not on a trait's");
    }
    let (mut routes, mut krate) = (Vec::new(), quote!(::postrider::__private));
    for item in &mut block.items {
        let ImplItem::Fn(method) = item else { continue };
        let Some(at) = method.attrs.iter().position(is_handler) else {
            continue;
        };
        let attribute = method.attrs.remove(at);
        // a handler is async because it may wait, not because this one does
        method.attrs.push(syn::parse_quote!(#[allow(clippy::unused_async)]));
        let tokens = match &attribute.meta {
            Meta::List(list) => list.tokens.clone(),
            Meta::Path(_) => TokenStream::new(),
            Meta::NameValue(pair) => {
                errors.at(pair, "write `#[handler(channel = \"…\", group = \"…\")]`");
                continue;
            }
        };
        let options = options::parse(tokens, &method.sig.ident.unraw().to_string(), &mut errors);
        check(&method.sig, &options, &mut errors);
        let by_reference = match method.sig.inputs.first() {
            Some(FnArg::Receiver(receiver)) => matches!(receiver.kind, ReceiverKind::Reference(_, _, None)),
            _ => false,
        };
        if !by_reference {
            errors.at(
                &method.sig.ident,
                "a handler method takes `&self`: several messages are handled at once",
            );
        }
        let types: Vec<_> = method.sig.inputs.iter().filter_map(argument).cloned().collect();
        let names: Vec<_> = (0..types.len()).map(own_argument).collect();
        let (name, builder, this) = (&method.sig.ident, &options.builder, own("__postrider_this"));
        krate = options.krate.clone();
        routes.push(quote! {
            .route({
                let #this = ::std::sync::Arc::clone(&self);
                #builder.handle(move |#(#names: #types),*| {
                    let #this = ::std::sync::Arc::clone(&#this);
                    async move { #this.#name(#(#names),*).await }
                })
            })
        });
    }
    if routes.is_empty() && errors.is_empty() {
        errors.at(&block.self_ty, "no method of this block has `#[handler(…)]`, so there are no routes");
    }
    if !errors.is_empty() {
        let errors = errors.into_tokens();
        return quote!(#errors #block);
    }
    let (generics, ty) = (&block.generics, &block.self_ty);
    let (implementation, _, bounds) = generics.split_for_impl();
    quote! {
        #block
        impl #implementation #ty #bounds {
            /// The routes of this type's handlers; their state is this value.
            pub fn #routes_name(self: ::std::sync::Arc<Self>) -> #krate::Router {
                #krate::Router::new() #(#routes)*
            }
        }
    }
}

/// `#[handlers(routes = NAME)]`: how the method is called that answers the routes.
fn routes_name(arguments: &TokenStream, errors: &mut Errors) -> Ident {
    let default = || Ident::new("routes", Span::call_site());
    if arguments.is_empty() {
        return default();
    }
    if let Ok(pair) = syn::parse2::<MetaNameValue>(arguments.clone())
        && pair.path.is_ident("routes")
        && let Expr::Path(value) = &pair.value
        && let Some(name) = value.path.get_ident()
    {
        return name.clone();
    }
    errors.at(
        arguments,
        "`#[handlers]` takes one option, the name of the method with the routes: `#[handlers(routes = more_routes)]`; those of a route stand on each method's `#[handler(…)]`",
    );
    default()
}

fn is_handler(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|last| last.ident == "handler")
}
