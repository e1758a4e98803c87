//! What routes need, beside what stands at the broker. Only compares; doing something about it is the router's.

use std::collections::BTreeMap;
use std::path::Path;

use postrider::{Channel, Error, Finding, GroupName, Inventory, Result, Scope};
use serde::Deserialize;

/// The part of `Router::describe()`'s JSON that is looked at.
#[derive(Deserialize)]
struct Described {
    routes: Vec<Route>,
}

#[derive(Deserialize)]
struct Route {
    #[serde(rename = "route")]
    name: String,
    channel: String,
    group: String,
    publishes: Option<String>,
    dead_letter: Option<String>,
    #[serde(default)]
    partitions: Option<u32>,
}

/// The routes of one program.
pub(crate) struct Routes(Vec<Route>);

impl Routes {
    /// Reads the JSON of `Router::describe()`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let wrong = |why: &str| Error::config("doctor", why).with("file", path.display());
        let text = std::fs::read(path).map_err(|e| wrong("the file can't be read").because(e))?;
        let read: Described = serde_json::from_slice(&text).map_err(|e| {
            wrong("this isn't the JSON of `Router::describe()`; write it with `serde_json::to_string(&router.describe()?)`").because(e)
        })?;
        Ok(Self(read.routes))
    }

    /// All that has to be looked up.
    pub(crate) fn scope(&self) -> Result<Scope> {
        let mut wanted: BTreeMap<Channel, Vec<GroupName>> = BTreeMap::new();
        for route in &self.0 {
            let groups = wanted.entry(Channel::new(&*route.channel)?).or_default();
            if let Some(group) = route.group() {
                groups.push(GroupName::new(group)?);
            }
            for channel in route.publishes.iter().chain(&route.dead_letter) {
                wanted.entry(Channel::new(&**channel)?).or_default();
            }
        }
        Ok(Scope::These(wanted.into_iter().collect()))
    }

    /// What is missing or differs, a finding for each route and thing.
    pub(crate) fn compare(&self, there: &Inventory) -> Vec<Finding> {
        self.0.iter().flat_map(|route| route.compare(there)).collect()
    }
}

impl Route {
    /// Its group; `None` for an ephemeral one, which is nowhere until it runs.
    fn group(&self) -> Option<&str> {
        (!self.group.starts_with('(')).then_some(&*self.group)
    }

    fn compare(&self, there: &Inventory) -> Vec<Finding> {
        let what = format!("route {}", self.name);
        let make = "start the router once with `declare=create`, or declare it in the process that needs it";
        let mut found = Vec::new();
        match there.channel(&self.channel) {
            None => {
                found.push(Finding::failed(&what, format!("there is no channel `{}`", self.channel), make));
            }
            Some(channel) => {
                if let Some(group) = self.group() {
                    found.extend(self.compare_group(&what, channel, group, make));
                }
            }
        }
        if let Some(name) = self.dead_letter.as_ref().filter(|name| there.channel(name).is_none()) {
            found.push(Finding::failed(&what, format!("there is no dead-letter channel `{name}`"), make));
        }
        if let Some(name) = self.publishes.as_ref().filter(|name| there.channel(name).is_none()) {
            found.push(Finding::failed(&what, format!("there is no channel `{name}` to publish to"), make));
        }
        if found.is_empty() {
            found.push(Finding::ok(&what, format!("{} → {}: all is there", self.channel, self.group)));
        }
        found
    }

    fn compare_group(
        &self,
        what: &str,
        channel: &postrider::ChannelEntry,
        name: &str,
        make: &str,
    ) -> Option<Finding> {
        let Some(group) = channel.group(name) else {
            return Some(Finding::failed(what, format!("`{}` has no group `{name}`", self.channel), make));
        };
        if let Some(wanted) = self.partitions {
            // where partitions are the channel's, it may have more
            let (found, fits) = match (group.partitions, channel.partitions) {
                (Some(found), _) => (found, found == wanted),
                (None, Some(found)) => (found, found >= wanted),
                // what isn't split has one partition
                (None, None) => (1, wanted == 1),
            };
            if !fits {
                let text = format!("group `{name}` has {found} partitions, the route asks for {wanted}");
                let next = "drain the group, delete its queues or consumers, and start with the new number; or ask for what is there";
                return Some(Finding::failed(what, text, next));
            }
        }
        match (group.lag, group.members) {
            (Some(lag), Some(0)) if lag > 0 => {
                let text = format!("{lag} messages wait, and group `{name}` has no member");
                Some(Finding::warning(what, text, "start the service"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use postrider::{ChannelEntry, GroupEntry};

    use super::*;

    fn routes(json: &str) -> Routes {
        let read: Described = serde_json::from_str(json).unwrap();
        Routes(read.routes)
    }

    #[test]
    fn what_is_missing_or_differs_is_found() {
        let routes = routes(
            r#"{"routes":[
            {"route":"bill","channel":"orders","group":"billing","publishes":"invoices","dead_letter":"orders.billing.dlq","partitions":8},
            {"route":"watch","channel":"orders","group":"(ephemeral)","publishes":null,"dead_letter":null},
            {"route":"ship","channel":"parcels","group":"shipping","publishes":null,"dead_letter":"parcels.shipping.dlq"}]}"#,
        );
        let mut orders = ChannelEntry::new("orders");
        let mut billing = GroupEntry::new("billing");
        (billing.partitions, billing.lag, billing.members) = (Some(4), Some(2), Some(0));
        orders.groups = vec![billing];
        let there = Inventory::new([orders, ChannelEntry::new("invoices")]);
        let told: Vec<_> = routes
            .compare(&there)
            .into_iter()
            .map(|f| format!("{:?} {}: {}", f.grade, f.what, f.found))
            .collect();
        insta::assert_snapshot!(told.join("\n"), @r"
        Failed route bill: group `billing` has 4 partitions, the route asks for 8
        Failed route bill: there is no dead-letter channel `orders.billing.dlq`
        Ok route watch: orders → (ephemeral): all is there
        Failed route ship: there is no channel `parcels`
        Failed route ship: there is no dead-letter channel `parcels.shipping.dlq`
        ");
        let Scope::These(wanted) = routes.scope().unwrap() else { panic!("it names them") };
        assert_eq!(wanted.len(), 5);
    }
}
