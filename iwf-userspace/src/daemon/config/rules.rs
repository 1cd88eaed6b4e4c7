//! `[[policy.rule]]`: which device may have which ports opened.

use toml::Spanned;

use super::validate::{choice, invalid, number};
use super::{Invalid, raw};
use crate::mapping::rules::{
    Devices, Kind, MAX_RANGES, MAX_RULES, PortRange, Ports, Rule, Rules, Verdict,
};
use crate::types::caller::{Mac, parse_mac};
use crate::types::prefix::Prefix;

/// Longest name of a rule, in octets.
const MAX_NAME: usize = 64;

/// RFC 1035 section 2.3.4: longest name of a host.
const MAX_HOST: usize = 255;

/// How many any host may have.
pub(super) struct Quotas {
    pub(super) mappings: i64,
    pub(super) pinholes: i64,
}

const VERDICTS: [(&str, Verdict); 2] = [("allow", Verdict::Allow), ("deny", Verdict::Deny)];

pub(super) fn check(
    default: &Spanned<String>,
    written: &Spanned<Vec<raw::Rule>>,
    most: &Quotas,
) -> Result<Rules, Invalid> {
    let list = written.get_ref();
    if let Some(one_more) = list.get(MAX_RULES) {
        return Err(invalid(
            &one_more.action,
            format!("policy.rule: more than {MAX_RULES} rules"),
            "put several devices or port ranges into one rule",
        ));
    }
    let list = list.iter().map(|written| rule(written, most));
    Ok(Rules {
        list: list.collect::<Result<_, _>>()?,
        default: choice("policy.default", default, &VERDICTS)?,
    })
}

fn rule(written: &raw::Rule, most: &Quotas) -> Result<Rule, Invalid> {
    let verdict = choice("policy.rule.action", &written.action, &VERDICTS)?;
    let kinds = [
        ("mappings", Some(Kind::Mapping)),
        ("pinholes", Some(Kind::Pinhole)),
        ("both", None),
    ];
    let kind = written.kind.as_ref();
    let protocols = [("tcp", Some(6)), ("udp", Some(17)), ("any", None)];
    let protocol = written.protocol.as_ref();
    let rule = Rule {
        name: written.name.as_ref().map(name).transpose()?,
        verdict,
        kind: kind
            .map(|kind| choice("policy.rule.for", kind, &kinds))
            .transpose()?
            .flatten(),
        devices: Devices {
            macs: all("mac", written.mac.as_ref(), mac)?,
            addresses: all("address", written.address.as_ref(), prefix)?,
            names: all("host", written.host.as_ref(), host)?,
        },
        protocol: protocol
            .map(|protocol| choice("policy.rule.protocol", protocol, &protocols))
            .transpose()?
            .flatten(),
        external: ports("external_ports", written.external_ports.as_ref())?,
        internal: ports("internal_ports", written.internal_ports.as_ref())?,
        max_mappings: quota("max_mappings", written.max_mappings.as_ref(), most.mappings)?,
        max_pinholes: quota("max_pinholes", written.max_pinholes.as_ref(), most.pinholes)?,
    };
    no_quota_of_nothing(written, &rule)?;
    Ok(rule)
}

/// A quota where nothing is allowed of the kind is a mistake.
fn no_quota_of_nothing(written: &raw::Rule, rule: &Rule) -> Result<(), Invalid> {
    for (key, quota, other) in [
        ("max_mappings", &written.max_mappings, Kind::Pinhole),
        ("max_pinholes", &written.max_pinholes, Kind::Mapping),
    ] {
        let Some(quota) = quota else {
            continue;
        };
        let why = match rule.verdict {
            Verdict::Deny => "the rule denies",
            Verdict::Allow if rule.kind == Some(other) => "the rule is not for those",
            Verdict::Allow => continue,
        };
        return Err(invalid(
            quota,
            format!("policy.rule.{key}: {why}"),
            "leave the key out, or correct the rule",
        ));
    }
    Ok(())
}

fn quota(key: &str, written: Option<&Spanned<i64>>, most: i64) -> Result<Option<usize>, Invalid> {
    let key = format!("policy.rule.{key}");
    // More than any host may have would be an empty promise.
    written
        .map(|written| number(&key, written, 0..=most))
        .transpose()
}

fn all<T>(
    key: &str,
    written: Option<&raw::List<String>>,
    read: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<Vec<T>, Invalid> {
    let one = |written: &Spanned<String>| {
        read(written.get_ref()).map_err(|advice| {
            let problem = format!("policy.rule.{key}: {:?} is none", written.get_ref());
            invalid(written, problem, advice)
        })
    };
    entries(key, written)?.iter().map(one).collect()
}

/// What a list has: something, because a list that somebody has emptied would be about every device or port.
fn entries<'a, T>(
    key: &str,
    written: Option<&'a raw::List<T>>,
) -> Result<&'a [Spanned<T>], Invalid> {
    let Some(written) = written else {
        return Ok(&[]);
    };
    let list = written.get_ref();
    if list.is_empty() {
        return Err(invalid(
            written,
            format!("policy.rule.{key}: the list is empty"),
            "name at least one, leave the key out if any is meant, or remove the rule",
        ));
    }
    if let Some(one_more) = list.get(MAX_RANGES) {
        return Err(invalid(
            one_more,
            format!("policy.rule.{key}: more than {MAX_RANGES} entries"),
            "write a second rule for the others",
        ));
    }
    Ok(list)
}

fn mac(text: &str) -> Result<Mac, &'static str> {
    parse_mac(text)
        .filter(|mac| mac[0] & 1 == 0)
        .ok_or("write the MAC address of a device, for example \"02:00:5e:10:00:ff\"")
}

fn host(text: &str) -> Result<String, &'static str> {
    // A lease file has a star where a device has no name.
    if text.contains('*') {
        return Err("write whole names: there are no patterns");
    }
    let fits = (1..=MAX_HOST).contains(&text.len());
    let clean = text.bytes().all(|octet| octet.is_ascii_graphic());
    (fits && clean)
        .then(|| text.to_ascii_lowercase())
        .ok_or("write a name as the lease file has it, for example \"console\"")
}

fn prefix(text: &str) -> Result<Prefix, &'static str> {
    const ADVICE: &str = "write an address or a prefix without further bits, for example \"192.168.1.10\", \
         \"192.168.1.0/24\" or \"2a00:1:2:3::/64\"";
    let prefix = text.parse::<Prefix>().ok();
    prefix.filter(Prefix::is_exact).ok_or(ADVICE)
}

fn ports(key: &str, written: Option<&raw::List<toml::Value>>) -> Result<Ports, Invalid> {
    let range = |written: &Spanned<toml::Value>| {
        let value = written.get_ref();
        read_range(value).ok_or_else(|| {
            invalid(
                written,
                format!("policy.rule.{key}: {value} is no port and no range of ports"),
                "write a number from 1 to 65535, or a range with the lower one first, for example \"5000-5010\"",
            )
        })
    };
    let ranges: Result<Vec<_>, _> = entries(key, written)?.iter().map(range).collect();
    ranges.map(Ports::of)
}

fn read_range(value: &toml::Value) -> Option<PortRange> {
    if let Some(port) = value.as_integer() {
        let port = u16::try_from(port).ok()?;
        return PortRange::new(port, port);
    }
    let text = value.as_str()?;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.trim().parse().ok();
    PortRange::new(port(first)?, port(last)?)
}

fn name(written: &Spanned<String>) -> Result<String, Invalid> {
    let text = written.get_ref();
    let fits = (1..=MAX_NAME).contains(&text.len());
    if fits && !text.chars().any(char::is_control) {
        return Ok(text.clone());
    }
    Err(invalid(
        written,
        "policy.rule.name is empty, too long or has control characters".to_owned(),
        &format!("write at most {MAX_NAME} octets on one line"),
    ))
}
