//! How fast pods may be taken from nodes that are not well. When many nodes fall silent at once, more likely the network is
//! broken than they are. Pure. <https://kubernetes.io/docs/concepts/architecture/nodes/#rate-limits-on-eviction>

use std::time::Duration;

/// Between two nodes whose pods are to go.
const NORMAL: Duration = Duration::from_secs(10);
/// The same when most of a large zone is not well.
const CAREFUL: Duration = Duration::from_secs(100);
/// Zones up to this size lose no pods while most of their nodes are not well.
const SMALL_ZONE: usize = 50;
/// Percent of a zone's nodes that are most of them.
const MOST: usize = 55;

/// Nodes of one zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    pub ready: usize,
    pub unwell: usize,
}

/// The time between two nodes of a zone; `None`: none for now.
pub fn pace(zone: Zone, all: &[Zone]) -> Option<Duration> {
    let is_dark = |zone: &Zone| zone.ready == 0 && zone.unwell > 0;
    if all.iter().all(is_dark) {
        return None;
    }
    let nodes = zone.ready + zone.unwell;
    let most = zone.unwell > 2 && zone.unwell * 100 >= nodes * MOST && !is_dark(&zone);
    match most {
        false => Some(NORMAL),
        true if nodes > SMALL_ZONE => Some(CAREFUL),
        true => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pods_move_while_most_nodes_are_gone() {
        let zone = |ready, unwell| Zone { ready, unwell };
        let alone = |zone: Zone| pace(zone, &[zone]);
        assert_eq!(alone(zone(0, 1)), None, "the only node");
        assert_eq!(alone(zone(1, 1)), Some(NORMAL));
        assert_eq!(alone(zone(2, 3)), None);
        assert_eq!(alone(zone(40, 60)), Some(CAREFUL));
        assert_eq!(alone(zone(60, 40)), Some(NORMAL));
        assert_eq!(
            pace(zone(0, 5), &[zone(0, 5), zone(5, 0)]),
            Some(NORMAL),
            "a whole zone is gone, another is there"
        );
        assert_eq!(pace(zone(0, 5), &[zone(0, 5), zone(0, 1)]), None);
    }
}
