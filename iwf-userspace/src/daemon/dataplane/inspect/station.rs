//! Who an IPv6 flow counts for, by name.

use std::fmt;
use std::str::FromStr;

use iwf_common::host::{OWN_STATION, UNKNOWN_STATION};
use serde::{Deserialize, Serialize};

use crate::types::caller::{parse_mac, show_mac};

/// A station by its MAC address; `unknown` for all hosts together that no neighbour answers for, or `router`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Station(pub [u8; 6]);

const NAMES: [(Station, &str); 2] = [
    (Station(UNKNOWN_STATION), "unknown"),
    (Station(OWN_STATION), "router"),
];

impl fmt::Display for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((_, name)) = NAMES.iter().find(|(station, _)| station == self) {
            return f.pad(name);
        }
        f.pad(&show_mac(self.0))
    }
}

impl FromStr for Station {
    type Err = NotAStation;

    fn from_str(text: &str) -> Result<Self, NotAStation> {
        if let Some((station, _)) = NAMES.iter().find(|(_, name)| *name == text) {
            return Ok(*station);
        }
        parse_mac(text).map(Self).ok_or(NotAStation)
    }
}

impl From<Station> for String {
    fn from(station: Station) -> Self {
        station.to_string()
    }
}

impl TryFrom<String> for Station {
    type Error = NotAStation;

    fn try_from(text: String) -> Result<Self, NotAStation> {
        text.parse()
    }
}

/// Neither a MAC address nor what stands for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a station: write a MAC address like 02:00:5e:10:00:ff, unknown or router")]
pub struct NotAStation;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stations_have_names() {
        for (mac, name) in [
            ([2, 0, 0x5e, 0x10, 0, 0xff], "02:00:5e:10:00:ff"),
            (UNKNOWN_STATION, "unknown"),
            (OWN_STATION, "router"),
        ] {
            assert_eq!(Station(mac).to_string(), name);
            assert_eq!(name.parse(), Ok(Station(mac)));
        }
        assert_eq!(
            "2:0:5E:10:0:FF".parse(),
            Ok(Station([2, 0, 0x5e, 0x10, 0, 0xff]))
        );
        for wrong in [
            "",
            "me",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:01",
            "02:00:5e:10:00:+f",
            "02:00:5e:10:00:",
            "02:00:5e:10:00:100",
        ] {
            assert_eq!(wrong.parse::<Station>(), Err(NotAStation), "{wrong}");
        }
    }
}
