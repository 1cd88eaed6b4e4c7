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
            for end in (0..octets.len()).step_by(octets.len() / 24 + 1) {
                target(octets.get(..end).unwrap_or_default());
            }
            given += 1;
        }
    }
    assert!(given >= 40, "only {given} files");
}
