//! Reads `tests/vectors/vectors.json`: messages by name, each with its octets.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::collections::BTreeMap;

/// Binary vectors whose name starts with `prefix`, as (name, octets).
pub(crate) fn binary(prefix: &str) -> Vec<(String, Vec<u8>)> {
    section("binary", "hex", prefix)
        .into_iter()
        .map(|(name, digits)| (name, octets(&digits)))
        .collect()
}

/// The binary vector of this id, for example `PCP-01`.
pub(crate) fn binary_one(id: &str) -> Vec<u8> {
    match binary(&format!("{id} ")).as_slice() {
        [(_, octets)] => octets.clone(),
        other => panic!("{} vectors are called {id}", other.len()),
    }
}

/// The text vector of this id, split at the first empty line into head and body.
pub(crate) fn text_one(id: &str) -> (String, String) {
    let found = section("text", "text", &format!("{id} "));
    let [(_, text)]: [_; 1] = found
        .into_iter()
        .collect::<Vec<_>>()
        .try_into()
        .unwrap_or_else(|other: Vec<_>| panic!("{} vectors are called {id}", other.len()));
    let (head, body) = text.split_once("\r\n\r\n").expect("an empty line");
    (format!("{head}\r\n\r\n"), body.to_owned())
}

/// The value of a header in the head of a text vector.
pub(crate) fn header(head: &str, name: &str) -> Option<String> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim().to_owned())
}

fn section(section: &str, field: &str, prefix: &str) -> BTreeMap<String, String> {
    let file = include_str!("../../../tests/vectors/vectors.json");
    let all: serde_json::Value = serde_json::from_str(file).expect("valid JSON");
    let found: BTreeMap<_, _> = all[section]
        .as_object()
        .expect("an object")
        .iter()
        .filter(|(name, _)| name.starts_with(prefix))
        .map(|(name, entry)| {
            let value = entry[field].as_str().expect("a string");
            (name.clone(), value.to_owned())
        })
        .collect();
    assert!(!found.is_empty(), "no vector starts with {prefix:?}");
    found
}

fn octets(digits: &str) -> Vec<u8> {
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("ASCII");
            u8::from_str_radix(pair, 16).expect("hexadecimal digits")
        })
        .collect()
}
