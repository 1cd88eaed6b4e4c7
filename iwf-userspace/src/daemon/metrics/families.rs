//! The figures under the names of metrics.
//!
//! Whatever `iwfctl stats` lists becomes a series by itself: its name becomes a label, or of the daemon's own counters the
//! name of a family. Nothing here names a counter. Addresses of servers are shown, as `iwfctl` does; nonces are in none of
//! it.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::super::control::{Counter, Server, Stats, Status};

/// The figures of one moment.
#[derive(Debug)]
struct Scrape {
    status: Status,
    stats: Stats,
}

/// The document.
///
/// # Errors
/// None that is known: text is written into memory.
pub(super) fn render(status: Status, stats: Stats) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("iwf");
    registry.register_collector(Box::new(Scrape { status, stats }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        self.daemon(&mut out)?;
        self.packets(&mut out)?;
        self.tables(&mut out)?;
        self.servers(&mut out)?;
        self.reconciler(&mut out)
    }
}

impl Scrape {
    fn daemon(&self, out: &mut Families<'_>) -> fmt::Result {
        let status = &self.status;
        out.info(
            "build",
            "The running daemon.",
            &[("version", status.version.as_str())],
        )?;
        let mode = [
            ("configured", status.configured_mode.as_str()),
            ("mode", status.mode.as_str()),
        ];
        out.info("mode", "The mode as configured and in force.", &mode)?;
        out.gauge(
            "uptime_seconds",
            "Since the daemon started.",
            status.uptime_seconds,
        )?;
        out.gauge(
            "external_address_known",
            "Whether the address that remote hosts use is known.",
            u64::from(status.external_address.is_some()),
        )?;
        for counter in &self.stats.daemon {
            let help = "As in iwfctl stats; since the daemon started.";
            out.counters(&counter.name, help, None, std::slice::from_ref(counter))?;
        }
        Ok(())
    }

    fn packets(&self, out: &mut Families<'_>) -> fmt::Result {
        let (mut done, mut passed, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        for counter in &self.stats.counters {
            let group = match counter.name.as_str() {
                name if name.starts_with("pass_") => &mut passed,
                name if name.starts_with("drop_") => &mut dropped,
                _ => &mut done,
            };
            group.push(counter.clone());
        }
        let label = Some("counter");
        let help =
            "What the packet programs have done, in packets unless the counter says otherwise.";
        out.counters("done", help, label, &done)?;
        let help = "Packets given to the kernel's stack.";
        out.counters("passed_packets", help, label, &passed)?;
        out.counters("dropped_packets", "Packets dropped.", label, &dropped)
    }

    fn tables(&self, out: &mut Families<'_>) -> fmt::Result {
        let stats = &self.stats;
        out.gauge("sessions", "Sessions at the last sweep.", stats.sessions)?;
        let rows = || stats.tables.iter();
        let table = |of: &str| [("table", of.to_owned())];
        out.gauges(
            "table_entries",
            "What a kernel table holds.",
            rows().map(|row| (table(&row.table), row.entries)),
        )?;
        out.gauges(
            "table_capacity",
            "What it has room for.",
            rows().filter_map(|row| Some((table(&row.table), row.capacity?))),
        )?;
        out.gauges(
            "table_age_seconds",
            "How old these figures are: the sweep counts the large tables.",
            rows().map(|row| (table(&row.table), row.seconds_ago)),
        )?;
        let held = || stats.held.iter();
        let of = |name: &str| [("of", name.to_owned())];
        out.gauges(
            "held",
            "What the daemon holds, and what waits in it.",
            held().map(|row| (of(&row.name), row.held)),
        )?;
        out.gauges(
            "held_limit",
            "The bound of it.",
            held().filter_map(|row| Some((of(&row.name), row.limit?))),
        )
    }

    fn servers(&self, out: &mut Families<'_>) -> fmt::Result {
        let servers = || self.status.servers.iter();
        let label = |server: &Server| {
            [
                ("server", server.server.to_string()),
                ("address", server.address.to_string()),
                ("origin", server.origin.clone()),
            ]
        };
        out.gauges(
            "upstream_server",
            "1 for each address of an upstream server, with its state.",
            servers().map(|server| {
                let [number, address, origin] = label(server);
                let labels = [
                    number,
                    address,
                    origin,
                    ("via", server.via.clone()),
                    ("state", server.state.clone()),
                    ("in_use", server.in_use.to_string()),
                ];
                (labels, 1)
            }),
        )?;
        out.gauges(
            "upstream_answering",
            "Whether the server answers at that address.",
            servers().map(|server| (label(server), u64::from(server.state == "answering"))),
        )?;
        out.gauges(
            "upstream_epoch_seconds",
            "Its last epoch.",
            servers().filter_map(|server| Some((label(server), u64::from(server.epoch?)))),
        )
    }

    fn reconciler(&self, out: &mut Families<'_>) -> fmt::Result {
        let reconciler = &self.status.reconciler;
        if let Some(ago) = reconciler.seconds_ago {
            out.gauge(
                "reconciler_last_run_age_seconds",
                "Since the last run ended.",
                ago,
            )?;
        }
        out.gauge(
            "reconciler_running",
            "Whether a run is under way.",
            u64::from(reconciler.running),
        )?;
        out.gauge(
            "reconciler_last_turns",
            "Turns of the event loop that the last run took.",
            reconciler.turns,
        )?;
        out.gauge(
            "reconciler_longest_turn_microseconds",
            "The most processor time that one of them took.",
            reconciler.longest_turn_micros,
        )?;
        out.gauge(
            "reconciler_last_repaired",
            "Kernel entries that the last run set right.",
            reconciler.repaired,
        )?;
        out.gauge(
            "reconciler_last_failed",
            "Repairs of the last run that failed.",
            reconciler.failed,
        )?;
        out.gauge(
            "store_failing_seconds",
            "For how long the store has failed; 0 while it works.",
            self.status.store.failing_seconds.unwrap_or(0),
        )
    }
}

/// Writes families one by one.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Info)?;
        family.encode_info(&labels)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(family)
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl Iterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// With `label` each is told by its name, else there is only one.
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: Option<&str>,
        rows: &[Counter],
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for Counter { name, value } in rows {
            let labels: Vec<(&str, &str)> = label
                .map(|label| (label, name.as_str()))
                .into_iter()
                .collect();
            ConstCounter::new(*value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::control::Held;
    use super::super::super::dataplane::inspect::TableRow;
    use super::*;

    fn counter(name: &str, value: u64) -> Counter {
        Counter {
            name: name.to_owned(),
            value,
        }
    }

    #[test]
    fn every_figure_of_stats_is_a_series() {
        let stats = Stats {
            sessions: 7,
            counters: vec![
                counter("forwarded_out", 1),
                counter("pass_host", 2),
                counter("drop_land", 3),
            ],
            daemon: vec![counter("store_commits", 4)],
            tables: vec![
                TableRow::new("SESSIONS", 5, Some(10)),
                TableRow::new("part", 6, None),
            ],
            held: vec![
                Held::new("mappings", 8, Some(9)),
                Held::new("calls", 1, None),
            ],
        };
        let status = Status {
            version: "1.2.3".to_owned(),
            servers: vec![Server {
                server: 1,
                origin: "dhcp4".to_owned(),
                address: ([192, 0, 2, 1], 5351).into(),
                in_use: true,
                state: "silent".to_owned(),
                via: "pcp".to_owned(),
                epoch: None,
                prefixes64: Vec::new(),
            }],
            ..Status::default()
        };
        let text = render(status, stats).unwrap();
        for line in [
            "# TYPE iwf_dropped_packets counter",
            "iwf_build_info{version=\"1.2.3\"} 1",
            "iwf_done_total{counter=\"forwarded_out\"} 1",
            "iwf_passed_packets_total{counter=\"pass_host\"} 2",
            "iwf_dropped_packets_total{counter=\"drop_land\"} 3",
            "iwf_store_commits_total 4",
            "iwf_sessions 7",
            "iwf_table_entries{table=\"SESSIONS\"} 5",
            "iwf_table_entries{table=\"part\"} 6",
            "iwf_table_capacity{table=\"SESSIONS\"} 10",
            "iwf_held{of=\"mappings\"} 8",
            "iwf_held_limit{of=\"mappings\"} 9",
            "iwf_held{of=\"calls\"} 1",
            "iwf_upstream_answering{server=\"1\",address=\"192.0.2.1:5351\",origin=\"dhcp4\"} 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in {text}");
        }
        assert!(!text.contains("iwf_held_limit{of=\"calls\"}"), "{text}");
        assert!(!text.contains("iwf_upstream_epoch_seconds{"), "{text}");
    }
}
