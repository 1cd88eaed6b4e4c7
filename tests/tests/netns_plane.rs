//! The data plane and the netlink watcher against live maps, devices and traffic, without the daemon above
//! them.

#[path = "netns_plane/mappings.rs"]
mod mappings;
#[path = "netns_plane/network.rs"]
mod network;
#[path = "netns_plane/router.rs"]
mod router;
#[path = "netns_plane/traffic.rs"]
mod traffic;

use std::time::Duration;

/// How soon something is to happen.
const SOON: Duration = Duration::from_secs(5);
/// How long nothing is to happen.
const SILENCE: Duration = Duration::from_millis(600);
