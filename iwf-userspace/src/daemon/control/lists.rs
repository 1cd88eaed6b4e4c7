//! Lists that come page by page, as text or JSON, with nothing kept of what has been shown.

use serde::Serialize;

use super::events::{EventRow, Stamp};
use super::table::{or_dash, span};
use super::terminal::printable;
use super::{ListEnd, Response};
use crate::daemon::dataplane::inspect::{DynamicRow, HostRow, SessionRow, Way};

/// Turns the answers of a stream into what is printed.
#[derive(Debug)]
pub struct Lister {
    json: Option<Json>,
    columns: Columns,
}

/// How far the one line of JSON is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Json {
    /// What the rows are called.
    name: &'static str,
    rows: u64,
}

impl Lister {
    /// For people.
    pub fn text() -> Self {
        Self {
            json: None,
            columns: Columns::default(),
        }
    }

    /// For scripts: one object in one line, with the rows under `name`, and `matched` and `more`. Events are an
    /// object and a line each.
    pub fn json(name: &'static str) -> Self {
        Self {
            json: Some(Json { name, rows: 0 }),
            columns: Columns::default(),
        }
    }

    /// What is to be printed of this answer.
    pub fn take(&mut self, response: &Response) -> String {
        match response {
            Response::Sessions(rows) => self.rows(&SESSION, rows, session),
            Response::Dynamic(rows) => self.rows(&DYNAMIC, rows, dynamic),
            Response::Hosts(rows) => self.rows(&HOST, rows, host),
            Response::Events(page) => {
                let mut text = String::new();
                if page.lost > 0 {
                    text.push_str(&match self.json {
                        Some(_) => format!("{{\"lost\":{}}}\n", page.lost),
                        None => format!("({} events were lost: read too slowly)\n", page.lost),
                    });
                }
                for row in &page.events {
                    text.push_str(&match self.json {
                        Some(_) => format!("{}\n", encoded(row)),
                        None => event(row),
                    });
                }
                text
            }
            Response::End(end) => self.end(end),
            Response::Error(why) => match self.json {
                None => format!("error: {}\n", printable(why)),
                Some(Json { rows: 0, .. }) => format!("{{\"error\":{}}}\n", encoded(why)),
                Some(_) => format!("],\"error\":{}}}\n", encoded(why)),
            },
            Response::Status(_)
            | Response::Mappings(_)
            | Response::Leases(_)
            | Response::Subscriptions(_)
            | Response::Pinholes(_)
            | Response::Policy(_)
            | Response::PolicyTest(_)
            | Response::Protection(_)
            | Response::Pin(_)
            | Response::Audit(_)
            | Response::Stats(_)
            | Response::Done => String::new(),
        }
    }

    fn rows<T: Serialize, const N: usize>(
        &mut self,
        header: &[Column; N],
        rows: &[T],
        cells: fn(&T) -> [String; N],
    ) -> String {
        let Some(json) = &mut self.json else {
            let cells: Vec<[String; N]> = rows.iter().map(cells).collect();
            return self.columns.lines(header, &cells);
        };
        let mut text = String::new();
        for row in rows {
            text.push_str(&match json.rows {
                0 => format!("{{\"{}\":[", json.name),
                _ => ",".to_owned(),
            });
            json.rows += 1;
            text.push_str(&encoded(row));
        }
        text
    }

    fn end(&self, end: &ListEnd) -> String {
        match self.json {
            Some(Json { name: EVENTS, .. }) => String::new(),
            Some(Json { name, rows }) => {
                let begin = match rows {
                    0 => format!("{{\"{name}\":["),
                    _ => String::new(),
                };
                let ListEnd { matched, more } = end;
                format!("{begin}],\"matched\":{matched},\"more\":{more}}}\n")
            }
            None if end.more > 0 => format!("{} more\n", end.more),
            None => String::new(),
        }
    }
}

/// What a list of events is called; it has no rows of its own.
pub const EVENTS: &str = "events";

fn encoded<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("keys are strings, and nothing refuses to be written")
}

/// Its title, and whether it is of numbers.
type Column = (&'static str, Align);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

use Align::{Left, Right};

const SESSION: [Column; 12] = [
    ("protocol", Left),
    ("internal", Left),
    ("external", Left),
    ("remote", Left),
    ("began", Left),
    ("state", Left),
    ("mapping", Left),
    ("packets out/in", Right),
    ("octets out/in", Right),
    ("idle", Right),
    ("left", Right),
    ("", Left),
];

fn session(row: &SessionRow) -> [String; 12] {
    [
        row.protocol.to_string(),
        row.internal.to_string(),
        or_dash(row.external),
        row.remote.to_string(),
        or_dash(row.began.map(|way| match way {
            Way::Out => "out",
            Way::In => "in",
        })),
        row.state.to_string(),
        or_dash(row.mapping),
        format!("{}/{}", row.packets_out, row.packets_in),
        format!("{}/{}", row.octets_out, row.octets_in),
        span(row.idle_seconds),
        span(row.left_seconds),
        match (row.hairpin, row.pinhole) {
            (true, _) => "hairpin".to_owned(),
            (false, Some(id)) => format!("pinhole {id}"),
            (false, None) => String::new(),
        },
    ]
}

const DYNAMIC: [Column; 6] = [
    ("protocol", Left),
    ("internal", Left),
    ("external", Left),
    ("kind", Left),
    ("idle", Right),
    ("left", Right),
];

fn dynamic(row: &DynamicRow) -> [String; 6] {
    [
        row.protocol.to_string(),
        row.internal.to_string(),
        row.external.to_string(),
        row.kind.to_string(),
        span(row.idle_seconds),
        row.left_seconds.map_or_else(|| "-".to_owned(), span),
    ]
}

const HOST: [Column; 5] = [
    ("host", Left),
    ("sessions", Right),
    ("dynamic mappings", Right),
    ("external", Left),
    ("began something", Left),
];

fn host(row: &HostRow) -> [String; 5] {
    [
        row.station.map_or_else(
            || row.host.to_string(),
            |station| format!("IPv6, {station}"),
        ),
        format!("{} of {}", row.sessions, row.sessions_limit),
        format!("{} of {}", row.mappings, row.mappings_limit),
        or_dash(row.external),
        format!("{} ago", span(row.idle_seconds)),
    ]
}

/// One line, and no more.
fn event(row: &EventRow) -> String {
    let mut line = format!("{} {}", stamp(row.time), row.kind);
    if let Some(protocol) = row.protocol {
        line.push_str(&format!(" {protocol}"));
    }
    for (name, endpoint) in [
        ("internal", row.internal),
        ("external", row.external),
        ("remote", row.remote),
    ] {
        if let Some(endpoint) = endpoint {
            line.push_str(&format!(" {name} {endpoint}"));
        }
    }
    if let Some(station) = row.station {
        line.push_str(&format!(" station {station}"));
    }
    if let Some(counter) = &row.counter {
        line.push_str(&format!(" ({})", printable(counter)));
    }
    if !row.detail.is_empty() {
        line.push_str(&format!(": {}", printable(&row.detail)));
    }
    line.push('\n');
    line
}

/// Date and time, UTC (RFC 3339).
fn stamp(Stamp(time): Stamp) -> String {
    let (seconds, millis) = (time.as_secs(), time.as_millis() % 1000);
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The Gregorian date so many days after 1970. Years are counted from March, so that the leap day is the last.
fn date(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let days = days + 719_468;
    let (era, day_of_era) = (days / ERA, days % ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (ERA - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// Columns that grow as wider cells come.
#[derive(Debug, Default)]
struct Columns {
    widths: Vec<usize>,
}

impl Columns {
    fn lines<const N: usize>(&mut self, header: &[Column; N], rows: &[[String; N]]) -> String {
        let mut text = String::new();
        if rows.is_empty() {
            return text;
        }
        let first = self.widths.is_empty();
        self.widths.resize(N, 0);
        let titles: [String; N] = header.map(|(title, _)| title.to_owned());
        for cells in rows.iter().chain([&titles]) {
            for (width, cell) in self.widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let titles = first.then_some(&titles);
        for cells in titles.into_iter().chain(rows) {
            let mut line = String::new();
            for ((cell, width), (_, align)) in cells.iter().zip(&self.widths).zip(header) {
                line.push_str(&match align {
                    Left => format!(" {cell:<width$} "),
                    Right => format!(" {cell:>width$} "),
                });
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::{EventKind, EventPage, Source};
    use super::*;
    use crate::daemon::dataplane::inspect::{Kind, State, Transport};
    use crate::types::UnixTime;

    fn row() -> SessionRow {
        SessionRow {
            protocol: Transport(6),
            internal: "192.168.1.10:5000".parse().unwrap(),
            external: Some("100.64.0.2:5001".parse().unwrap()),
            remote: "11.22.33.9:443".parse().unwrap(),
            began: Some(Way::Out),
            state: State::Established,
            packets_out: 3,
            octets_out: 180,
            packets_in: 2,
            octets_in: 120,
            idle_seconds: 4,
            left_seconds: 7436,
            mapping: Some(Kind::Dynamic),
            hairpin: false,
            pinhole: None,
        }
    }

    fn row6() -> SessionRow {
        SessionRow {
            protocol: Transport(17),
            internal: "[2a0b:1:2:3::10]:4000".parse().unwrap(),
            external: None,
            remote: "[2a0d:7::9]:53".parse().unwrap(),
            began: None,
            state: State::Unanswered,
            mapping: None,
            pinhole: Some(7),
            ..row()
        }
    }

    #[test]
    fn sessions_as_text() {
        let mut lister = Lister::text();
        let mut text = lister.take(&Response::Sessions(vec![row()]));
        text.push_str(&lister.take(&Response::Sessions(vec![row6()])));
        text.push_str(&lister.take(&Response::End(ListEnd {
            matched: 12,
            more: 10,
        })));
        let lines = [
            " protocol  internal           external         remote          began  state        mapping  packets out/in  octets out/in  idle   left",
            " tcp       192.168.1.10:5000  100.64.0.2:5001  11.22.33.9:443  out    established  dynamic             3/2        180/120    4s  2h03m",
            " udp       [2a0b:1:2:3::10]:4000  -                [2a0d:7::9]:53  -      unanswered   -                   3/2        180/120    4s  2h03m  pinhole 7",
            "10 more",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn pages_make_one_line_of_json() {
        let mut lister = Lister::json("sessions");
        let mut text = lister.take(&Response::Sessions(vec![row(), row6()]));
        text.push_str(&lister.take(&Response::Sessions(Vec::new())));
        text.push_str(&lister.take(&Response::Sessions(vec![row()])));
        text.push_str(&lister.take(&Response::End(ListEnd {
            matched: 5,
            more: 2,
        })));
        assert_eq!(text.lines().count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["sessions"].as_array().unwrap().len(), 3);
        assert_eq!(json["sessions"][1]["pinhole"], 7);
        assert_eq!((&json["matched"], &json["more"]), (&5.into(), &2.into()));

        let empty = Lister::json("sessions").take(&Response::End(ListEnd::default()));
        assert_eq!(empty, "{\"sessions\":[],\"matched\":0,\"more\":0}\n");
    }

    #[test]
    fn a_list_that_fails_on_the_way_is_still_json() {
        let mut lister = Lister::json("hosts");
        let failed = Response::Error("the kernel refused".to_owned());
        let alone = "{\"error\":\"the kernel refused\"}\n";
        assert_eq!(lister.take(&failed), alone);
        let people = "error: the kernel refused\n";
        assert_eq!(Lister::text().take(&failed), people);
        let row = HostRow {
            host: "192.168.1.10".parse().unwrap(),
            station: None,
            sessions: 3,
            sessions_limit: 16_384,
            mappings: 2,
            mappings_limit: 16_384,
            external: "100.64.0.2".parse().ok(),
            idle_seconds: 61,
        };
        let mut text = lister.take(&Response::Hosts(vec![row.clone()]));
        text.push_str(&lister.take(&failed));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["error"], "the kernel refused");
        assert_eq!(json["hosts"][0]["sessions_limit"], 16_384);
        let station = HostRow {
            host: "fe80::200:5e10:ff".parse().unwrap(),
            station: "02:00:5e:10:00:ff".parse().ok(),
            ..row.clone()
        };
        let text = Lister::text().take(&Response::Hosts(vec![station]));
        assert!(text.contains(" IPv6, 02:00:5e:10:00:ff "), "{text}");
        assert_eq!(
            Lister::text().take(&Response::Hosts(vec![row])),
            " host            sessions  dynamic mappings  external    began something\n \
             192.168.1.10  3 of 16384        2 of 16384  100.64.0.2  1m01s ago\n"
        );
    }

    #[test]
    fn an_event_is_one_line_of_text_or_json() {
        let event = EventRow {
            protocol: Some(Transport(17)),
            internal: "192.168.1.10:5000".parse().ok(),
            counter: Some("drop_sessions_full".to_owned()),
            detail: "a\u{1b}[2Jb\nc".to_owned(),
            ..EventRow::new(
                UnixTime::from_millis(1_709_210_096_007),
                Source::DataPlane,
                EventKind::SessionsFull,
            )
        };
        let page = Response::Events(EventPage {
            lost: 3,
            events: vec![event],
        });
        assert_eq!(
            Lister::text().take(&page),
            "(3 events were lost: read too slowly)\n\
             2024-02-29T12:34:56.007Z sessions-full udp internal 192.168.1.10:5000 (drop_sessions_full): \
             a\u{fffd}[2Jb\u{fffd}c\n"
        );
        let of_ipv6 = EventRow {
            protocol: Some(Transport(6)),
            internal: "[2a0b:1:2:3::10]:5000".parse().ok(),
            station: "02:00:5e:10:00:ff".parse().ok(),
            counter: Some("drop_host_sessions".to_owned()),
            ..EventRow::new(
                UnixTime::from_millis(1_709_210_096_007),
                Source::DataPlane,
                EventKind::HostSessions,
            )
        };
        assert_eq!(
            Lister::text().take(&Response::Events(EventPage {
                lost: 0,
                events: vec![of_ipv6],
            })),
            "2024-02-29T12:34:56.007Z host-sessions tcp internal [2a0b:1:2:3::10]:5000 station \
             02:00:5e:10:00:ff (drop_host_sessions)\n"
        );
        let mut lister = Lister::json(EVENTS);
        let text = lister.take(&page);
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0]["lost"], 3);
        assert_eq!(lines[1]["kind"], "sessions-full");
        assert_eq!(lister.take(&Response::End(ListEnd::default())), "");
    }

    #[test]
    fn dates() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_454, (2026, 1, 1)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date(days), expected, "{days}");
        }
    }
}
