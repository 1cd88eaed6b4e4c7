//! Whatever servers and control points send, in whatever order: no panic, every call answered once and in time,
//! kernel and table in step. The world checks that after each step; here is only the input.

use proptest::prelude::*;

use super::soap::{add, add_any, call, delete, get_specific};
use super::world::World;

#[derive(Clone, Debug)]
enum Op {
    /// Octets from the server's address.
    Datagram(Vec<u8>),
    /// The server's answer to the last request, with one octet changed and cut short.
    Mangled(usize, u8, usize),
    /// A call with this argument.
    Call(u8, String),
    Add(u16, u32),
    AddAny(u16, u32),
    Delete(u16),
    GetSpecific(u16),
    Wait(u16),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..80).prop_map(Op::Datagram),
        (0usize..64, any::<u8>(), 0usize..80).prop_map(|(at, to, len)| Op::Mangled(at, to, len)),
        (0u8..6, ".{0,12}").prop_map(|(action, value)| Op::Call(action, value)),
        (2000u16..2006, 0u32..5000).prop_map(|(port, lease)| Op::Add(port, lease)),
        (2000u16..2006, 0u32..5000).prop_map(|(port, lease)| Op::AddAny(port, lease)),
        (2000u16..2006).prop_map(Op::Delete),
        (2000u16..2006).prop_map(Op::GetSpecific),
        (0u16..600).prop_map(Op::Wait),
    ]
}

fn apply(world: &mut World, op: Op) {
    match op {
        Op::Datagram(payload) => world.answer(payload),
        Op::Mangled(at, to, len) => {
            let Some((_, request)) = world.sent.last().cloned() else {
                return;
            };
            let payload = request.encode().expect("short");
            let answer = world.server.receive(world.now, request.client, &payload);
            let mut answer = answer.unwrap_or_default();
            if let Some(octet) = answer.get_mut(at) {
                *octet = to;
            }
            answer.truncate(len);
            world.answer(answer);
        }
        Op::Call(action, value) => {
            let action = [
                "AddPortMapping",
                "DeletePortMapping",
                "GetGenericPortMappingEntry",
                "SetConnectionType",
                "RequestConnection",
                "Nonsense",
            ][usize::from(action)];
            let names = [
                "NewExternalPort",
                "NewProtocol",
                "NewPortMappingIndex",
                "NewEnabled",
            ];
            let args: Vec<_> = names.iter().map(|name| (*name, value.as_str())).collect();
            world.call(20, call(action, &args));
        }
        Op::Add(port, lease) => {
            world.call(20, add(20, port, lease));
        }
        Op::AddAny(port, lease) => {
            world.call(21, add_any(21, port, port, lease));
        }
        Op::Delete(port) => {
            world.call(20, delete(port));
        }
        Op::GetSpecific(port) => {
            world.call(22, get_specific(port));
        }
        Op::Wait(seconds) => world.run(seconds.into()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_they_send_breaks_anything(ops in prop::collection::vec(op(), 1..40)) {
        let mut world = World::new(1);
        for op in ops {
            apply(&mut world, op);
        }
        world.run(60);
        prop_assert!(world.open.is_empty());
    }
}
