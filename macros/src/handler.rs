//! `#[handler]` on a function: the function stays, its future's type carries the route.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, FnArg, Ident, ItemFn, ReturnType, Signature, Type};

use crate::errors::Errors;
use crate::options::{self, Options};

/// The most arguments of a handler.
const MAX_ARGUMENTS: usize = 8;

pub(crate) fn expand(options: TokenStream, item: &TokenStream) -> TokenStream {
    let function: ItemFn = if let Ok(function) = syn::parse2(item.clone()) {
        function
    } else {
        let mut errors = Errors::default();
        errors.at(
            item,
            "`#[handler]` goes on an async function (for methods, put `#[handlers]` on the impl block)",
        );
        let errors = errors.into_tokens();
        return quote!(#errors #item);
    };
    let mut errors = Errors::default();
    let options = options::parse(options, &function.sig.ident.unraw().to_string(), &mut errors);
    check(&function.sig, &options, &mut errors);
    if function.sig.receiver().is_some() {
        errors.at(function.sig.receiver(), "a method becomes a handler by `#[handlers]` on its impl block");
    }
    if !errors.is_empty() {
        // the function is kept, so that nothing else is reported as missing
        let errors = errors.into_tokens();
        return quote!(#errors #function);
    }
    expand_function(function, &options)
}

fn expand_function(function: ItemFn, options: &Options) -> TokenStream {
    let ItemFn { attrs, vis, sig, block, .. } = function;
    let (krate, builder) = (&options.krate, &options.builder);
    let (name, output) = (&sig.ident, output(&sig.output));
    let types: Vec<_> = sig.inputs.iter().filter_map(argument).collect();
    let idents: Vec<_> = sig.inputs.iter().enumerate().map(|(i, input)| outer_name(input, i, name)).collect();
    // an item isn't hygienic, so its name is one that nobody else has
    let route = own("__PostriderRoute");
    let (returns, returned) = (own("__postrider_returns"), own("__PostriderReturned"));
    let returns = quote_spanned!(output.span()=> const _: fn() = || { fn #returns<#returned: #krate::IntoOutcome>() {} #returns::<#output>(); };);
    let inner_inputs = &sig.inputs;
    // what changes the function's body, as `#[tracing::instrument]` does, needs the one that has it
    let (outer, inner): (Vec<_>, Vec<_>) = attrs.iter().partition(|attribute| is_outer(attribute));
    quote! {
        #(#outer)*
        #[allow(
            clippy::unused_async, clippy::manual_async_fn, clippy::needless_pass_by_value,
            clippy::used_underscore_binding
        )]
        #vis fn #name(#(#idents: #types),*) -> impl #krate::Handling<Output = #output> {
            enum #route {}
            impl #krate::RouteInfo for #route {
                fn options() -> #krate::RouteOptions {
                    #builder
                }
            }
            #returns
            #(#inner)*
            #[allow(clippy::unused_async)]
            async fn #name(#inner_inputs) -> #output #block
            #krate::handled::<#route, _>(#name(#(#idents),*))
        }
    }
}

/// A name of the expansion's own.
pub(crate) fn own(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

/// Whether an attribute says something of the function as others see it, or of lints, which hold within it as well.
fn is_outer(attribute: &Attribute) -> bool {
    const OUTER: [&str; 10] =
        ["doc", "deprecated", "must_use", "cfg", "cfg_attr", "allow", "expect", "warn", "deny", "forbid"];
    OUTER.iter().any(|name| attribute.path().is_ident(name))
}

/// What must be so of every handler, function or method.
pub(crate) fn check(sig: &Signature, options: &Options, errors: &mut Errors) {
    if sig.asyncness.is_none() {
        errors.at(sig.fn_token, "a handler is an `async fn`");
    }
    if !sig.generics.params.is_empty() {
        errors.at(&sig.generics, "a handler can't be generic: its message and state are fixed by its types");
    }
    if let Some(variadic) = &sig.variadic {
        errors.at(variadic, "a handler can't be variadic");
    }
    let arguments: Vec<_> = sig.inputs.iter().filter_map(argument).collect();
    if arguments.len() > MAX_ARGUMENTS {
        errors.at(
            arguments[MAX_ARGUMENTS],
            format!("a handler takes at most {MAX_ARGUMENTS} arguments; put several into one state"),
        );
    }
    for ty in &arguments {
        if let Type::Reference(reference) = ty {
            errors.at(reference, "a handler takes its arguments by value; leave out the `&`");
        }
        if let Type::ImplTrait(bounds) = ty {
            errors.at(bounds, "a handler's arguments have named types; `impl Trait` can't be extracted");
        }
    }
    if let Some(publishes) = &options.publishes
        && returns_nothing(&sig.output)
        && !arguments.iter().any(|ty| is_named(ty, "Publish"))
    {
        errors.at(publishes, "the handler returns nothing to publish; return a message, or take `Publish<T>`, or leave this out");
    }
    if let Some(batch) = &options.batch
        && !arguments.iter().any(|ty| is_named(ty, "Batch"))
    {
        errors.at(batch, "`batch` is for handlers that take a `Batch<T>`; this one takes single messages");
    }
}

/// The type of an argument that isn't the receiver.
pub(crate) fn argument(input: &FnArg) -> Option<&Type> {
    match input {
        FnArg::Typed(typed) => Some(&typed.ty),
        FnArg::Receiver(_) => None,
    }
}

/// A plain name for an argument of `function`, whatever its pattern: its own, where it has one.
fn outer_name(input: &FnArg, index: usize, function: &Ident) -> Ident {
    if let FnArg::Typed(typed) = input
        && let syn::Pat::Ident(pattern) = &*typed.pat
        // one of the function's own name would hide the function within
        && pattern.ident != *function
    {
        return pattern.ident.clone();
    }
    own_argument(index)
}

pub(crate) fn own_argument(index: usize) -> Ident {
    own(&format!("__postrider_argument_{index}"))
}

fn output(output: &ReturnType) -> TokenStream {
    match output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, ty) => quote!(#ty),
    }
}

fn returns_nothing(output: &ReturnType) -> bool {
    let ReturnType::Type(_, ty) = output else {
        return true;
    };
    match &**ty {
        Type::Tuple(tuple) => tuple.elems.is_empty(),
        // `Result<(), E>`
        Type::Path(path) => path.path.segments.last().is_some_and(|last| {
            let syn::PathArguments::AngleBracketed(arguments) = &last.arguments else { return false };
            matches!(last.ident.to_string().as_str(), "Result" | "Vec")
                && matches!(arguments.args.first(), Some(syn::GenericArgument::Type(Type::Tuple(t))) if t.elems.is_empty())
        }),
        _ => false,
    }
}

fn is_named(ty: &Type, name: &str) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == name))
}
