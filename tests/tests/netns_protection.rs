//! DeviceProtection:1 with control points of another make: Python's TLS, hashes and HTTP, certificates of OpenSSL.

#[path = "netns_protection/introduction.rs"]
mod introduction;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Ctl, Iwfd, Options};
use iwf_tests::igd::{Gateway, Version};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::peers::{self, Echo};
use iwf_tests::process;
use iwf_tests::topology::{GATEWAY, LAN1, LAN2, Lab, WAN};
use iwf_tests::wait;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/netns_protection/control_point.py"
);
const ON: &str = "[device_protection]\nenabled = true\nport = 0\n";

fn start(lab: &Lab, more: &'static str) -> Result<Iwfd> {
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        more,
        ..Options::default()
    };
    Iwfd::start(lab, &options)
}

/// A control point that says what it is told to, over one connection.
struct ControlPoint {
    child: Child,
    says: ChildStdin,
    hears: BufReader<ChildStdout>,
}

impl ControlPoint {
    fn start(host: &Namespace, at: SocketAddr, more: &[String]) -> Result<Self> {
        let mut argv = vec!["/usr/bin/python3".to_owned(), SCRIPT.to_owned()];
        argv.extend([at.ip().to_string(), at.port().to_string()]);
        argv.extend_from_slice(more);
        let mut command = host.command(&argv);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a control point")?;
        let says = child.stdin.take().context("its input")?;
        let hears = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, says, hears })
    }

    fn tell(&mut self, wish: &Value) -> Result<Value> {
        writeln!(self.says, "{wish}").context("tell a control point")?;
        let mut line = String::new();
        self.hears.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("{wish}: it said {line:?}"))
    }

    fn call(&mut self, service: &str, action: &str, args: &[(&str, &str)]) -> Result<Value> {
        self.tell(&json!({"do": "call", "service": service, "action": action, "args": args}))
    }

    fn protection(&mut self, action: &str, args: &[(&str, &str)]) -> Result<Value> {
        self.call("DeviceProtection", action, args)
    }

    fn roles(&mut self) -> Result<String> {
        let answer = self.protection("GetAssignedRoles", &[])?;
        let roles = answer["out"]["RoleList"].as_str();
        Ok(roles.with_context(|| answer.to_string())?.to_owned())
    }

    fn login(&mut self, name: &str, password: &str) -> Result<Value> {
        self.tell(&json!({"do": "login", "name": name, "password": password}))
    }

    fn add(&mut self, external: u16, client: Ipv4Addr, internal: u16) -> Result<Value> {
        let (external, internal) = (external.to_string(), internal.to_string());
        let args = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", &external),
            ("NewProtocol", "TCP"),
            ("NewInternalPort", &internal),
            ("NewInternalClient", &client.to_string()),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "door"),
            ("NewLeaseDuration", "600"),
        ];
        self.call("WANIPConnection", "AddPortMapping", &args)
    }

    fn delete(&mut self, external: u16) -> Result<Value> {
        let external = external.to_string();
        let args = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", external.as_str()),
            ("NewProtocol", "TCP"),
        ];
        self.call("WANIPConnection", "DeletePortMapping", &args)
    }
}

impl Drop for ControlPoint {
    fn drop(&mut self) {
        // It may have ended by itself.
        if self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }
}

fn ok(answer: &Value) -> Result<()> {
    ensure!(answer["status"] == 200, "answered {answer}");
    Ok(())
}

/// A key and a certificate that it signs itself: the files' names.
fn certificate(lab: &Lab, name: &str, algorithm: &str) -> Result<Vec<String>> {
    let file = |end| {
        lab.dir()
            .join(format!("{name}.{end}"))
            .display()
            .to_string()
    };
    let (certificate, key) = (file("crt"), file("key"));
    let subject = format!("/CN={name}");
    let mut argv = vec!["openssl", "req", "-x509", "-nodes", "-days", "1", "-newkey"];
    argv.extend(algorithm.split(' '));
    argv.extend(["-subj", &subject, "-out", &certificate, "-keyout", &key]);
    process::must(&argv)?;
    Ok(vec![certificate, key])
}

/// Where the gateway is found to be served over TLS.
fn secure_location(host: &Namespace) -> Result<(SocketAddr, String)> {
    let answer = wait::until_ok("an answer to a search", SOON, || search(host))?;
    let location = answer
        .lines()
        .find_map(|line| line.strip_prefix("SECURELOCATION.UPNP.ORG: https://"))
        .with_context(|| format!("no secure location in {answer}"))?;
    let (at, path) = location.split_once('/').context("a path")?;
    Ok((at.parse()?, format!("/{path}")))
}

fn search(host: &Namespace) -> Result<String> {
    let search = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
                  ST: urn:schemas-upnp-org:service:DeviceProtection:1\r\n\r\n";
    let script = "import socket, sys\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        s.settimeout(2)\n\
        s.sendto(sys.argv[2].encode(), (sys.argv[1], 1900))\n\
        print(s.recv(2048).decode())\n";
    host.must(&[
        "/usr/bin/python3",
        "-c",
        script,
        &GATEWAY.to_string(),
        search,
    ])
}

#[test]
fn who_is_known_opens_ports_of_others() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut iwfd = start(&lab, ON)?;
    let owner = iwfd.ctl();
    let (at, path) = secure_location(&lab.lan1)?;
    ensure!(path == "/igd2/desc.xml" && at.ip() == GATEWAY, "{at}{path}");

    // Who shows no certificate has no rights, nor has who shows one that nobody knows.
    let mut nobody = ControlPoint::start(&lab.lan1, at, &[])?;
    ensure!(nobody.roles()? == "Public");
    ensure!(nobody.add(6000, LAN2, 6000)?["error"] == 606);
    ensure!(nobody.protection("GetACLData", &[])?["error"] == 606);
    let description = nobody.tell(&json!({"do": "get", "path": path}))?;
    let description = description["text"].as_str().context("a text")?;
    ensure!(description.contains("DeviceProtection:1") && !description.contains("URLBase"));

    let key = certificate(&lab, "phone", "ec -pkeyopt ec_paramgen_curve:P-256")?;
    let mut phone = ControlPoint::start(&lab.lan1, at, &key)?;
    let who = phone.tell(&json!({"do": "who"}))?;
    ensure!(who["version"] == "TLSv1.3", "{who}");
    let shown = owner.json(&["protection"])?;
    ensure!(shown["device"] == who["device"], "{shown} {who}");
    ensure!(phone.roles()? == "Public");
    ensure!(phone.add(6000, LAN2, 6000)?["error"] == 606);
    ensure!(phone.add(80, LAN1, 8080)?["error"] == 606);
    ensure!(phone.protection("RemoveIdentity", &[("Identity", "<x/>")])?["error"] == 606);

    // A user with a password opens a third party's port, and one below 1024.
    add_user(&owner, "mika", "correct horse", "basic")?;
    ensure!(phone.login("mika", "wrong horse")?["error"] == 701);
    ok(&phone.login("mika", "correct horse")?)?;
    ensure!(phone.roles()? == "Public Basic");
    ok(&phone.add(443, LAN2, 22)?)?;
    let door = Echo::listen(&lab.lan2, 22)?;
    let outside = SocketAddrV4::new(WAN, 443);
    peers::tcp_echo(&lab.cgn, outside, "let in", SOON)?;
    ensure!(door.accepted() == 1);

    // The host itself sees and deletes nothing of it, and neither does the same program without TLS.
    let plain = Gateway::discover_version(&lab.lan2, Version::Two)?;
    ensure!(plain.delete("TCP", 443)?.error() == Some(606));
    let plain = plain.seen_from(&lab.lan1);
    ensure!(plain.add("TCP", 6001, LAN2, 6001, 60)?.error() == Some(606));

    // A mapping of another host is seen and deleted by who has the rights.
    let of_lan2 = plain.seen_from(&lab.lan2);
    of_lan2.add("TCP", 7000, LAN2, 7000, 600)?.ok()?;
    ensure!(nobody.delete(7000)?["error"] == 606);
    ok(&phone.delete(7000)?)?;
    ok(&phone.delete(443)?)?;
    peers::tcp_is_closed(&lab.cgn, outside, SOON)?;

    // The access list outlives a restart; a login does not.
    iwfd.kill()?;
    iwfd.restart()?;
    let (at, _) = secure_location(&lab.lan1)?;
    let mut phone = ControlPoint::start(&lab.lan1, at, &[key, vec!["TLS1.2".to_owned()]].concat())?;
    let again = phone.tell(&json!({"do": "who"}))?;
    ensure!(
        again["device"] == who["device"] && again["version"] == "TLSv1.2",
        "{again}"
    );
    ensure!(phone.roles()? == "Public");
    ok(&phone.login("mika", "correct horse")?)?;
    ensure!(phone.roles()? == "Public Basic");

    administration(&lab, &iwfd, at, &mut phone, &who)?;
    failures(&lab, at)
}

fn add_user(owner: &Ctl, name: &str, password: &str, role: &str) -> Result<()> {
    let argv = owner.argv(&["protection", "add-user", name, "--role", role])?;
    process::must_with_input(&argv, format!("{password}\n").as_bytes())?;
    Ok(())
}

/// DP-007, and what the owner sees of it.
fn administration(
    lab: &Lab,
    iwfd: &Iwfd,
    at: SocketAddr,
    phone: &mut ControlPoint,
    who: &Value,
) -> Result<()> {
    let owner = iwfd.ctl();
    let own = who["own"].as_str().context("an identity")?;
    let list = format!("<Identities><CP><Name>phone</Name><ID>{own}</ID></CP></Identities>");
    let cp = format!("<Identity><CP><ID>{own}</ID></CP></Identity>");
    let basic = [("Identity", cp.as_str()), ("RoleList", "Basic")];
    ok(&phone.protection("AddIdentityList", &[("IdentityList", &list)])?)?;
    ensure!(phone.protection("AddRolesForIdentity", &basic)?["error"] == 606);

    add_user(&owner, "root", "battery staple", "admin")?;
    let rsa = certificate(lab, "laptop", "rsa:2048")?;
    let mut laptop = ControlPoint::start(&lab.lan2, at, &rsa)?;
    ok(&laptop.login("root", "battery staple")?)?;
    ok(&laptop.protection("AddRolesForIdentity", &basic)?)?;
    let acl = laptop.protection("GetACLData", &[])?;
    ensure!(
        acl["out"]["ACL"]
            .as_str()
            .is_some_and(|acl| acl.contains(own)),
        "{acl}"
    );
    // Now the phone is known without a user.
    phone.tell(&json!({"do": "reconnect"}))?;
    ensure!(phone.roles()? == "Public Basic");
    let shown = owner.json(&["protection"])?;
    let rows = shown["identities"].as_array().context("rows")?;
    let row = rows
        .iter()
        .find(|row| row["id"] == own)
        .context("its row")?;
    ensure!(
        row["roles"] == json!(["Basic"]) && row["name"] == "phone",
        "{row}"
    );
    let root = rows
        .iter()
        .find(|row| row["id"] == "root")
        .context("its row")?;
    ensure!(root["logins"] == 1 && root["password"] == true, "{root}");
    let table = owner.must(&["protection", "list"])?;
    ensure!(table.contains(own) && table.contains("TLS on"), "{table}");

    owner.must(&["protection", "roles", own])?;
    ensure!(phone.roles()? == "Public");
    owner.must(&["protection", "remove", own])?;
    owner.must(&["protection", "remove", "root"])?;
    ensure!(laptop.roles()? == "Public");
    let unknown = owner.run(&["protection", "remove", "root"])?;
    ensure!(!unknown.success() && unknown.text().contains("no root"));
    Ok(())
}

/// DP-005.
fn failures(lab: &Lab, at: SocketAddr) -> Result<()> {
    let key = certificate(lab, "thief", "ec -pkeyopt ec_paramgen_curve:P-256")?;
    let mut thief = ControlPoint::start(&lab.lan1, at, &key)?;
    for n in 1..=5 {
        let answer = thief.login("mika", &format!("guess number {n}"))?;
        ensure!(answer["error"] == 701, "{n}: {answer}");
    }
    ensure!(thief.tell(&json!({"do": "closed"}))?["closed"] == true);
    thief.tell(&json!({"do": "reconnect"}))?;
    ensure!(thief.login("mika", "correct horse")?["error"] == 708);
    Ok(())
}

/// DP-008, and from outside there is nobody.
#[test]
fn while_it_is_off_there_is_no_tls_and_no_service() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let iwfd = start(&lab, "")?;
    let owner = iwfd.ctl();
    let shown = owner.run(&["protection"])?;
    ensure!(!shown.success() && shown.text().contains("is off"));
    let status = owner.json(&["status"])?;
    let listener = &status["listeners"][0];
    ensure!(listener["secure"].is_null(), "{listener}");
    ensure!(search(&lab.lan1).is_err());
    let tls = SocketAddrV4::new(GATEWAY, 5443);
    peers::tcp_is_closed(&lab.lan1, tls, SOON)?;
    let gateway = Gateway::discover_version(&lab.lan1, Version::Two)?;
    ensure!(gateway.add("TCP", 6000, LAN2, 6000, 60)?.error() == Some(606));
    Ok(())
}
