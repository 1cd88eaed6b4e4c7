//! The file as written: every key, its type on paper and its default.

use serde::Deserialize;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default = "mode")]
    pub(super) mode: Spanned<String>,
    pub(super) lan: Lan,
    pub(super) wan: Wan,
    #[serde(default)]
    pub(super) upstream: Upstream,
    #[serde(default)]
    pub(super) paths: Paths,
    #[serde(default)]
    pub(super) http: Http,
    #[serde(default)]
    pub(super) ssdp: Ssdp,
    #[serde(default)]
    pub(super) xdp: Xdp,
    #[serde(default)]
    pub(super) ds_lite: Option<DsLite>,
    #[serde(default)]
    pub(super) nat: Nat,
    #[serde(default)]
    pub(super) policy: Policy,
    #[serde(default)]
    pub(super) ipv6: Ipv6,
    #[serde(default)]
    pub(super) pinhole: Vec<Pinhole>,
    #[serde(default)]
    pub(super) device_protection: DeviceProtection,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    #[serde(default)]
    pub(super) reconcile: Reconcile,
    #[serde(default)]
    pub(super) metrics: Metrics,
    #[serde(default)]
    pub(super) log: Log,
    #[serde(default)]
    pub(super) hook: Vec<Hook>,
    #[serde(default)]
    pub(super) mapping: Vec<Mapping>,
}

/// One table of `[[mapping]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mapping {
    pub(super) protocol: Spanned<String>,
    pub(super) external_port: Spanned<i64>,
    pub(super) internal: Spanned<String>,
    #[serde(default)]
    pub(super) remote: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) filtering: Option<Spanned<String>>,
    #[serde(default = "no_text")]
    pub(super) description: Spanned<String>,
}

/// One table of `[[hook]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hook {
    pub(super) events: Spanned<Vec<Spanned<String>>>,
    pub(super) run: Spanned<Vec<Spanned<String>>>,
}

/// A list that may be left out.
pub(super) type List<T> = Spanned<Vec<Spanned<T>>>;

/// One table of `[[policy.rule]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    pub(super) action: Spanned<String>,
    #[serde(default)]
    pub(super) name: Option<Spanned<String>>,
    #[serde(default, rename = "for")]
    pub(super) kind: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) mac: Option<List<String>>,
    #[serde(default)]
    pub(super) address: Option<List<String>>,
    #[serde(default)]
    pub(super) host: Option<List<String>>,
    #[serde(default)]
    pub(super) protocol: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) external_ports: Option<List<toml::Value>>,
    #[serde(default)]
    pub(super) internal_ports: Option<List<toml::Value>>,
    #[serde(default)]
    pub(super) max_mappings: Option<Spanned<i64>>,
    #[serde(default)]
    pub(super) max_pinholes: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lan {
    pub(super) interfaces: Spanned<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wan {
    pub(super) interface: Spanned<String>,
    #[serde(default)]
    pub(super) open_tcp_ports: Vec<Spanned<i64>>,
    #[serde(default)]
    pub(super) open_udp_ports: Vec<Spanned<i64>>,
    #[serde(default = "behind_private_address")]
    pub(super) behind_private_address: Spanned<String>,
    #[serde(default = "access_type")]
    pub(super) access_type: Spanned<String>,
    #[serde(default)]
    pub(super) upstream_bit_rate: Option<Spanned<i64>>,
    #[serde(default)]
    pub(super) downstream_bit_rate: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pinhole {
    pub(super) internal: Spanned<String>,
    #[serde(default)]
    pub(super) internal_port: Option<Spanned<i64>>,
    #[serde(default)]
    pub(super) remote: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) remote_port: Option<Spanned<i64>>,
    #[serde(default = "any")]
    pub(super) protocol: Spanned<String>,
}

/// Where lease files are on Debian and on OpenWrt.
const LEASE_FILES: [&str; 4] = [
    "/var/lib/misc/dnsmasq.leases",
    "/tmp/dhcp.leases",
    "/tmp/hosts/odhcpd",
    "/tmp/odhcpd.leases",
];

/// A section whose keys all have defaults.
macro_rules! section {
    ($name:ident { $($key:ident : $type:ty = $default:expr),+ $(,)? }) => {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            $(pub(super) $key: Spanned<$type>,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: unplaced($default.into()),)+ }
            }
        }
    };
}

section!(Upstream {
    pcp_servers: Vec<Spanned<toml::Value>> = Vec::new(),
    discovery: Vec<Spanned<String>> = ["dhcp", "router", "anycast"].map(|name| unplaced(name.to_owned())),
    third_party: bool = false,
    send_descriptions: bool = false,
    nat_pmp: bool = true,
    igd: bool = false,
});
section!(Paths {
    state_dir: String = "/var/lib/iwf",
    bpffs_dir: String = "/sys/fs/bpf/iwf",
    control_socket: String = "/run/iwf/control.sock",
});
section!(Http {
    port: i64 = 5000,
    max_connections: i64 = 128,
    max_connections_per_host: i64 = 16,
    answer_within_seconds: i64 = 28,
});
section!(Ssdp {
    max_age_seconds: i64 = 1800,
    ttl: i64 = 2,
});
section!(Xdp {
    attach: String = "auto"
});
section!(DsLite {
    aftr: String = "dhcp"
});
section!(Nat {
    ephemeral_ports: String = "share",
    filtering: String = "address-and-port-dependent",
    refusals: String = "answer",
    mss_clamp: toml::Value = "auto",
    external_addresses: Vec<Spanned<String>> = Vec::new(),
});
section!(Policy {
    min_port: i64 = 1024,
    max_mappings_per_host: i64 = 128,
    third_party: bool = false,
    default: String = "allow",
    departed_after_seconds: i64 = 3600,
    lease_files: Vec<Spanned<String>> = LEASE_FILES.map(|path| unplaced(path.to_owned())),
    rule: Vec<Rule> = Vec::new(),
});
section!(Ipv6 {
    filter: bool = true,
    filtering: String = "endpoint-independent",
    open_tcp: bool = false,
    pinholes: bool = true,
    pinhole_wildcards: bool = false,
    max_pinholes_per_host: i64 = 32,
});
section!(DeviceProtection {
    enabled: bool = false,
    port: i64 = 5443,
    max_connections: i64 = 32,
    max_connections_per_host: i64 = 8,
});
section!(Limits {
    sessions: i64 = 65536,
    sessions6: i64 = 32768,
    mappings: i64 = 65536,
    explicit_mappings: i64 = 4096,
});
section!(Timeouts {
    udp_idle_seconds: i64 = 300,
    tcp_established_seconds: i64 = 7440,
    tcp_transitory_seconds: i64 = 240,
    icmp_query_seconds: i64 = 60,
});
section!(Reconcile {
    interval_seconds: i64 = 60
});
section!(Metrics {
    listen: String = ""
});
section!(Log {
    filter: String = "info",
    drops: bool = false,
});

fn any() -> Spanned<String> {
    unplaced("any".to_owned())
}

fn mode() -> Spanned<String> {
    unplaced("auto".to_owned())
}

fn access_type() -> Spanned<String> {
    unplaced("ethernet".to_owned())
}

fn behind_private_address() -> Spanned<String> {
    unplaced("refuse".to_owned())
}

fn no_text() -> Spanned<String> {
    unplaced(String::new())
}

/// A default: it stands in no line of the file.
fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

/// What to do about a message of the TOML reader.
pub(super) fn advice(message: &str) -> String {
    let advice = if message.contains("unknown field") {
        "remove the key, or correct its name to one of those"
    } else if message.contains("missing field") {
        "add it; packaging/iwf.toml shows every key"
    } else if message.contains("invalid type") {
        "write a value of the expected type; packaging/iwf.toml shows every key"
    } else {
        "correct the line to valid TOML"
    };
    advice.to_owned()
}
