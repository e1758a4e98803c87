//! The adapters that are tested, and the brokers that each is tested on. The one list of both.

/// An adapter under test.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Adapter {
    /// Its name in the conformance table; its package is `postrider-NAME`.
    pub(crate) name: &'static str,
    /// The brokers it needs, by the names of `cargo xtask brokers`; of several versions the oldest first.
    pub(crate) brokers: &'static [&'static str],
}

/// All adapters, in the order of the conformance table.
pub(crate) const ADAPTERS: &[Adapter] = &[
    Adapter { name: "memory", brokers: &[] },
    Adapter { name: "nats", brokers: &["nats"] },
    Adapter { name: "kafka", brokers: &["kafka"] },
    Adapter { name: "rabbitmq", brokers: &["rabbitmq", "rabbitmq4"] },
];

/// The names of all adapters.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ADAPTERS.iter().map(|adapter| adapter.name)
}

/// The adapters of these names; all of them if none is named.
pub(crate) fn chosen(only: &[String]) -> impl Iterator<Item = &'static Adapter> {
    ADAPTERS.iter().filter(move |adapter| only.is_empty() || only.iter().any(|name| name == adapter.name))
}

/// The adapter of that name.
pub(crate) fn find(name: &str) -> Option<&'static Adapter> {
    ADAPTERS.iter().find(|adapter| adapter.name == name)
}

/// What nextest is to run where only some adapters are tested: everything but the integration tests of
/// the others' packages, and tests that stand in a module of their names. `None` where all are tested.
pub(crate) fn filter(tested: &[&Adapter]) -> Option<String> {
    let others: Vec<_> = ADAPTERS
        .iter()
        .filter(|adapter| !tested.contains(adapter))
        .map(|Adapter { name, .. }| {
            format!("not ((package(postrider-{name}) & kind(test)) | test(/(^|::){name}::/))")
        })
        .collect();
    (!others.is_empty()).then(|| others.join(" & "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_adapters_need_no_filter() {
        let all: Vec<_> = ADAPTERS.iter().collect();
        assert_eq!(filter(&all), None);
    }

    #[test]
    fn an_adapter_that_is_not_tested_is_filtered_out_and_the_tested_one_is_not() {
        let memory = find("memory").expect("the embedded broker is tested");
        let filter = filter(&[memory]).expect("others are left out");
        assert!(filter.contains("package(postrider-nats)"), "{filter}");
        assert!(!filter.contains("memory"), "{filter}");
    }
}
