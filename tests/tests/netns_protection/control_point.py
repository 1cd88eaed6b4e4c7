"""A control point over TLS, of Python's standard library and OpenSSL alone. How it is introduced is in wps.py.

Reads one JSON object a line and answers each with one. The connection is kept and opened again when it is closed.

    control_point.py HOST PORT [CERTIFICATE KEY] [TLS1.2]
"""

import base64
import hashlib
import hmac
import html
import http.client
import json
import os
import re
import ssl
import sys
import uuid

import wps

KINDS = {"DeviceProtection": 1, "WANIPConnection": 2}
PATHS = {"DeviceProtection": "DeviceProtection", "WANIPConnection": "WANIPConn"}


def identity(der):
    """First 16 octets of the SHA-256, as a UUID of version 5."""
    return uuid.UUID(bytes=hashlib.sha256(der).digest()[:16], version=5)


class Peer:
    def __init__(self, host, port, files, old):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        if old:
            self.context.maximum_version = ssl.TLSVersion.TLSv1_2
        self.own = None
        if files:
            self.context.load_cert_chain(*files)
            with open(files[0], encoding="ascii") as pem:
                self.own = identity(ssl.PEM_cert_to_DER_cert(pem.read()))
        self.at = (host, port)
        self.connect()

    def connect(self):
        self.link = http.client.HTTPSConnection(*self.at, timeout=20, context=self.context)
        self.link.connect()

    def request(self, method, path, body=None, headers={}):
        self.link.request(method, path, body, headers)
        answer = self.link.getresponse()
        text = answer.read().decode()
        closing = answer.getheader("Connection", "").lower() == "close"
        return answer.status, text, closing

    def call(self, service, action, args):
        urn = f"urn:schemas-upnp-org:service:{service}:{KINDS[service]}"
        inner = "".join(f"<{name}>{html.escape(value)}</{name}>" for name, value in args)
        body = (
            '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">'
            f'<s:Body><u:{action} xmlns:u="{urn}">{inner}</u:{action}></s:Body></s:Envelope>'
        )
        headers = {"SOAPAction": f'"{urn}#{action}"', "Content-Type": "text/xml"}
        status, text, closing = self.request("POST", f"/igd2/ctl/{PATHS[service]}", body, headers)
        error = re.search(r"<errorCode>(\d+)</errorCode>", text)
        out = re.findall(r"<(\w+)>([^<]*)</\1>", text)
        return {
            "status": status,
            "error": int(error.group(1)) if error else None,
            "out": {name: html.unescape(value) for name, value in out},
            "closing": closing,
        }

    def login(self, name, password):
        asked = self.call("DeviceProtection", "GetUserLoginChallenge", [["ProtocolType", "PKCS5"], ["Name", name]])
        if asked["error"]:
            return asked
        salt, challenge = (base64.b64decode(asked["out"][part]) for part in ("Salt", "Challenge"))
        stored = hashlib.pbkdf2_hmac("sha256", password.encode(), name.encode() + salt, 5000, 16)
        device = identity(self.link.sock.getpeercert(binary_form=True))
        text = challenge + device.bytes + self.own.bytes
        authenticator = hmac.new(stored, text, hashlib.sha256).digest()[:16]
        encode = lambda octets: base64.b64encode(octets).decode()
        return self.call(
            "DeviceProtection",
            "UserLogin",
            [["ProtocolType", "PKCS5"], ["Challenge", encode(challenge)], ["Authenticator", encode(authenticator)]],
        )

    def setup(self, octets):
        """Says something in an introduction; what is heard is kept for the next word."""
        self.said = octets
        args = [["ProtocolType", "WPS"], ["InMessage", base64.b64encode(octets).decode()]]
        answer = self.call("DeviceProtection", "SendSetupMessage", args)
        if answer["error"]:
            return {"error": answer["error"]}
        self.heard = base64.b64decode(answer["out"]["OutMessage"])
        return {"kind": wps.read(self.heard)[wps.KIND][0] if self.heard else None}

    def begin(self, pin, own):
        self.registrar = wps.Registrar(own, pin, lambda what, length: os.urandom(length))
        answer = self.setup(b"")
        if "kind" in answer:
            device = identity(self.link.sock.getpeercert(binary_form=True))
            assert wps.read(self.heard)[wps.UUID_E] == device.bytes, "M1 is of another device"
        return answer

    def introduce(self, pin):
        """A whole run, with a device that proves itself as well. The registrar raises if it does not."""
        answer = self.begin(pin, self.own.bytes)
        while answer.get("kind"):
            answer = self.setup(self.registrar.answer(self.heard))
        return answer

    def do(self, wish):
        what = wish["do"]
        if what == "introduce":
            return self.introduce(wish["pin"])
        if what == "begin":
            own = uuid.UUID(wish["as"]) if "as" in wish else self.own
            return self.begin(wish["pin"], own.bytes)
        if what == "go on":
            return self.setup(self.registrar.answer(self.heard))
        if what == "again":
            return self.setup(self.said)
        if what == "wait":
            m1 = self.heard
            self.registrar.greeted(m1)
            answer = self.setup(self.registrar.m2d())
            self.heard = m1
            return answer
        if what == "give up":
            return self.setup(self.registrar.empty(wps.NACK))
        if what == "call":
            return self.call(wish["service"], wish["action"], wish["args"])
        if what == "login":
            return self.login(wish["name"], wish["password"])
        if what == "get":
            status, text, _ = self.request("GET", wish["path"])
            return {"status": status, "text": text}
        if what == "who":
            device = identity(self.link.sock.getpeercert(binary_form=True))
            return {"own": str(self.own), "device": str(device), "version": self.link.sock.version()}
        if what == "closed":
            # It has said so with its last answer, and the connection is over on this side as well.
            if self.link.sock is None:
                return {"closed": True}
            # The other side has closed when nothing more comes to be read.
            self.link.sock.settimeout(20)
            return {"closed": self.link.sock.recv(1) == b""}
        if what == "reconnect":
            self.link.close()
            self.connect()
            return {}
        raise ValueError(what)


def main(host, port, *rest):
    files = list(rest[:2]) if len(rest) >= 2 else None
    peer = Peer(host, int(port), files, "TLS1.2" in rest)
    for line in sys.stdin:
        print(json.dumps(peer.do(json.loads(line))), flush=True)


main(*sys.argv[1:])
