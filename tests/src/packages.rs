//! Third-party programs the lab runs but does not install: unpacked Debian packages below `target/cache`.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Packages of the carrier: Debian's PCP server for nftables and the two libraries it links.
pub const CARRIER: [&str; 3] = ["miniupnpd-nftables", "libnftnl11", "libmnl0"];

/// Packages of the STUN client and server that say what kind of NAT they see.
pub const STUN: [&str; 2] = ["stun-client", "stun-server"];

/// Packages of two DHCP servers and two DHCP clients: dnsmasq, Kea, and what they link that is not everywhere; udhcpc, a
/// part of busybox, and dhclient.
pub const DHCP: [&str; 13] = [
    "dnsmasq-base",
    "kea-dhcp4-server",
    "kea-dhcp6-server",
    "kea-common",
    "busybox",
    "isc-dhcp-client",
    "liblog4cplus-2.0.5",
    "libmariadb3",
    "libpq5",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libdbus-1-3",
    "libldap-2.5-0",
];

/// Packages of UPnP clients: GUPnP's with what calls it from Python, one in Perl, libupnp, a BitTorrent client and a library
/// of such, with what they link that is not everywhere; two programs in Go.
pub const CLIENTS: [&str; 40] = [
    "gir1.2-gupnpigd-1.0",
    "libgupnp-igd-1.0-4",
    "libgupnp-1.6-0",
    "libgssdp-1.6-0",
    "libsoup-3.0-0",
    "gir1.2-glib-2.0",
    "libgirepository-1.0-1",
    "libglib2.0-0",
    "python3-gi",
    "transmission-cli",
    "libminiupnpc17",
    "libnatpmp1",
    "libevent-2.1-7",
    "libcurl4",
    "librtmp1",
    "libssh2-1",
    "libnghttp2-14",
    "libpsl5",
    "libbrotli1",
    "libsqlite3-0",
    "libxml2",
    "gir1.2-gupnp-1.6",
    "gir1.2-gssdp-1.6",
    "gir1.2-soup-3.0",
    "gir1.2-freedesktop",
    "libicu72",
    "libsasl2-2",
    "libgssapi-krb5-2",
    "libkrb5-3",
    "libk5crypto3",
    "libkrb5support0",
    "libkeyutils1",
    "libnet-upnp-perl",
    "libupnp13",
    "libixml10",
    "syncthing",
    "sia",
    "python3-libtorrent",
    "libtorrent-rasterbar2.0",
    "libboost-python1.74.0",
];

/// Packages of the reader of metrics that Prometheus's own library has, for Debian's Python.
pub const METRICS: [&str; 2] = ["python3-prometheus-client", "python3-decorator"];

/// Top of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Where packages are unpacked.
pub fn cache() -> PathBuf {
    workspace().join("target/cache/debian")
}

/// The carrier's PCP server.
///
/// # Errors
/// If it has not been fetched; the message says how to.
pub fn miniupnpd() -> Result<PathBuf> {
    unpacked("usr/sbin/miniupnpd")
}

/// A STUN client of RFC 3489, which classifies NATs.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn stun_client() -> Result<PathBuf> {
    unpacked("usr/bin/stun")
}

/// A STUN server with two addresses and two ports.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn stun_server() -> Result<PathBuf> {
    unpacked("usr/sbin/stund")
}

/// A DHCP server of both protocols.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn dnsmasq() -> Result<PathBuf> {
    unpacked("usr/sbin/dnsmasq")
}

/// Another DHCP server, one program for each protocol.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn kea(protocol: u8) -> Result<PathBuf> {
    unpacked(&format!("usr/sbin/kea-dhcp{protocol}"))
}

/// Many small programs in one, among them a DHCP client.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn busybox() -> Result<PathBuf> {
    unpacked("bin/busybox")
}

/// A DHCP client.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn dhclient() -> Result<PathBuf> {
    unpacked("sbin/dhclient")
}

/// A BitTorrent client, which opens its port by UPnP; `create` makes what it can share.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn transmission(part: &str) -> Result<PathBuf> {
    unpacked(&format!("usr/bin/transmission-{part}"))
}

/// GUPnP's description for programs in other languages.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn gupnp_igd() -> Result<PathBuf> {
    let arch = std::env::consts::ARCH;
    unpacked(&format!(
        "usr/lib/{arch}-linux-gnu/girepository-1.0/GUPnPIgd-1.0.typelib"
    ))
}

/// What Debian's Python needs in its environment to use GUPnP.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn gupnp() -> Result<Vec<(&'static str, String)>> {
    let modules = unpacked("usr/lib/python3/dist-packages/gi/__init__.py")?;
    let modules = modules.parent().and_then(Path::parent).unwrap_or(&modules);
    let machine = unpacked(&format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))?;
    let types = machine.join("girepository-1.0");
    ensure!(
        types.join("GUPnP-1.6.typelib").exists(),
        "{} has no GUPnP: run `cargo xtask setup`",
        types.display()
    );
    Ok(vec![
        ("LD_LIBRARY_PATH", library_path()?),
        ("GI_TYPELIB_PATH", types.display().to_string()),
        ("PYTHONPATH", modules.display().to_string()),
    ])
}

/// Where Debian's Python finds the reader of metrics.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn prometheus_client() -> Result<PathBuf> {
    let modules = "usr/lib/python3/dist-packages";
    unpacked(&format!(
        "{modules}/prometheus_client/openmetrics/parser.py"
    ))?;
    Ok(cache().join(modules))
}

/// Where Perl finds Net::UPnP.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn net_upnp() -> Result<PathBuf> {
    let module = unpacked("usr/share/perl5/Net/UPnP.pm")?;
    let root = module.parent().and_then(Path::parent);
    Ok(root.unwrap_or(&module).to_owned())
}

/// What Python needs in its environment to call libupnp.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn libupnp() -> Result<Vec<(&'static str, String)>> {
    let arch = std::env::consts::ARCH;
    for library in ["libupnp.so.13", "libixml.so.10"] {
        unpacked(&format!("usr/lib/{arch}-linux-gnu/{library}"))?;
    }
    Ok(vec![("LD_LIBRARY_PATH", library_path()?)])
}

/// A program that keeps directories in step; with a UPnP client of its own, in Go.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn syncthing() -> Result<PathBuf> {
    unpacked("usr/bin/syncthing")
}

/// A node of a storage network; it opens its port by goupnp, which most programs in Go use.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn siad() -> Result<PathBuf> {
    unpacked("usr/bin/siad")
}

/// What Debian's Python needs in its environment to use libtorrent.
///
/// # Errors
/// As for [`miniupnpd`].
pub fn libtorrent() -> Result<Vec<(&'static str, String)>> {
    let modules = cache().join("usr/lib/python3/dist-packages");
    let is_there = std::fs::read_dir(&modules).is_ok_and(|entries| {
        let mut names = entries.flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().starts_with("libtorrent."))
    });
    ensure!(
        is_there,
        "{} has no libtorrent: run `cargo xtask setup`",
        modules.display()
    );
    Ok(vec![
        ("LD_LIBRARY_PATH", library_path()?),
        ("PYTHONPATH", modules.display().to_string()),
    ])
}

fn unpacked(program: &str) -> Result<PathBuf> {
    let path = cache().join(program);
    ensure!(
        path.exists(),
        "{} is missing: run `cargo xtask setup`",
        path.display()
    );
    Ok(path)
}

/// The value of `LD_LIBRARY_PATH` for unpacked programs.
///
/// # Errors
/// If the libraries have not been fetched.
pub fn library_path() -> Result<String> {
    let base = cache().join("usr/lib");
    let dirs: Vec<String> = std::fs::read_dir(&base)
        .map(|entries| {
            entries
                .flatten()
                .filter(|entry| entry.path().is_dir())
                .map(|entry| entry.path().display().to_string())
                .collect()
        })
        .unwrap_or_default();
    ensure!(
        !dirs.is_empty(),
        "no libraries in {}: run `cargo xtask setup`",
        base.display()
    );
    Ok(dirs.join(":"))
}

/// A program of this workspace (`iwfd`, `iwfctl`), from the build directory of the running executable.
///
/// # Errors
/// If it has not been built.
pub fn built(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.ok_or_else(|| anyhow::anyhow!("{name} is not built: run `cargo xtask build`"))
}
