//! One ready box for all tests of a file.

use std::sync::OnceLock;

use crate::{EdgeBox, Kubectl, Lan, Registry};

/// A ready all-in-one box with a registry, on a LAN. It lives until the test process ends; each test works in a
/// namespace of its own.
pub struct Shared {
    pub edge_box: EdgeBox,
    pub registry: Registry,
    pub lan: Lan,
}

/// The box of this test process, started by the first caller.
#[track_caller]
pub fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let lan = Lan::new();
        let edge_box = EdgeBox::ready(&lan);
        Shared {
            registry: Registry::start(&edge_box),
            edge_box,
            lan,
        }
    })
}

/// kubectl in a new namespace of the shared box.
#[track_caller]
pub fn namespace(name: &str) -> Kubectl {
    shared().edge_box.kubectl().new_namespace(name)
}
