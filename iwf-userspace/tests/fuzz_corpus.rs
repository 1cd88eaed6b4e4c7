//! Gives each target of the fuzzer its committed corpus: what took it somewhere, and what once failed.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;

#[test]
fn every_target_takes_its_corpus_and_each_beginning_of_it() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut given = 0;
    for (name, target) in targets::TARGETS {
        assert!(targets::named(name).is_some());
        let files = std::fs::read_dir(corpora.join(name)).expect("it has a corpus");
        for file in files {
            let path = file.expect("a file").path();
            let octets = std::fs::read(&path).expect("it can be read");
            target(&octets);
            given += 1;
            // The search has found these, among their beginnings.
            let name = path.file_name().map(|name| name.to_string_lossy());
            if name.is_some_and(|name| name.len() == 40) {
                continue;
            }
            for end in (0..octets.len()).step_by(octets.len() / 24 + 1) {
                target(octets.get(..end).unwrap_or_default());
            }
        }
    }
    assert!(given >= 40, "only {given} files");
}

/// A target that turns away all that it is given searches nothing: these inputs are understood to their end.
#[test]
fn inputs_reach_what_is_behind_the_decoders() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, input, least) in [
        ("soap", "a-life", 6),
        ("soap", "protection", 7),
        ("soap", "pinholes", 7),
        ("soap", "for-others", 3),
        ("ssdp", "found", 1),
        ("gena", "a-life", 4),
        ("pcp", "a-life", 4),
        ("natpmp", "a-life", 4),
        ("igd", "a-life", 4),
        ("igd", "version-2", 2),
        ("router", "desc", 1),
        ("dhcp", "acks", 2),
        ("dhcp", "replies", 2),
        ("packets", "joined", 3),
        ("packets", "six", 1),
        ("leases", "dnsmasq", 4),
        ("leases", "odhcpd", 4),
        ("wps", "m2", 1),
        ("wps", "m2d", 2),
        ("wps", "nack", 2),
        ("store", "mappings", 4),
        ("store", "others", 2),
    ] {
        let target = targets::named(name).expect("a target");
        let octets = std::fs::read(corpora.join(name).join(input)).expect("an input");
        let understood = target(&octets);
        assert!(understood >= least, "{name}/{input}: only {understood}");
    }
}
