//! `upnpc` of miniupnpc: the client that most applications embed, written by others and unmodified.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};

use crate::netns::Namespace;

/// A call of `upnpc` on a host of the LAN and what it printed.
#[derive(Clone, Debug)]
pub struct Call {
    /// The command as typed.
    pub command: String,
    /// What it printed.
    pub output: String,
}

impl Call {
    /// The line that contains `needle`.
    ///
    /// # Errors
    /// If there is none; the output is in the error.
    pub fn line(&self, needle: &str) -> Result<&str> {
        self.output
            .lines()
            .find(|line| line.contains(needle))
            .map(str::trim)
            .with_context(|| {
                format!(
                    "`{}` said nothing of {needle:?}:\n{}",
                    self.command, self.output
                )
            })
    }
}

/// Runs `upnpc` with those words.
///
/// # Errors
/// If it cannot be started.
pub fn call(host: &Namespace, words: &[&str]) -> Result<Call> {
    let mut argv = vec!["upnpc"];
    argv.extend(words);
    let output = host.run(&argv)?.text();
    Ok(Call {
        command: argv.join(" "),
        output,
    })
}

/// `upnpc -s`: finds the gateway and asks its external address.
///
/// # Errors
/// If no gateway is found or it names no address.
pub fn external_address(host: &Namespace) -> Result<(Call, Ipv4Addr)> {
    let done = call(host, &["-s"])?;
    done.line("Found valid IGD")?;
    let address = done
        .line("ExternalIPAddress")?
        .split('=')
        .nth(1)
        .and_then(|text| text.trim().parse().ok())
        .with_context(|| format!("upnpc names an address:\n{}", done.output))?;
    Ok((done, address))
}

/// `upnpc -a`: opens a port for the host itself; returns the external endpoint the gateway confirmed.
///
/// # Errors
/// If the gateway refuses; the output of `upnpc` is in the error.
pub fn open(
    host: &Namespace,
    client: Ipv4Addr,
    internal_port: u16,
    external_port: u16,
    protocol: &str,
) -> Result<(Call, SocketAddrV4)> {
    let (client, internal, external) = (
        client.to_string(),
        internal_port.to_string(),
        external_port.to_string(),
    );
    let done = call(
        host,
        &["-a", &client, &internal, &external, protocol, "3600"],
    )?;
    // "external 11.22.33.1:8080 TCP is redirected to internal 192.168.1.10:80 (duration=3600)"
    let line = done.line("is redirected to internal")?;
    let endpoint = line
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("read {line:?}"))?;
    Ok((done, endpoint))
}

/// `upnpc -a` at the gateway whose description is there, without a search; whether the gateway has confirmed it.
///
/// # Errors
/// If it cannot be started.
pub fn opens_at(
    host: &Namespace,
    url: &str,
    client: Ipv4Addr,
    port: u16,
    protocol: &str,
) -> Result<bool> {
    let (client, port) = (client.to_string(), port.to_string());
    let words = ["-u", url, "-a", &client, &port, &port, protocol, "3600"];
    let done = call(host, &words)?;
    Ok(done.line("is redirected to internal").is_ok())
}

/// `upnpc -d` in the same way.
///
/// # Errors
/// If it cannot be started.
pub fn closes_at(host: &Namespace, url: &str, port: u16, protocol: &str) -> Result<bool> {
    let done = call(host, &["-u", url, "-d", &port.to_string(), protocol])?;
    let line = done.line("UPNP_DeletePortMapping() returned");
    Ok(line.is_ok_and(|line| line.ends_with(": 0")))
}

/// `upnpc -d`: closes a port.
///
/// # Errors
/// If the gateway refuses; the output of `upnpc` is in the error.
pub fn close(host: &Namespace, external_port: u16, protocol: &str) -> Result<Call> {
    let done = call(host, &["-d", &external_port.to_string(), protocol])?;
    let line = done.line("UPNP_DeletePortMapping() returned")?;
    ensure!(
        line.ends_with(": 0"),
        "the gateway refused:\n{}",
        done.output
    );
    Ok(done)
}
