//! What kind of NAT others see: the classification of RFC 3489 section 10.1 by a program that knows nothing of this one.
//!
//! Read before editing: RFC 4787 sections 4 to 6 and RFC 5780 section 4 for today's words: "Independent Mapping" is
//! REQ-1, the filter is REQ-8, "preserves ports" is section 4.2.1, "will hairpin" REQ-9.
//!
//! The client asks a server with two addresses and two ports: whether the mapping is the same for another destination,
//! whether answers from another address, or only from another port of the same, come in; and it sends to its own
//! external endpoint.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use iwf_tests::cascade::Scripted;
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::packages;
use iwf_tests::process::Process;
use iwf_tests::script::{Manner, ScriptedServer};
use iwf_tests::topology::{CARRIER, Lab, REMOTE};

const SOON: Duration = Duration::from_secs(10);

/// Starts a server on the host's address and one more, which its interface gets.
fn server(host: &Namespace, interface: &str, first: Ipv4Addr) -> Result<Process> {
    let [a, b, c, _] = first.octets();
    let second = Ipv4Addr::new(a, b, c, 200);
    host.address(interface, second, 24)?;
    let (program, first, second) = (
        packages::stun_server()?,
        first.to_string(),
        second.to_string(),
    );
    let argv = [
        program.as_os_str(),
        "-v".as_ref(),
        "-h".as_ref(),
        first.as_ref(),
        "-a".as_ref(),
        second.as_ref(),
    ];
    let mut server = host.spawn("stund", &argv)?;
    // Its fourth socket is the last.
    server.wait_for_log("Opened port 3479", SOON)?;
    Ok(server)
}

/// What the client says of the way from `host` to the server.
fn seen(host: &Namespace, server: Ipv4Addr) -> Result<String> {
    let (program, server) = (packages::stun_client()?, server.to_string());
    let said = host.run(&[program.as_os_str(), server.as_ref()])?.text();
    let line = said.lines().find_map(|line| line.strip_prefix("Primary: "));
    let line = line.with_context(|| format!("no verdict:\n{said}"))?;
    Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A section of the configuration, and the kind of NAT that it makes.
const KINDS: [(&str, &str); 3] = [
    (
        "",
        "Independent Mapping, Port Dependent Filter, preserves ports, will hairpin",
    ),
    (
        "[nat]\nfiltering = \"address-dependent\"\n",
        "Independent Mapping, Address Dependent Filter, preserves ports, will hairpin",
    ),
    (
        "[nat]\nfiltering = \"endpoint-independent\"\n",
        "Independent Mapping, Independent Filter, preserves ports, will hairpin",
    ),
];

#[test]
fn the_nat_is_of_the_kind_that_is_configured() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    for (section, kind) in KINDS {
        let lab = Lab::new()?;
        let _upstream = ScriptedServer::start(&lab, Manner::Grant)?;
        let _server = server(&lab.cgn, "br0", CARRIER)?;
        let options = Options {
            more: section,
            ..Options::default()
        };
        let _iwfd = Iwfd::start(&lab, &options)?;
        assert_eq!(seen(&lab.lan1, CARRIER)?, kind, "with {section:?}");
    }
    Ok(())
}

/// Behind two NATs the stricter of each behaviour is seen, and the carrier's does not hairpin.
#[test]
fn behind_both_nats_the_carriers_behaviour_is_seen() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let lab = &scripted.lab;
    let _server = server(&lab.inet, "eth0", REMOTE)?;
    assert_eq!(
        seen(&lab.lan1, REMOTE)?,
        "Independent Mapping, Port Dependent Filter, preserves ports, no hairpin"
    );
    Ok(())
}
