//! How far traffic goes that may go to any endpoint: the hints of EndpointSlices, as kube-proxy reads them
//! (<https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-distribution>, KEP-2433, KEP-3015). Pure.

use k8s_openapi::api::discovery::v1::Endpoint;

/// Where this box is.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub node: String,
    /// The node's label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
}

/// Whom an endpoint is for.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    zones: Vec<String>,
    nodes: Vec<String>,
}

impl Hints {
    pub fn of(endpoint: &Endpoint) -> Hints {
        let Some(hints) = &endpoint.hints else {
            return Hints::default();
        };
        let zones = hints.for_zones.iter().flatten();
        let nodes = hints.for_nodes.iter().flatten();
        Hints {
            zones: zones.map(|z| z.name.clone()).collect(),
            nodes: nodes.map(|n| n.name.clone()).collect(),
        }
    }
}

/// Which endpoints are near enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Node,
    Zone,
    Everywhere,
}

impl Place {
    /// The nearest reach that has an endpoint, of those that all ready endpoints of a port give hints for.
    pub fn reach<'a>(&self, ready: impl Iterator<Item = &'a Hints>) -> Reach {
        let (mut all_nodes, mut all_zones) = (true, true);
        let (mut node, mut zone) = (false, false);
        for hints in ready {
            all_nodes &= !hints.nodes.is_empty();
            all_zones &= !hints.zones.is_empty();
            node |= self.within(Reach::Node, hints);
            zone |= self.within(Reach::Zone, hints);
        }
        match (all_nodes && node, all_zones && zone) {
            (true, _) => Reach::Node,
            (false, true) => Reach::Zone,
            (false, false) => Reach::Everywhere,
        }
    }

    /// Whether an endpoint is near enough.
    pub fn within(&self, reach: Reach, hints: &Hints) -> bool {
        match reach {
            Reach::Node => hints.nodes.contains(&self.node),
            Reach::Zone => self.zone.as_ref().is_some_and(|z| hints.zones.contains(z)),
            Reach::Everywhere => true,
        }
    }
}
