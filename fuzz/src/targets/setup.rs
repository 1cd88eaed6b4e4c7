//! What a control point says while it is introduced.

use iwf_userspace::iwf::{AdminCommand, Input, RequestId};
use iwf_userspace::proto::protection::OwnerCommand;
use iwf_userspace::wire::scpd;
use iwf_userspace::wire::soap::Call;
use iwf_userspace::wire::wps::{Attributes, MAX_MESSAGE, attribute};

use super::gateway::Gateway;
use super::{count, lan};

/// Where control points have the nonce of the device, and the head and the value of their own UUID.
const NONCE: std::ops::Range<usize> = 14..30;
const UUID_HEAD: std::ops::Range<usize> = 50..54;
const UUID: std::ops::Range<usize> = 54..70;

/// The answer to M1. The nonce of the run and the caller's UUID are put into it, so that it is looked at.
pub(super) fn wps(octets: &[u8]) -> usize {
    let read = read(octets);
    let mut gateway = lan::protected();
    let (request, command) = (
        RequestId(u64::MAX),
        AdminCommand::Access(OwnerCommand::ShowPin),
    );
    gateway.input(Input::Admin { request, command });
    let m1 = say(&mut gateway, &[]).expect("a PIN is shown");
    let m1 = Attributes::decode(&m1).expect("M1");
    let nonce = m1.fixed::<16>(attribute::ENROLLEE_NONCE).expect("a nonce");
    let mut message = octets.to_vec();
    if let Some(place) = message.get_mut(NONCE) {
        place.copy_from_slice(nonce);
    }
    let control_point = lan::stranger().octets();
    if message.get(UUID_HEAD) == Some(&[0x10, 0x48, 0, 16])
        && let Some(place) = message.get_mut(UUID)
    {
        place.copy_from_slice(&control_point);
    }
    let answered = !message.is_empty() && say(&mut gateway, &message).is_some();
    gateway.finish();
    count([read, answered])
}

fn read(octets: &[u8]) -> bool {
    let Ok(read) = Attributes::decode(octets) else {
        return false;
    };
    assert!(octets.len() <= MAX_MESSAGE);
    for name in 0x1000..0x1060 {
        if let Ok(value) = read.get(name) {
            assert_eq!(read.fixed::<16>(name).is_ok(), value.len() == 16);
        }
        if let Ok((before, seal)) = read.sealed(name) {
            assert_eq!(before.len() + 4 + seal.len(), octets.len());
            assert!(Attributes::decode(before).is_ok());
        }
    }
    read.kind().is_ok()
}

/// The answer, if it is none of errors.
fn say(gateway: &mut Gateway, message: &[u8]) -> Option<Vec<u8>> {
    let args = [
        ("ProtocolType", "WPS".to_owned()),
        ("InMessage", scpd::base64(message)),
    ];
    let call = Call {
        service: "DeviceProtection".to_owned(),
        version: 1,
        action: "SendSetupMessage".to_owned(),
        args: args.map(|(name, value)| (name.to_owned(), value)).into(),
    };
    gateway.call_from(lan::caller(b'b'), call);
    let (status, body) = gateway.answers.last()?;
    let (_, rest) = body.split_once("<OutMessage>").filter(|_| *status == 200)?;
    let (text, _) = rest.split_once("</OutMessage>")?;
    scpd::octets(text).ok()
}
