//! Images that are already there.

use crate::scheduler::framework::{MAX_SCORE, Plugin, Prepared};
use crate::scheduler::pod::PodInfo;
use crate::scheduler::snapshot::{NodeInfo, Snapshot};

/// Images smaller than this do not count; upstream's figures, in bytes.
const LEAST: i64 = 23 << 20;
/// More than this for each container counts as this.
const MOST: i64 = 1000 << 20;

/// A node that has the pod's large images is the better one, the more so the more nodes have them.
pub struct ImageLocality;

/// The pod's images: name, and on what share of the nodes they are.
struct Images(Vec<(String, f64)>);

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Prepared> {
        let all = snapshot.nodes().count().max(1) as f64;
        let images = pod.images.iter().map(|image| {
            let name = normal_name(image);
            let having = snapshot
                .nodes()
                .filter(|node| node.images.contains_key(&name))
                .count();
            (name, having as f64 / all)
        });
        let images: Vec<_> = images.filter(|(_, share)| *share > 0.0).collect();
        (!images.is_empty()).then(|| Box::new(Images(images)) as Prepared)
    }

    fn score(&self, prepared: &Prepared, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(Images(images)) = prepared.downcast_ref() else {
            return 0;
        };
        let sizes = images
            .iter()
            .filter_map(|(name, share)| Some(*node.images.get(name)? as f64 * share));
        let most = MOST * pod.images.len().max(1) as i64;
        let sum = (sizes.sum::<f64>() as i64).clamp(LEAST, most);
        MAX_SCORE * (sum - LEAST) / (most - LEAST)
    }
}

/// An image without tag or digest is `:latest`.
fn normal_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}
