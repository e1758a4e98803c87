//! `#[handler]` on a function: the function stays, its future's type carries the route.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{FnArg, Ident, ItemFn, ReturnType, Signature, Type};

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
    let options = options::parse(options, &function.sig.ident.to_string(), &mut errors);
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
    // an argument of the function's own name would hide the function within
    let unhidden = |ident: Ident| if ident == *name { format_ident!("{ident}_") } else { ident };
    let idents: Vec<_> =
        sig.inputs.iter().enumerate().map(|(i, input)| unhidden(outer_name(input, i))).collect();
    let returns = quote_spanned!(output.span()=> const _: fn() = || { fn returns<T: #krate::IntoOutcome>() {} returns::<#output>(); };);
    let inner_inputs = &sig.inputs;
    let outer_doc = attrs.iter();
    quote! {
        #(#outer_doc)*
        #[allow(clippy::unused_async, clippy::manual_async_fn, clippy::needless_pass_by_value)]
        #vis fn #name(#(#idents: #types),*) -> impl #krate::Handling<Output = #output> {
            enum Info {}
            impl #krate::RouteInfo for Info {
                fn options() -> #krate::RouteOptions {
                    #builder
                }
            }
            #returns
            #[allow(clippy::unused_async)]
            async fn #name(#inner_inputs) -> #output #block
            #krate::handled::<Info, _>(#name(#(#idents),*))
        }
    }
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

/// A plain name for an argument, whatever its pattern.
pub(crate) fn outer_name(input: &FnArg, index: usize) -> Ident {
    if let FnArg::Typed(typed) = input
        && let syn::Pat::Ident(ident) = &*typed.pat
    {
        // without its underscore, which is about the body
        let name = ident.ident.to_string();
        let name = name.trim_start_matches('_');
        if !name.is_empty() {
            return Ident::new(name, Span::call_site());
        }
    }
    format_ident!("argument_{index}")
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
