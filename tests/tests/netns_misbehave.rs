//! A PCP server that misbehaves in every way that a datagram can: what counts is used, what does not is ignored, and
//! what a server refuses is said and not asked again.
#![expect(
    clippy::disallowed_methods,
    reason = "waits for lifetimes that the server gave to end"
)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade::{self, Scripted, endpoint, rows};
use iwf_tests::fault::Fault;
use iwf_tests::igd::{Gateway, Version};
use iwf_tests::netns::may_run;
use iwf_tests::pcp::{Map, Opcode, Response, result};
use iwf_tests::script::Manner;
use iwf_tests::topology::{EXTERNAL, LAN1, WAN};
use iwf_tests::wait;
use iwf_tests::wire_tap::PcpTap;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
/// Below the 30 s after which a UPnP client gives up (AMB-06).
const DEADLINE: Duration = Duration::from_secs(28);

/// Everything that is no answer, whatever it says.
const NO_ANSWER: [Fault; 17] = [
    Fault::Nonce,
    Fault::Protocol,
    Fault::InternalPort,
    Fault::Opcode(2),
    Fault::Opcode(99),
    Fault::Cut(0),
    Fault::Cut(3),
    Fault::Cut(23),
    Fault::Cut(24),
    Fault::Cut(59),
    Fault::TooLong,
    Fault::Odd,
    Fault::AsRequest,
    Fault::Version(1),
    Fault::Version(255),
    Fault::OtherPort,
    Fault::OtherAddress,
];

/// Events of that kind so far.
fn events(scripted: &Scripted, kind: &str) -> Result<Vec<Value>> {
    let text = scripted
        .iwfd
        .ctl()
        .must(&["events", "--json", "--kind", kind])?;
    let rows = text.lines().map(serde_json::from_str);
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The one mapping that there is.
fn only(scripted: &Scripted) -> Result<Value> {
    let mut all = rows(&scripted.iwfd)?;
    ensure!(all.len() == 1, "one mapping: {all:?}");
    all.pop().context("just counted")
}

/// Seconds for which the scripted refusals hold: longer than the same call takes once more. They are waited for.
fn hold() -> u32 {
    wait::patience().max(2)
}

/// Waits until a refusal of that moment holds no longer.
fn over(refused: Instant) -> Result<()> {
    let held = Duration::from_secs(hold().into()) + Duration::from_millis(100);
    wait::until("the refusal to pass", DEADLINE, || {
        (refused.elapsed() > held).then_some(())
    })
}

fn clean(scripted: &Scripted) -> Result<()> {
    let audit = scripted.iwfd.ctl().json(&["audit"])?;
    ensure!(audit["clean"] == true, "not clean: {audit}");
    Ok(())
}

#[test]
fn what_is_no_answer_is_ignored_until_the_right_one_comes() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    gateway.add("TCP", 30_000, LAN1, 8000, 3600)?.ok()?;
    let asked = scripted.server.map_requests().len();

    // Each wrong one carries another port, lifetime and epoch in its right fields: none of it may be believed. The
    // right one comes last, in the same breath, with every reserved bit set.
    let mut all: Vec<Fault> = NO_ANSWER.to_vec();
    all.push(Fault::Decorated);
    scripted.server.spoil_next(&[&all]);
    let (answer, took) = wait::timed(|| gateway.add("TCP", 30_001, LAN1, 8001, 3600));
    answer?.ok()?;
    ensure!(took < SOON, "answered without a repetition, after {took:?}");
    assert_eq!(
        scripted.server.map_requests().len(),
        asked + 1,
        "one request, no recovery"
    );
    assert_eq!(events(&scripted, "server-lost-state")?, [] as [Value; 0]);

    // Without a right one the request is repeated, each time.
    scripted
        .server
        .spoil_next(&[&NO_ANSWER[..9], &NO_ANSWER[9..]]);
    let (answer, took) = wait::timed(|| gateway.add("UDP", 30_002, LAN1, 8002, 3600));
    answer?.ok()?;
    ensure!(
        took > Duration::from_secs(7),
        "after 3 and 9 s, not after {took:?}"
    );
    let all = rows(&scripted.iwfd)?;
    let carrier: Vec<u16> = all
        .iter()
        .map(|row| Ok(endpoint(row, "carrier")?.port()))
        .collect::<Result<_>>()?;
    assert_eq!(carrier, [30_000, 30_001, 30_002]);
    clean(&scripted)
}

#[test]
fn a_wrong_epoch_in_what_is_no_answer_means_nothing() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    gateway.add("TCP", 30_100, LAN1, 8000, 3600)?.ok()?;
    let request = scripted
        .server
        .wait_for_map("the request", SOON, |_| true)?;
    let arrivals = scripted.server.arrivals();
    let client = arrivals.first().context("an arrival")?.from;
    assert_eq!(client.ip(), WAN, "PCPC-004");
    assert_eq!(request.client, WAN, "PCPC-005");

    let map = request.map.context("a MAP")?;
    let before = scripted.server.map_requests().len();
    for nonce in [[0; 12], [0xff; 12]] {
        let response = Response {
            opcode: Opcode::Map,
            result: result::SUCCESS,
            lifetime: 0,
            epoch: 0,
            map: Some(Map { nonce, ..map }),
        };
        scripted.server.send(&response.encode(), client)?;
    }
    // What is asked next is answered as if nothing had been.
    gateway.add("UDP", 30_101, LAN1, 8001, 3600)?.ok()?;
    assert_eq!(scripted.server.map_requests().len(), before + 1);
    assert_eq!(events(&scripted, "server-lost-state")?, [] as [Value; 0]);

    // In what is an answer it counts, and everything is asked for again (PCPC-043).
    scripted.server.spoil_next(&[&[Fault::Epoch(1)]]);
    gateway.add("UDP", 30_102, LAN1, 8002, 3600)?.ok()?;
    wait::until("the others asked for again", SOON, || {
        (scripted.server.map_requests().len() >= before + 4).then_some(())
    })?;
    assert_eq!(rows(&scripted.iwfd)?.len(), 3);
    clean(&scripted)
}

#[test]
fn twice_is_once_and_late_is_in_time_or_given_back() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    // Later would make its epoch one of a server that has restarted (RFC 6887 section 8.5).
    let late = Duration::from_millis(1500);
    scripted
        .server
        .spoil_next(&[&[Fault::Twice], &[Fault::Late(late)]]);
    gateway.add("TCP", 30_200, LAN1, 8000, 3600)?.ok()?;
    let (answer, took) = wait::timed(|| gateway.add("TCP", 30_201, LAN1, 8001, 3600));
    answer?.ok()?;
    ensure!(took >= late, "after {took:?}");
    assert_eq!(events(&scripted, "mapping-created")?.len(), 2);
    assert_eq!(events(&scripted, "mapping-renewed")?, [] as [Value; 0]);

    // Later than anybody waits: 501 first, then it is given back (IWF-049).
    scripted
        .server
        .spoil_all(&[Fault::Late(Duration::from_secs(30))]);
    let (answer, took) = wait::timed(|| gateway.add("UDP", 30_202, LAN1, 8002, 3600));
    assert_eq!(answer?.error(), Some(501));
    ensure!(took <= DEADLINE, "it took {took:?}");
    scripted.server.spoil_all(&[]);
    wait::until("the late grant to be given back", DEADLINE, || {
        let leases = scripted.server.leases();
        (leases.len() == 2 && leases.iter().all(|l| l.protocol == 6)).then_some(())
    })?;
    assert_eq!(rows(&scripted.iwfd)?.len(), 2);
    clean(&scripted)
}

#[test]
fn every_result_code_is_an_error_that_holds_and_passes() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let second = Gateway::discover_version(&scripted.lab.lan1, Version::Two)?;
    // RFC 6970 section 4.3; UNSUPP_VERSION is another test's.
    for code in (2..=26).chain([27, 255]) {
        let expected = match code {
            2 => 606,
            8 | 10 => 728,
            11 => 718,
            _ => 501,
        };
        scripted.server.spoil_all(&[Fault::Result(code, hold())]);
        let port = 31_000 + u16::from(code);
        let answer = second.add("TCP", port, LAN1, port, 3600)?;
        let refused = Instant::now();
        assert_eq!(answer.error(), Some(expected), "PCP {code}");
        // The same again is not asked within the lifetime (PCPC-031).
        let asked = scripted.server.map_requests().len();
        let answer = second.add("TCP", port, LAN1, port, 3600)?;
        assert_eq!(answer.error(), Some(expected), "PCP {code} again");
        // A nonce that is not the mapping's may be right for another port of ours (AMB-02).
        let again = scripted.server.map_requests().len();
        assert_eq!(
            again - asked,
            usize::from(code == 2),
            "PCP {code} is asked once"
        );
        scripted.server.spoil_all(&[]);
        over(refused)?;
        second.add("TCP", port, LAN1, port, 3600)?.ok()?;
        second.delete("TCP", port)?.ok()?;
    }
    let told = events(&scripted, "upstream-refused")?;
    ensure!(told.len() >= 27, "each is told: {told:?}");
    let malformed = told
        .iter()
        .find(|row| row["detail"] == "MALFORMED_REQUEST (3)");
    assert_eq!(malformed.context("told")?["remote"], "100.64.0.1:5351");
    cascade::nothing_is_left(&scripted.iwfd)?;
    assert_eq!(scripted.server.leases(), []);
    Ok(())
}

#[test]
fn another_version_is_said_and_asked_again_when_its_time_is_over() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    for (port, version) in [(32_001, 1), (32_003, 3)] {
        scripted
            .server
            .spoil_next(&[&[Fault::OnlyVersion(version, hold())]]);
        assert_eq!(
            gateway.add("TCP", port, LAN1, 8000, 3600)?.error(),
            Some(501)
        );
        let refused = Instant::now();
        let asked = scripted.server.map_requests().len();
        assert_eq!(
            gateway.add("TCP", port, LAN1, 8000, 3600)?.error(),
            Some(501)
        );
        assert_eq!(scripted.server.map_requests().len(), asked);
        over(refused)?;
        let again = gateway.add("TCP", port, LAN1, 8000, 3600)?;
        again.ok().context("PCP again (PCPC-080)")?;
    }
    // NAT-PMP's own answer (PCPC-082), of a server that does not speak it: it is found out soon that it speaks PCP.
    scripted.server.spoil_next(&[&[Fault::NatPmp(0x81)]]);
    let again = gateway.add("TCP", 32_005, LAN1, 8000, 3600)?;
    again.ok().context("PCP again (PCPC-083)")?;
    let told = events(&scripted, "server-speaks")?;
    let said: Vec<_> = told.iter().map(|row| row["detail"].as_str()).collect();
    assert_eq!(
        said,
        [
            Some("PCP"),
            Some("PCP version 1 only"),
            Some("PCP"),
            Some("PCP version 3 only"),
            Some("PCP"),
            Some("NAT-PMP only"),
            Some("PCP"),
        ]
    );
    assert_eq!(rows(&scripted.iwfd)?.len(), 3, "what was granted goes on");
    clean(&scripted)
}

#[test]
fn absurd_lifetimes_are_cut_and_none_is_no_mapping() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    scripted.server.spoil_all(&[Fault::Lifetime(u32::MAX)]);
    gateway.add("TCP", 33_000, LAN1, 8000, 600_000)?.ok()?;
    let left = only(&scripted)?["granted_left_seconds"].as_u64();
    ensure!(
        left.is_some_and(|left| (86_390..=86_400).contains(&left)),
        "{left:?}"
    );

    scripted.server.spoil_all(&[Fault::Lifetime(0)]);
    let (answer, took) = wait::timed(|| gateway.add("UDP", 33_001, LAN1, 8001, 3600));
    assert_eq!(answer?.error(), Some(501));
    ensure!(took <= DEADLINE, "it took {took:?}");
    assert_eq!(endpoint(&only(&scripted)?, "carrier")?.port(), 33_000);
    clean(&scripted)
}

#[test]
fn a_server_that_falls_silent_in_the_midst_of_renewals_loses_what_it_granted() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let tap = PcpTap::start(&scripted.lab)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    scripted.server.spoil_all(&[Fault::Lifetime(24)]);
    gateway.add("TCP", 34_000, LAN1, 8000, 3600)?.ok()?;
    wait::until("a renewal", Duration::from_secs(20), || {
        (scripted.server.map_requests().len() >= 2).then_some(())
    })?;
    scripted.server.spoil_all(&[Fault::Drop]);
    assert_eq!(rows(&scripted.iwfd)?.len(), 1);
    wait::until(
        "the mapping to end with its lease",
        Duration::from_secs(30),
        || rows(&scripted.iwfd).ok().filter(Vec::is_empty).map(|_| ()),
    )?;
    // Told when its sessions have ended, which is after it has left the list.
    wait::until("the removal to be told (IWF-074)", SOON, || {
        let told = events(&scripted, "mapping-removed").ok()?;
        (told.len() == 1).then_some(())
    })?;
    let requests = tap.timed_map_requests()?;
    let renewals: Vec<_> = requests.iter().filter(|(_, r)| r.lifetime > 0).collect();
    // Made; renewed within 12 to 15 s; tried in vain within 12 to 15 s after that. The windows left are too close.
    ensure!(renewals.len() == 3, "{requests:?}");
    for pair in renewals.windows(2) {
        ensure!(
            pair[1].0 - pair[0].0 >= Duration::from_secs(4),
            "PCPC-051: {requests:?}"
        );
    }
    clean(&scripted)
}

#[test]
fn a_mapping_update_is_followed_and_told() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let second = Gateway::discover_version(&scripted.lab.lan1, Version::Two)?;
    second
        .call(
            "AddAnyPortMapping",
            &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", "35000"),
                ("NewProtocol", "TCP"),
                ("NewInternalPort", "8000"),
                ("NewInternalClient", &LAN1.to_string()),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "suite"),
                ("NewLeaseDuration", "3600"),
            ],
        )?
        .ok()?;
    let request = scripted
        .server
        .wait_for_map("the request", SOON, |_| true)?;
    let client = scripted.server.arrivals().first().context("one")?.from;
    let update = Response {
        opcode: Opcode::Map,
        result: result::SUCCESS,
        lifetime: 1800,
        epoch: scripted.server.epoch(),
        map: Some(Map {
            external_port: 35_999,
            external_addr: EXTERNAL,
            ..request.map.context("a MAP")?
        }),
    };
    scripted.server.send(&update.encode(), client)?;
    let told = wait::until("the event (IWF-084)", SOON, || {
        events(&scripted, "mapping-moved").ok()?.pop()
    })?;
    assert_eq!(told["detail"], "11.22.33.1:35000 is 11.22.33.1:35999 now");
    assert_eq!(endpoint(&only(&scripted)?, "carrier")?.port(), 35_999);
    clean(&scripted)
}
