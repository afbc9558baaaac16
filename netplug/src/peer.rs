//! Other boxes as the network sees them, and how packets get there.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::peers::wireguard::{self, PublicKey};
use crate::{Error, Result};

/// Another box of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name of the node, for messages.
    pub node: String,
    /// Addresses of the box itself (`InternalIP`), the preferred one first.
    pub ips: Vec<IpAddr>,
    /// Its pods' addresses (`Node.spec.podCIDRs`).
    pub pod_cidrs: Vec<IpNet>,
    /// Its public key, if it told one.
    pub wireguard: Option<PublicKey>,
}

/// How packets to pods of other boxes travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlay {
    /// Plain routes to boxes that are neighbours on a link, VXLAN to the others.
    #[default]
    Auto,
    /// Plain routes only. Boxes that are no neighbours are not reached, unless the routers between know the pod ranges.
    None,
    /// VXLAN to every box, also to neighbours: for links that drop packets of addresses that they do not know.
    Vxlan,
    /// Encrypted by WireGuard to every box; needs a kernel that has it, and the same on every box.
    Wireguard,
}

impl Overlay {
    /// Whether this kernel can do it.
    ///
    /// # Errors
    /// [`Error::Config`], which says what to use instead.
    pub fn check(self) -> Result<()> {
        match self {
            Overlay::Wireguard => wireguard::check(),
            _ => Ok(()),
        }
    }
}

impl FromStr for Overlay {
    type Err = Error;

    fn from_str(text: &str) -> Result<Overlay> {
        match text {
            "auto" => Ok(Overlay::Auto),
            "none" => Ok(Overlay::None),
            "vxlan" => Ok(Overlay::Vxlan),
            "wireguard" => Ok(Overlay::Wireguard),
            other => Err(Error::Config(format!(
                "overlay {other:?}: want auto, none, vxlan or wireguard"
            ))),
        }
    }
}
