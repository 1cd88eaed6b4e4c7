//! What files hold that others have written, or an earlier life.

use iwf_userspace::iwf::{ModeSetting, Saved};
use iwf_userspace::wire::lease_file::{LeaseFile, MAX_LEASES};

use super::gateway::{Gateway, wan};
use super::{add, call, ignore};

/// Lease files of DHCP servers.
pub(super) fn leases(octets: &[u8]) -> usize {
    let file = LeaseFile::parse(octets);
    let lines = octets.split(|octet| *octet == b'\n').count();
    assert!(file.leases.len() <= MAX_LEASES);
    assert!(file.damaged <= lines + file.leases.len() + 1);
    file.leases.len()
}

/// Records of the store, a line each, whoever has changed them. What is restored is served, and the kernel gets what the
/// table wants.
pub(super) fn store(octets: &[u8]) -> usize {
    let mut saved = Saved::default();
    for line in octets.split(|octet| *octet == b'\n').take(16) {
        if let Ok(record) = serde_json::from_slice(line) {
            saved.mappings.push(record);
        } else if let Ok(mark) = serde_json::from_slice(line) {
            saved.marks.push(mark);
        } else if let Ok(pinhole) = serde_json::from_slice(line) {
            saved.pinholes.push(pinhole);
        } else if let Ok(identity) = serde_json::from_slice(line) {
            saved.identities.push(identity);
        } else if let Ok(epoch) = serde_json::from_slice(line) {
            saved.epochs.push(epoch);
        }
    }
    let mut restored = 0;
    for mode in [ModeSetting::Local, ModeSetting::Cascaded] {
        let mut gateway = Gateway::with(Gateway::settings(mode), saved.clone(), wan());
        // The reconciler's part, before anybody is served.
        let now = gateway.now;
        gateway.kernel.clear();
        for entry in gateway.iwf.desired(now) {
            let other = gateway
                .kernel
                .insert((entry.protocol, entry.external), entry);
            assert_eq!(other, None, "two of one endpoint");
        }
        restored += gateway.kernel.len() + gateway.iwf.pinholes().count();
        gateway.call(call(
            "GetGenericPortMappingEntry",
            &[("NewPortMappingIndex", "0")],
        ));
        gateway.call(add(9000));
        for _ in 0..8 {
            ignore(gateway.wait());
        }
        gateway.finish();
    }
    restored
}
