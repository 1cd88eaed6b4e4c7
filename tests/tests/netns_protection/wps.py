"""The registration protocol of Wi-Fi Simple Configuration 2.0, both sides, for DeviceProtection:1.

Of Python's numbers and hashes, and AES of the openssl command: nothing of it is what the gateway is made of.

    wps.py vector     prints one run with known numbers, as JSON: what each side says
"""

import hashlib
import hmac
import json
import struct
import subprocess
import sys

PRIME = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA237327FFFFFFFFFFFFFFFF",
    16,
)
LABEL = b"Wi-Fi Easy and Secure Key Derivation"

M1, M2, M2D, M3, M4, M5, M6, M7, M8, ACK, NACK, DONE = range(4, 16)
(AUTHENTICATOR, DEVICE_NAME, PASSWORD_ID, E_HASH1, E_HASH2, E_S1, E_S2, SETTINGS, E_NONCE, KWA, MAC, KIND, KEY, R_NONCE, R_HASH1,
 R_HASH2, R_S1, R_S2, UUID_E, UUID_R, VERSION) = (
    0x1005, 0x1011, 0x1012, 0x1014, 0x1015, 0x1016, 0x1017, 0x1018, 0x101A, 0x101E, 0x1020, 0x1022, 0x1032, 0x1039, 0x103D,
    0x103E, 0x103F, 0x1040, 0x1047, 0x1048, 0x104A)


def attributes(*pairs):
    return b"".join(struct.pack(">HH", name, len(value)) + value for name, value in pairs)


def message(kind, *pairs):
    return attributes((VERSION, b"\x10"), (KIND, bytes([kind])), *pairs)


def read(octets):
    found = {}
    while octets:
        name, length = struct.unpack(">HH", octets[:4])
        found.setdefault(name, octets[4 : 4 + length])
        octets = octets[4 + length :]
    return found


def mac(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def aes(key, iv, octets, *more):
    argv = ["openssl", "enc", "-aes-128-cbc", "-K", key.hex(), "-iv", iv.hex(), *more]
    return subprocess.run(argv, input=octets, capture_output=True, check=True).stdout


class Side:
    """What both sides do. `draws` gives octets for a purpose."""

    def __init__(self, pin, draws):
        self.halves = pin[:4].encode(), pin[4:].encode()
        self.draws = draws
        self.secret = int.from_bytes(draws("exponent", 64), "big")
        self.public = pow(2, self.secret, PRIME).to_bytes(192, "big")
        self.nonce = draws("nonce", 16)
        self.proofs = draws("proof 1", 16), draws("proof 2", 16)
        self.said = b""

    def keyed(self, theirs, nonce_e, address, nonce_r):
        shared = pow(int.from_bytes(theirs, "big"), self.secret, PRIME).to_bytes(192, "big")
        root = mac(hashlib.sha256(shared).digest(), nonce_e, address, nonce_r)
        count = lambda number: struct.pack(">I", number)
        keys = b"".join(mac(root, count(n), LABEL, count(640)) for n in (1, 2, 3))
        self.auth, self.wrap = keys[:32], keys[32:48]

    def hash(self, half, proof, key_e, key_r):
        return mac(self.auth, proof, mac(self.auth, self.halves[half])[:16], key_e, key_r)

    def seal(self, heard, said):
        self.said = said + attributes((AUTHENTICATOR, mac(self.auth, heard, said)[:8]))
        return self.said

    def is_sealed(self, heard):
        return hmac.compare_digest(heard[-12:], attributes((AUTHENTICATOR, mac(self.auth, self.said, heard[:-12])[:8])))

    def settings(self, number, *pairs):
        plain = attributes(*pairs)
        plain += attributes((KWA, mac(self.auth, plain)[:8]))
        iv = self.draws(f"iv {number}", 16)
        return iv + aes(self.wrap, iv, plain)

    def open(self, heard):
        if not self.is_sealed(heard):
            raise ValueError("not sealed")
        sealed = read(heard)[SETTINGS]
        plain = aes(self.wrap, sealed[:16], sealed[16:], "-d")
        if plain[-12:] != attributes((KWA, mac(self.auth, plain[:-12])[:8])):
            raise ValueError("settings not sealed")
        return read(plain)


class Registrar(Side):
    """A control point."""

    def __init__(self, uuid, pin, draws, name=b"phone"):
        super().__init__(pin, draws)
        self.uuid, self.name = uuid, name

    def answer(self, heard):
        """What is said to a message. Raises ValueError when the other side has not proven itself."""
        found = read(heard)
        kind = found[KIND][0]
        if kind == M1:
            self.greeted(heard)
            return self.m2()
        if found.get(R_NONCE) != self.nonce:
            raise ValueError("of another run")
        first = (E_NONCE, self.nonce_e)
        if kind == M3:
            if not self.is_sealed(heard):
                raise ValueError("M3 not sealed")
            self.told = found[E_HASH1], found[E_HASH2]
            hashes = [self.hash(half, self.proofs[half], self.key_e, self.public) for half in (0, 1)]
            settings = self.settings(1, (R_S1, self.proofs[0]))
            return self.seal(heard, message(M4, first, (R_HASH1, hashes[0]), (R_HASH2, hashes[1]), (SETTINGS, settings)))
        if kind == M5:
            self.check(0, self.open(heard)[E_S1])
            return self.seal(heard, message(M6, first, (SETTINGS, self.settings(2, (R_S2, self.proofs[1])))))
        if kind == M7:
            self.check(1, self.open(heard)[E_S2])
            return self.seal(heard, message(M8, first, (SETTINGS, self.settings(3))))
        if kind == DONE:
            return self.empty(ACK)
        raise ValueError(f"kind {kind}")

    def greeted(self, m1):
        found = read(m1)
        self.m1, self.nonce_e, self.key_e, self.address = m1, found[E_NONCE], found[KEY], found[MAC]

    def check(self, half, proof):
        if self.hash(half, proof, self.key_e, self.public) != self.told[half]:
            raise ValueError("the device does not know the PIN")

    def empty(self, kind):
        return message(kind, (E_NONCE, self.nonce_e), (R_NONCE, self.nonce))

    def m2d(self):
        """To M1, as long as nobody has typed the PIN."""
        described = (E_NONCE, self.nonce_e), (R_NONCE, self.nonce), (UUID_R, self.uuid)
        return message(M2D, *described, (DEVICE_NAME, self.name))

    def m2(self):
        self.keyed(self.key_e, self.nonce_e, self.address, self.nonce)
        described = (E_NONCE, self.nonce_e), (R_NONCE, self.nonce), (UUID_R, self.uuid), (KEY, self.public)
        return self.seal(self.m1, message(M2, *described, (DEVICE_NAME, self.name), (PASSWORD_ID, b"\0\0")))


class Enrollee(Side):
    """A device, as far as it answers; M1 is given, because most of it describes the device."""

    def __init__(self, pin, draws, m1):
        super().__init__(pin, draws)
        self.said, self.address = m1, read(m1)[MAC]

    def answer(self, heard):
        found = read(heard)
        kind = found[KIND][0]
        if kind == M2:
            self.nonce_r, self.key_r = found[R_NONCE], found[KEY]
            self.keyed(self.key_r, self.nonce, self.address, self.nonce_r)
            if not self.is_sealed(heard):
                raise ValueError("M2 not sealed")
            hashes = [self.hash(half, self.proofs[half], self.public, self.key_r) for half in (0, 1)]
            return self.seal(heard, message(M3, (R_NONCE, self.nonce_r), (E_HASH1, hashes[0]), (E_HASH2, hashes[1])))
        if kind in (M4, M6):
            half, name, shown = (0, E_S1, R_S1) if kind == M4 else (1, E_S2, R_S2)
            if kind == M4:
                self.told = found[R_HASH1], found[R_HASH2]
            if self.hash(half, self.open(heard)[shown], self.public, self.key_r) != self.told[half]:
                raise ValueError("the control point does not know the PIN")
            settings = self.settings(half + 1, (name, self.proofs[half]))
            return self.seal(heard, message(M5 if kind == M4 else M7, (R_NONCE, self.nonce_r), (SETTINGS, settings)))
        if kind == M8:
            self.open(heard)
            return message(DONE, (E_NONCE, self.nonce), (R_NONCE, self.nonce_r))
        raise ValueError(f"kind {kind}")


def known(who):
    """Octets that follow from a name."""

    def draws(what, length):
        block = lambda n: hashlib.sha256(f"{who} {what} {n}".encode()).digest()
        return b"".join(block(n) for n in range(length // 32 + 1))[:length]

    return draws


def vector():
    """One run. The enrollee's description in M1 is what a reader has to put around the numbers by itself."""
    pin, uuid = "12345670", bytes(range(16))
    draws = known("enrollee")
    device = Side(pin, draws)
    m1 = message(M1, (UUID_E, bytes(16)), (MAC, b"\x02\0\0\0\0\1"), (E_NONCE, device.nonce), (KEY, device.public))
    said = [m1]
    enrollee, registrar = Enrollee(pin, draws, m1), Registrar(uuid, pin, known("registrar"))
    for _ in range(4):
        said.append(registrar.answer(said[-1]))
        said.append(enrollee.answer(said[-1]))
    names = ["M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "Done"]
    draws_of = {what: draws(what, 64 if what == "exponent" else 16).hex() for what in
                ["exponent", "nonce", "proof 1", "proof 2", "iv 1", "iv 2"]}
    run = {"pin": pin, "registrar": uuid.hex(), "draws": draws_of, "keys": {"auth": enrollee.auth.hex(), "wrap": enrollee.wrap.hex()}}
    return run | {"messages": dict(zip(names, (one.hex() for one in said)))}


if __name__ == "__main__" and sys.argv[1:] == ["vector"]:
    print(json.dumps(vector(), indent=1))
