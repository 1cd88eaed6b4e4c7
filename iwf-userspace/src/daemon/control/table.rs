//! Answers as tables for people.

use std::fmt::Display;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};

use super::lists::Lister;
use super::stats_text::{self, View};
use super::terminal::printable;
use super::{
    Audit, Family, LeaseRow, MappingRow, PinholeRow, Protection, Reconciler, Repairs, Response,
    ShownPin, Status, SubscriptionRow,
};

/// The answer as text that ends with a line end.
pub fn render(response: &Response) -> String {
    match response {
        Response::Status(status) => render_status(status),
        Response::Mappings(rows) => render_mappings(rows),
        Response::Leases(rows) => render_leases(rows),
        Response::Subscriptions(rows) => render_subscriptions(rows),
        Response::Pinholes(rows) => render_pinholes(rows),
        Response::Protection(protection) => render_protection(protection),
        Response::Pin(shown) => render_pin(shown),
        Response::Audit(audit) => render_audit(audit),
        Response::Stats(stats) => stats_text::render(stats, &View::default()),
        Response::Sessions(_)
        | Response::Dynamic(_)
        | Response::Hosts(_)
        | Response::Events(_)
        | Response::End(_) => Lister::text().take(response),
        Response::Policy(policy) => policy.render(),
        Response::PolicyTest(tested) => tested.render(),
        Response::Done => "done\n".to_owned(),
        Response::Error(why) => format!("error: {why}\n"),
    }
}

fn render_status(status: &Status) -> String {
    let mut table = new(&["", ""]);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row("version", status.version.clone());
    row("up for", span(status.uptime_seconds));
    let ready = if status.ready { "ready" } else { "starting" };
    row("state", ready.to_owned());
    row(
        "mode",
        format!("{} (configured: {})", status.mode, status.configured_mode),
    );
    row(
        "WAN",
        format!("{} {}", status.wan_interface, or_dash(status.wan_address)),
    );
    row("gateway", or_dash(status.gateway));
    row("external address", or_dash(status.external_address));
    for external in &status.external_addresses {
        row(
            "of the pool",
            format!("{}, {} hosts", external.address, external.hosts),
        );
    }
    if let Some(prefix) = &status.address_conflict {
        row(
            "conflict",
            format!("the WAN's prefix overlaps with {prefix} of the LAN"),
        );
    }
    for listener in &status.listeners {
        row(
            "LAN",
            format!("{} http://{}/", listener.interface, listener.address),
        );
    }
    for server in &status.servers {
        let epoch = server
            .epoch
            .map_or_else(String::new, |e| format!(", epoch {e}"));
        let used = if server.in_use {
            ""
        } else {
            " (other address)"
        };
        row(
            &format!("PCP server {}", server.server),
            format!(
                "{} {} by {} in {}{epoch}{used}",
                server.address, server.state, server.origin, server.via
            ),
        );
    }
    for discovered in &status.discovery {
        let lists = discovered.servers.iter().map(|list| {
            let addresses: Vec<_> = list.iter().map(ToString::to_string).collect();
            addresses.join(" ")
        });
        let mut lists = lists.collect::<Vec<_>>().join(", ");
        if lists.is_empty() {
            lists.push_str("no PCP server");
        }
        let name = match discovered.family {
            Family::Dhcp4 => "DHCPv4",
            Family::Dhcp6 => "DHCPv6",
        };
        row(name, format!("{}, {lists}", discovered.state));
    }
    if let Some(aftr) = &status.aftr {
        row("AFTR", aftr.clone());
    }
    if let Some(softwire) = &status.softwire {
        row(
            "softwire",
            format!("{} to {}", softwire.local, softwire.aftr),
        );
    }
    row("mappings", status.mappings.to_string());
    row("subscriptions", status.subscriptions.to_string());
    row("sessions", status.sessions.to_string());
    row("reconciler", reconciler(&status.reconciler));
    let store = &status.store;
    row(
        "store",
        match store.failing_seconds {
            None => format!("{} changes in {} commits", store.changes, store.commits),
            Some(seconds) => format!("FAILS since {}, new mappings are refused", span(seconds)),
        },
    );
    format!("{}\n", table.trim_fmt())
}

fn reconciler(state: &Reconciler) -> String {
    let when = state
        .seconds_ago
        .map_or_else(|| "never ran".to_owned(), |s| format!("{} ago", span(s)));
    let total = &state.total;
    let mut text = format!(
        "{when}, {} repaired, {} failed",
        state.repaired, state.failed
    );
    if state.turns > 0 {
        text.push_str(&format!(
            "; in {} turns, {:.1} ms at most",
            state.turns,
            Duration::from_micros(state.longest_turn_micros).as_secs_f64() * 1000.0
        ));
    }
    if state.running {
        text.push_str("; running");
    }
    if *total != Repairs::default() {
        text.push_str(&format!(
            "; in {} runs {} removed, {} created, {} updated, {} failed",
            state.runs, total.removed, total.created, total.updated, total.failed
        ));
    }
    if total.blind > 0 {
        text.push_str(&format!(", {} times blind", total.blind));
    }
    text
}

fn render_mappings(rows: &[MappingRow]) -> String {
    if rows.is_empty() {
        return "no mappings\n".to_owned();
    }
    let mut header = vec![
        "protocol",
        "internal",
        "NAT1 external",
        "in kernel",
        "carrier external",
        "from",
        "lease left",
        "granted left",
    ];
    let counted = rows.iter().any(|row| row.usage.is_some());
    if counted {
        header.extend(["packets in", "octets in", "packets out", "octets out"]);
    }
    header.push("description");
    let mut table = new(&header);
    for row in rows {
        let mut cells = vec![
            row.protocol.to_string(),
            row.internal.to_string(),
            row.nat1.to_string(),
            match (&row.waits, row.kernel) {
                (Some(_), _) => "waits",
                (None, true) => "yes",
                (None, false) => "NO",
            }
            .to_owned(),
            or_dash(row.carrier),
            from(row),
            if row.is_static {
                "static".to_owned()
            } else {
                span(row.lease_left_seconds)
            },
            row.granted_left_seconds
                .map_or_else(|| "-".to_owned(), span),
        ];
        if counted {
            let usage = row.usage.unwrap_or_default();
            cells.extend(
                [
                    usage.packets_in,
                    usage.octets_in,
                    usage.packets_out,
                    usage.octets_out,
                ]
                .map(|count| count.to_string()),
            );
        }
        cells.push(printable(&row.description));
        table.add_row(cells);
    }
    let mut text = format!("{}\n", table.trim_fmt());
    for row in rows {
        if let Some(why) = &row.waits {
            text.push_str(&format!(
                "{} {} waits: {why}\n",
                row.protocol,
                row.nat1.port()
            ));
        }
    }
    text
}

/// Who may come in.
fn from(row: &MappingRow) -> String {
    match row.remote_host {
        Some(host) => host.to_string(),
        None if row.remote_list.is_empty() => "any".to_owned(),
        None => row.remote_list.join(" "),
    }
}

fn render_leases(rows: &[LeaseRow]) -> String {
    if rows.is_empty() {
        return "no leases\n".to_owned();
    }
    let mut table = new(&[
        "protocol",
        "server",
        "via",
        "NAT1 external",
        "assigned",
        "left",
    ]);
    for row in rows {
        table.add_row([
            row.protocol.to_string(),
            row.server.to_string(),
            row.via.clone(),
            row.nat1.to_string(),
            row.assigned.to_string(),
            span(row.granted_left_seconds),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

fn render_subscriptions(rows: &[SubscriptionRow]) -> String {
    if rows.is_empty() {
        return "no subscriptions\n".to_owned();
    }
    let mut table = new(&["service", "host", "callback", "left", "messages", "state"]);
    for row in rows {
        let state = match (row.failures, row.sending) {
            (0, false) => "told".to_owned(),
            (0, true) => "being told".to_owned(),
            (failures, _) => format!("{failures} failed"),
        };
        table.add_row([
            row.service.clone(),
            row.host.to_string(),
            row.callbacks.join(" "),
            span(row.left_seconds),
            row.next_seq.to_string(),
            state,
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

fn render_pinholes(rows: &[PinholeRow]) -> String {
    if rows.is_empty() {
        return "no pinholes\n".to_owned();
    }
    let mut table = new(&[
        "id", "protocol", "internal", "remote", "origin", "host", "left", "packets", "kernel",
    ]);
    let any = |value: Option<String>| value.unwrap_or_else(|| "any".to_owned());
    for row in rows {
        let port = |port: Option<u16>| any(port.map(|port| port.to_string()));
        let remote = any(row.remote.map(|addr| format!("[{addr}]")));
        table.add_row([
            row.id.to_string(),
            any(row.protocol.map(|protocol| protocol.to_string())),
            format!("[{}]:{}", row.internal, port(row.internal_port)),
            format!("{remote}:{}", port(row.remote_port)),
            if row.is_static { "config" } else { "upnp" }.to_owned(),
            or_dash(row.host.as_ref()),
            row.lease_left_seconds.map_or_else(|| "-".to_owned(), span),
            row.packets.to_string(),
            if row.kernel { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

fn render_pin(shown: &ShownPin) -> String {
    format!(
        "{}\ngood for one control point within {}\n",
        shown.pin,
        span(shown.good_for_seconds)
    )
}

fn render_protection(protection: &Protection) -> String {
    let at: Vec<_> = protection
        .listeners
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut text = format!("device {}\n", protection.device);
    text.push_str(&format!(
        "TLS on {}, {} connections open\n",
        if at.is_empty() {
            "-".to_owned()
        } else {
            at.join(", ")
        },
        protection.connections
    ));
    if let Some(shown) = &protection.introduction {
        let left = span(shown.left_seconds);
        text.push_str(&format!("a PIN is good for {left}"));
        if shown.wrong_pins > 0 {
            text.push_str(&format!(", {} wrong so far", shown.wrong_pins));
        }
        if let Some(who) = &shown.control_point {
            text.push_str(&format!(", {who} is being introduced"));
        }
        text.push('\n');
    }
    if protection.identities.is_empty() {
        text.push_str("nobody may do more than everybody\n");
        return text;
    }
    let mut table = new(&["kind", "id", "name", "roles", "known by", "logins"]);
    for row in &protection.identities {
        let name = row.alias.as_ref().or(row.name.as_ref());
        table.add_row([
            row.kind.clone(),
            row.id.clone(),
            or_dash(name),
            if row.roles.is_empty() {
                "-".to_owned()
            } else {
                row.roles.join(" ")
            },
            match (row.password, row.introduced) {
                (true, _) => "password",
                (false, true) => "PIN",
                (false, false) => "-",
            }
            .to_owned(),
            row.logins.to_string(),
        ]);
    }
    text.push_str(&format!("{}\n", table.trim_fmt()));
    text
}

fn render_audit(audit: &Audit) -> String {
    let mut text = format!(
        "{} mappings, {} kernel entries, {} upstream leases\n",
        audit.mappings, audit.kernel_entries, audit.leases
    );
    text.push_str(&format!("reconciler: {}\n", reconciler(&audit.reconciler)));
    for difference in &audit.differences {
        text.push_str(&format!("differs: {difference}\n"));
    }
    text.push_str(if audit.clean {
        "clean: the three tables agree\n"
    } else {
        "NOT clean\n"
    });
    text
}

pub(super) fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if header.iter().any(|name| !name.is_empty()) {
        table.set_header(header.to_vec());
    }
    table
}

pub(super) fn or_dash<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// A duration in its two largest units.
pub(super) fn span(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m{rest:02}s"),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        (_, _, _) => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::dataplane::inspect::Usage;
    use crate::types::Protocol;

    fn row() -> MappingRow {
        MappingRow {
            generation: 3,
            protocol: Protocol::Tcp,
            internal: "192.168.1.10:8080".parse().unwrap(),
            nat1: "100.64.0.2:40000".parse().unwrap(),
            kernel: true,
            carrier: Some("11.22.33.1:5000".parse().unwrap()),
            remote_host: None,
            remote_list: Vec::new(),
            lease_left_seconds: 3599,
            granted_left_seconds: Some(110),
            description: "web\u{1b}[2J".to_owned(),
            is_static: false,
            waits: None,
            usage: None,
        }
    }

    #[test]
    fn what_went_through_is_shown_where_it_was_asked_for() {
        let usage = Usage {
            packets_out: 31,
            octets_out: 1798,
            packets_in: 41,
            octets_in: 2378,
        };
        let counted = MappingRow {
            usage: Some(usage),
            ..row()
        };
        let text = render(&Response::Mappings(vec![counted.clone()]));
        assert!(text.contains("41"), "{text}");
        assert!(text.contains("packets in"), "{text}");
        assert!(!render(&Response::Mappings(vec![row()])).contains("packets in"));

        let json = serde_json::to_value(&counted).unwrap();
        assert_eq!(
            (&json["packets_in"], &json["octets_out"]),
            (&41.into(), &1798.into())
        );
        assert_eq!(serde_json::from_value::<MappingRow>(json).unwrap(), counted);
        let json = serde_json::to_value(row()).unwrap();
        assert!(json.get("packets_in").is_none(), "{json}");
        assert_eq!(serde_json::from_value::<MappingRow>(json).unwrap(), row());
    }

    #[test]
    fn one_line_shows_all_three_tables() {
        let text = render(&Response::Mappings(vec![row()]));
        let line = text.lines().nth(1).unwrap();
        for part in [
            "TCP",
            "192.168.1.10:8080",
            "100.64.0.2:40000",
            "yes",
            "11.22.33.1:5000",
            "any",
            "59m59s",
            "1m50s",
            "web",
        ] {
            assert!(line.contains(part), "{part} not in {line}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn an_entry_missing_in_the_kernel_stands_out() {
        let missing = MappingRow {
            kernel: false,
            ..row()
        };
        assert!(render(&Response::Mappings(vec![missing])).contains(" NO "));
    }

    #[test]
    fn a_static_mapping_that_waits_says_why() {
        let waiting = MappingRow {
            kernel: false,
            is_static: true,
            waits: Some("the PCP server did not answer".to_owned()),
            ..row()
        };
        let text = render(&Response::Mappings(vec![waiting]));
        for part in [
            " waits ",
            " static ",
            "TCP 40000 waits: the PCP server did not answer\n",
        ] {
            assert!(text.contains(part), "{part} not in {text}");
        }
    }

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (61, "1m01s"),
            (7260, "2h01m"),
            (604_800, "7d00h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn audit_names_every_difference() {
        let audit = Audit {
            differences: vec!["a".to_owned(), "b".to_owned()],
            ..Audit::default()
        };
        let text = render(&Response::Audit(audit));
        assert!(
            text.contains("differs: a\ndiffers: b\nNOT clean\n"),
            "{text}"
        );
    }
}
