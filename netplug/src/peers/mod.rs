//! Ways to other boxes. `plan` is pure: peers and what the routing table says of their addresses in, routes out; `kernel` brings them about.
//!
//! A box needs nothing of its peers but their addresses and pod ranges: the hardware address of a box's VXLAN device follows from its pod range, and
//! its pods' gateway is the next hop behind the device. So nothing is learned, asked or announced on the wire.

mod kernel;
mod plan;
mod watch;
pub mod wireguard;

pub use kernel::Ways;
pub use watch::Watch;

/// Bytes that VXLAN adds to a packet, with an outer header of IPv4 or IPv6.
pub fn overhead(v4: bool) -> u32 {
    if v4 { 50 } else { 70 }
}

/// Bytes that WireGuard adds to a packet.
pub fn encrypted_overhead(v4: bool) -> u32 {
    if v4 { 60 } else { 80 }
}

/// `amphi` → `amphi-vx`.
pub fn device(prefix: &str) -> String {
    format!("{prefix}-vx")
}

/// `amphi` → `amphi-wg`.
pub fn encrypted_device(prefix: &str) -> String {
    format!("{prefix}-wg")
}
