//! Netlink, the kernel's configuration protocol, as far as this crate needs it: written here because one small encoder serves rtnetlink, nftables
//! and conntrack alike, blocking and without a task that waits.

pub mod message;
mod socket;

pub use message::Message;
pub use socket::Socket;
