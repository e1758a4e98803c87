//! The options of `#[handler(…)]`, as calls of the public builder.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote};
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Expr, LitStr, Meta, MetaNameValue, Token};

use crate::errors::{Errors, nearest, suggestion};
use crate::values::{as_word, count, duration_tokens, named, path, positive, text, word};
use crate::{breaker, dead_letters, idempotency, names, rate, retry};

const KNOWN: [&str; 26] = [
    "channel",
    "group",
    "ephemeral",
    "name",
    "publishes",
    "order",
    "partitions",
    "concurrency",
    "workers",
    "max_in_flight",
    "max_in_flight_bytes",
    "start",
    "timeout",
    "retry",
    "breaker",
    "rate",
    "dead_letter",
    "dead_letter_for",
    "on_expired",
    "on_gap",
    "batch",
    "crash_limit",
    "claim_timeout",
    "native",
    "crate",
    "idempotency",
];

const BREAKER: &str = "write `breaker(failure_rate = 0.5, …)` or `breaker = classical`";
const RATE: &str = "write `rate(limit = 100, per = \"1s\")`";
const NO_DEAD_LETTER: &str = "in quotes it is a channel called `none`; for no dead letters write `dead_letter = none` (for a channel of that name, `RouteOptions::dead_letter(\"none\")`)";
const DEAD_LETTER_FOR: &str = "write `dead_letter_for(undecodable = \"…\")`";

/// What was said of a route.
pub(crate) struct Options {
    /// `RouteOptions::new(…)…`, as tokens.
    pub(crate) builder: TokenStream,
    /// Where the types are: `::postrider::__private` unless said.
    pub(crate) krate: TokenStream,
    /// Where each option that the signature must agree with was said.
    pub(crate) publishes: Option<Meta>,
    pub(crate) batch: Option<Meta>,
}

/// Reads the options; `function` is the handler's name unless another is said.
pub(crate) fn parse(tokens: TokenStream, function: &str, errors: &mut Errors) -> Options {
    let items = match Punctuated::<Meta, Token![,]>::parse_terminated.parse2(tokens) {
        Ok(items) => items,
        Err(error) => {
            errors.push(syn::Error::new(
                error.span(),
                format!("expected options as `name = value`, separated by commas ({error})"),
            ));
            Punctuated::new()
        }
    };
    let krate = krate(&items, errors);
    let mut reader = Reader {
        krate: krate.clone(),
        calls: TokenStream::new(),
        seen: Vec::new(),
        meant: Vec::new(),
        errors,
    };
    items.iter().for_each(|item| reader.read(item));
    let Reader { calls, seen, meant, .. } = reader;
    let find = |name: &str| seen.iter().find(|(n, _)| n == name).map(|(_, meta)| meta.clone());
    let value = |name: &str| match find(name) {
        Some(Meta::NameValue(pair)) => match pair.value {
            Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text),
            _ => None,
        },
        _ => None,
    };
    let call_site = |what: &str| syn::Error::new(Span::call_site(), what);
    // a misspelt option isn't missing as well
    if find("channel").is_none() && !meant.contains(&"channel") {
        errors.push(call_site("a handler needs a channel to read: `channel = \"orders\"`"));
    }
    let has_group = find("group").is_some() || find("ephemeral").is_some();
    if !has_group && !meant.contains(&"group") && !meant.contains(&"ephemeral") {
        errors.push(call_site("a handler needs a group to read for: `group = \"billing\"` (or `ephemeral` for a copy of its own)"));
    }
    let mut clash = |a: &str, b: &str, why: &str| {
        if let (Some(_), Some(second)) = (find(a), find(b)) {
            errors.at(second, format!("`{a}` and `{b}` contradict each other: {why}"));
        }
    };
    clash("group", "ephemeral", "an ephemeral handler has a copy of the channel of its own, and no group");
    clash("ephemeral", "idempotency", "what was handled is remembered for a group");
    clash("ephemeral", "partitions", "partitions are shared by the members of a group");
    let unordered = matches!(find("order"), Some(Meta::NameValue(pair)) if as_word(&pair.value).as_deref() == Some("none"));
    if let (true, Some(place)) = (unordered, find("partitions")) {
        errors.at(place, "`order = none` and `partitions` contradict each other: without order the members share one queue");
    }
    if let (false, Some(place)) = (unordered, find("retry").and_then(|retry| retry::durable(&retry))) {
        errors.at(place, "a `durable` retry waits at the broker and loses its place: say `order = none` as well, or leave it out and retry in place");
    }
    if let (Some(channel), Some(publishes)) = (value("channel"), value("publishes"))
        && channel.value() == publishes.value()
    {
        errors.at(publishes, "the handler would publish to the channel that it reads: that never ends");
    }
    let empty = || LitStr::new("", Span::call_site());
    let channel = value("channel").unwrap_or_else(empty);
    let start = if let Some(group) = value("group") {
        quote!(#krate::RouteOptions::new(#channel, #group))
    } else {
        quote!(#krate::RouteOptions::ephemeral(#channel))
    };
    let name = value("name").unwrap_or_else(|| LitStr::new(function, Span::call_site()));
    Options {
        builder: quote!(#start.name(#name) #calls),
        krate,
        publishes: find("publishes"),
        batch: find("batch"),
    }
}

fn krate(items: &Punctuated<Meta, Token![,]>, errors: &mut Errors) -> TokenStream {
    let said = items.iter().find(|item| item.path().is_ident("crate"));
    match said {
        None => quote!(::postrider::__private),
        Some(Meta::NameValue(pair)) => {
            path(&pair.value, errors).unwrap_or_else(|| quote!(::postrider::__private))
        }
        Some(other) => {
            errors.at(other, "write `crate = \"path\"`");
            quote!(::postrider::__private)
        }
    }
}

struct Reader<'a> {
    krate: TokenStream,
    calls: TokenStream,
    seen: Vec<(String, Meta)>,
    /// What misspelt options were meant to be.
    meant: Vec<&'static str>,
    errors: &'a mut Errors,
}

impl Reader<'_> {
    fn read(&mut self, item: &Meta) {
        let name = item.path().get_ident().map(ToString::to_string).unwrap_or_default();
        if !KNOWN.contains(&&*name) {
            let known: Vec<_> = KNOWN.iter().copied().filter(|k| *k != "crate").collect();
            let written = item.path().to_token_stream().to_string();
            self.meant.extend(nearest(&written, &known));
            return self
                .errors
                .at(item.path(), format!("unknown option `{written}`; {}", suggestion(&written, &known)));
        }
        if name != "native" && self.seen.iter().any(|(other, _)| *other == name) {
            return self.errors.at(item, format!("`{name}` stands twice"));
        }
        self.seen.push((name.clone(), item.clone()));
        match item {
            Meta::NameValue(pair) => self.pair(&name, pair),
            Meta::Path(_) if name == "ephemeral" => {}
            Meta::List(list) if name == "retry" => {
                let retry = retry::parse(list, &self.krate, self.errors);
                self.calls.extend(quote!(.retry(#retry)));
            }
            Meta::List(list) if name == "idempotency" => {
                let once = idempotency::parse(list, &self.krate, self.errors);
                self.calls.extend(quote!(.idempotency(#once)));
            }
            Meta::List(list) if name == "breaker" => {
                let policy = breaker::parse(list, &self.krate, self.errors);
                self.calls.extend(quote!(.breaker(#policy)));
            }
            Meta::List(list) if name == "rate" => {
                let policy = rate::parse(list, &self.krate, self.errors);
                self.calls.extend(quote!(.rate(#policy)));
            }
            Meta::List(list) if name == "dead_letter_for" => {
                self.calls.extend(dead_letters::parse(list, &self.krate, self.errors));
            }
            Meta::List(list) if name == "native" => self.native(list),
            other if name == "retry" => {
                self.errors.at(other, "write `retry(attempts = 5, …)` or `retry = never`");
            }
            other if name == "breaker" => self.errors.at(other, BREAKER),
            other if name == "rate" => self.errors.at(other, RATE),
            other if name == "dead_letter_for" => self.errors.at(other, DEAD_LETTER_FOR),
            other if name == "native" => self.errors.at(other, "write `native(\"name\" = \"value\")`"),
            other => self.errors.at(other, format!("write `{name} = …`")),
        }
    }

    fn pair(&mut self, name: &str, MetaNameValue { value, .. }: &MetaNameValue) {
        let krate = self.krate.clone();
        let call = match name {
            // these make the first call, or are read elsewhere
            "channel" => return drop(named(value, names::channel, self.errors)),
            "group" => return drop(named(value, names::group, self.errors)),
            "name" => return drop(text(value, self.errors)),
            "crate" => return,
            "publishes" => {
                named(value, names::channel, self.errors).map(|channel| quote!(.publishes(#channel)))
            }
            "order" => {
                self.variant(value, &["key", "partition", "none"]).map(|v| quote!(.order(#krate::Order::#v)))
            }
            "on_expired" => self
                .variant(value, &["dead_letter", "drop"])
                .map(|v| quote!(.on_expired(#krate::OnExpired::#v))),
            "on_gap" => {
                self.variant(value, &["continue", "stop"]).map(|v| quote!(.on_gap(#krate::OnGap::#v)))
            }
            "start" => {
                self.variant(value, &["earliest", "latest"]).map(|v| quote!(.start(#krate::Start::#v)))
            }
            "partitions" => self.partitions(value),
            "concurrency" => count(value, self.errors).map(|n| quote!(.concurrency(#n as usize))),
            "workers" => count(value, self.errors).map(|n| quote!(.workers(#n as usize))),
            "max_in_flight" => count(value, self.errors).map(|n| quote!(.max_in_flight(#n as usize))),
            "max_in_flight_bytes" => {
                count(value, self.errors).map(|n| quote!(.max_in_flight_bytes(#n as usize)))
            }
            "batch" => count(value, self.errors).map(|n| quote!(.batch(#n as usize))),
            // more than can be counted is never reached
            "crash_limit" => count(value, self.errors)
                .map(|n| u32::try_from(n).unwrap_or(u32::MAX))
                .map(|n| quote!(.crash_limit(#n))),
            "timeout" => positive(value, self.errors).map(duration_tokens).map(|d| quote!(.timeout(#d))),
            "claim_timeout" => {
                positive(value, self.errors).map(duration_tokens).map(|d| quote!(.claim_timeout(#d)))
            }
            "dead_letter" if as_word(value).is_some() => {
                word(value, &["none"], self.errors).map(|_| quote!(.no_dead_letter()))
            }
            "dead_letter" => dead_letters::channel(value, NO_DEAD_LETTER, self.errors)
                .map(|channel| quote!(.dead_letter(#channel))),
            "retry" if as_word(value).is_none() => {
                self.errors.at(value, "write `retry(attempts = 5, …)` or `retry = never`");
                None
            }
            "retry" => word(value, &["never"], self.errors).map(|_| quote!(.retry(#krate::Retry::never()))),
            "breaker" if as_word(value).is_none() => {
                self.errors.at(value, BREAKER);
                None
            }
            "breaker" => breaker::preset(value, &krate, self.errors).map(|policy| quote!(.breaker(#policy))),
            "rate" => {
                self.errors.at(value, RATE);
                None
            }
            "dead_letter_for" => {
                self.errors.at(value, DEAD_LETTER_FOR);
                None
            }
            "ephemeral" => {
                self.errors.at(value, "`ephemeral` stands alone, without a value");
                None
            }
            "native" => {
                self.errors.at(value, "write `native(\"name\" = \"value\")`");
                None
            }
            _ => idempotency::by(value, &krate, self.errors).map(|once| quote!(.idempotency(#once))),
        };
        self.calls.extend(call);
    }

    /// The variant of a word: `dead_letter` is `DeadLetter`.
    fn variant(&mut self, value: &Expr, known: &[&str]) -> Option<syn::Ident> {
        let word = word(value, known, self.errors)?;
        let camel: String = word.split('_').map(|part| part[..1].to_uppercase() + &part[1..]).collect();
        Some(syn::Ident::new(&camel, Span::call_site()))
    }

    fn partitions(&mut self, value: &Expr) -> Option<TokenStream> {
        let partitions = count(value, self.errors)?;
        if !partitions.is_power_of_two() || partitions > 64 {
            self.errors.at(value, "must be 1, 2, 4, 8, 16, 32 or 64");
            return None;
        }
        let partitions = partitions as u32;
        Some(quote!(.partitions(#partitions)))
    }

    fn native(&mut self, list: &syn::MetaList) {
        type Pairs = Punctuated<Pair, Token![,]>;
        struct Pair(LitStr, LitStr);
        impl syn::parse::Parse for Pair {
            fn parse(input: syn::parse::ParseStream<'_>) -> syn::Result<Self> {
                let name = input.parse()?;
                input.parse::<Token![=]>()?;
                Ok(Self(name, input.parse()?))
            }
        }
        match list.parse_args_with(Pairs::parse_terminated) {
            Ok(pairs) => pairs
                .into_iter()
                .for_each(|Pair(name, value)| self.calls.extend(quote!(.native(#name, #value)))),
            Err(_) => self.errors.at(list, "write `native(\"name\" = \"value\")`"),
        }
    }
}
