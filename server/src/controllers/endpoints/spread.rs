//! How the endpoints of a service are spread over slices, with as few writes as can be. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::compute::{Group, SERVICE_NAME, Wanted};

/// Endpoints in one slice at most.
const FULL: usize = 100;

#[derive(Debug, Default)]
pub struct Changes {
    pub create: Vec<EndpointSlice>,
    /// Labels, annotations, endpoints and owner of these are to be written.
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<EndpointSlice>,
}

/// What leads from the slices there are to those wanted. Endpoints stay in the slice they are in.
pub fn changes(existing: Vec<EndpointSlice>, wanted: Option<&Wanted>) -> Changes {
    let mut changes = Changes::default();
    let nothing = Wanted::default();
    let wanted = wanted.unwrap_or(&nothing);
    let mut rest = existing;
    for group in &wanted.groups {
        let (own, others) = rest.into_iter().partition(|slice| is_of(slice, group));
        rest = others;
        spread(own, group, wanted, &mut changes);
    }
    changes.delete.extend(rest);
    changes
}

fn is_of(slice: &EndpointSlice, group: &Group) -> bool {
    let ports = slice.ports.as_deref().unwrap_or_default();
    slice.address_type == group.family && ports == group.ports
}

/// What an endpoint is, whatever state it is in.
fn identity(endpoint: &Endpoint) -> (Vec<String>, Option<String>) {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.clone());
    (endpoint.addresses.clone(), uid)
}

fn spread(own: Vec<EndpointSlice>, group: &Group, wanted: &Wanted, changes: &mut Changes) {
    let mut left: BTreeMap<_, &Endpoint> = group
        .endpoints
        .iter()
        .map(|endpoint| (identity(endpoint), endpoint))
        .collect();
    let mut slices: Vec<(EndpointSlice, Vec<Endpoint>)> = Vec::new();
    for slice in own {
        let have = slice.endpoints.as_deref().unwrap_or_default();
        let kept = have
            .iter()
            .filter_map(|endpoint| left.remove(&identity(endpoint)).cloned())
            .collect();
        slices.push((slice, kept));
    }
    // New ones go first where something is written anyway, then where there is most already.
    let mut new: Vec<Endpoint> = left.into_values().cloned().collect();
    let mut order: Vec<usize> = (0..slices.len()).collect();
    order.sort_by_key(|index| {
        let (slice, kept) = &slices[*index];
        (
            slice.endpoints.as_ref() == Some(kept),
            std::cmp::Reverse(kept.len()),
        )
    });
    for index in order {
        let kept = &mut slices[index].1;
        let room = FULL.saturating_sub(kept.len()).min(new.len());
        kept.extend(new.drain(..room));
    }
    let mut any = false;
    let filled = slices.iter().any(|(_, kept)| !kept.is_empty()) || !new.is_empty();
    for (slice, kept) in slices {
        // One empty slice may stay, to tell that there are no endpoints.
        if kept.is_empty() && (filled || any) {
            changes.delete.push(slice);
            continue;
        }
        any = true;
        let updated = described(slice.clone(), kept, wanted);
        if updated != slice {
            changes.update.push(updated);
        }
    }
    let mut new = new.into_iter().peekable();
    while new.peek().is_some() || !any {
        any = true;
        let slice = EndpointSlice {
            address_type: group.family.to_owned(),
            ports: Some(group.ports.clone()),
            metadata: ObjectMeta {
                generate_name: wanted
                    .labels
                    .get(SERVICE_NAME)
                    .map(|name| format!("{name}-")),
                ..ObjectMeta::default()
            },
            ..EndpointSlice::default()
        };
        changes
            .create
            .push(described(slice, new.by_ref().take(FULL).collect(), wanted));
    }
}

fn described(mut slice: EndpointSlice, endpoints: Vec<Endpoint>, wanted: &Wanted) -> EndpointSlice {
    slice.endpoints = Some(endpoints);
    slice.metadata.labels = Some(wanted.labels.clone());
    slice.metadata.annotations =
        (!wanted.annotations.is_empty()).then(|| wanted.annotations.clone());
    slice.metadata.owner_references = wanted.owner.clone().map(|owner| vec![owner]);
    slice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(numbers: impl IntoIterator<Item = usize>) -> Vec<Endpoint> {
        let endpoint = |n| Endpoint {
            addresses: vec![format!("10.0.{}.{}", n / 250, n % 250)],
            ..Endpoint::default()
        };
        numbers.into_iter().map(endpoint).collect()
    }

    fn wanted(endpoints: Vec<Endpoint>) -> Wanted {
        let labels = [(SERVICE_NAME.to_owned(), "web".to_owned())].into();
        Wanted {
            labels,
            groups: vec![Group {
                family: "IPv4",
                ports: vec![],
                endpoints,
            }],
            ..Wanted::default()
        }
    }

    /// The slices after the changes, and how many writes those were.
    fn apply(mut slices: Vec<EndpointSlice>, wanted: &Wanted) -> (Vec<EndpointSlice>, usize) {
        let changes = changes(slices.clone(), Some(wanted));
        let writes = changes.create.len() + changes.update.len() + changes.delete.len();
        slices.retain(|slice| !changes.delete.contains(slice));
        for slice in changes.update {
            if let Some(have) = slices
                .iter_mut()
                .find(|have| have.metadata.name == slice.metadata.name)
            {
                *have = slice;
            }
        }
        for mut slice in changes.create {
            slice.metadata.name = Some(format!("web-{}", slices.len()));
            slice.metadata.generate_name = None;
            slices.push(slice);
        }
        (slices, writes)
    }

    fn sizes(slices: &[EndpointSlice]) -> Vec<usize> {
        slices
            .iter()
            .map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len))
            .collect()
    }

    #[test]
    fn slices_hold_a_hundred_and_a_change_of_one_endpoint_writes_one_slice() {
        let (slices, _) = apply(vec![], &wanted(endpoints(0..250)));
        assert_eq!(sizes(&slices), [100, 100, 50]);
        let (slices, writes) = apply(slices, &wanted(endpoints(0..250)));
        assert_eq!(writes, 0);
        let (slices, writes) = apply(slices, &wanted(endpoints((0..250).filter(|n| *n != 7))));
        assert_eq!((sizes(&slices).iter().sum::<usize>(), writes), (249, 1));
        let (slices, writes) = apply(slices, &wanted(endpoints((0..252).filter(|n| *n != 7))));
        assert_eq!((sizes(&slices).iter().sum::<usize>(), writes), (251, 1));
    }

    #[test]
    fn no_endpoints_are_one_empty_slice() {
        let (slices, _) = apply(vec![], &wanted(vec![]));
        assert_eq!(sizes(&slices), [0]);
        let (slices, _) = apply(slices, &wanted(endpoints(0..150)));
        assert_eq!(sizes(&slices), [100, 50]);
        let (slices, _) = apply(slices, &wanted(vec![]));
        assert_eq!(sizes(&slices), [0]);
        assert_eq!(changes(slices, None).delete.len(), 1);
    }

    #[test]
    fn other_ports_are_another_slice() {
        let (slices, _) = apply(vec![], &wanted(endpoints(0..2)));
        let mut other = wanted(endpoints(0..2));
        other.groups[0].ports.push(Default::default());
        let changes = changes(slices, Some(&other));
        assert_eq!(
            (
                changes.create.len(),
                changes.update.len(),
                changes.delete.len()
            ),
            (1, 0, 1)
        );
    }
}
