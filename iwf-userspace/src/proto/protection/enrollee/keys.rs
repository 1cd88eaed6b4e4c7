//! Keys of a run, and what is made with them: the primitives are other people's.
//!
//! Read before editing: Wi-Fi Simple Configuration 2.0 sections 7.3 and 7.5; RFC 3526 section 2.

use aes::Aes128;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _};
use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, U512, U1536};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// RFC 3526 section 2: the group of 1536 bits; its generator is 2.
pub(super) const PRIME: U1536 = U1536::from_be_hex(concat!(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74",
    "020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437",
    "4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED",
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05",
    "98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB",
    "9ED529077096966D670C354E4ABC9804F1746C08CA237327FFFFFFFFFFFFFFFF",
));
const GENERATOR: U1536 = U1536::from_u8(2);
/// Octets of a public key.
pub(super) const KEY_LEN: usize = 192;
const LABEL: &[u8] = b"Wi-Fi Easy and Secure Key Derivation";
/// Bits that are derived: AuthKey, KeyWrapKey and EMSK.
const DERIVED: u32 = 256 + 128 + 256;

/// What was decrypted.
pub(super) type Plain = Zeroizing<Vec<u8>>;

/// The secret of a Diffie-Hellman exchange. Twice as many bits as the group is worth would do.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Exponent(U512);

impl Exponent {
    pub(super) fn new(octets: &[u8; 64]) -> Self {
        Self(U512::from_be_slice(octets))
    }

    pub(super) fn public(&self) -> [u8; KEY_LEN] {
        *self.power(GENERATOR)
    }

    /// What both sides have in common; `None` for a key that would make it known to everybody.
    pub(super) fn shared(&self, theirs: &[u8; KEY_LEN]) -> Option<Zeroizing<[u8; KEY_LEN]>> {
        let theirs = U1536::from_be_slice(theirs);
        let last = PRIME.wrapping_sub(&U1536::ONE);
        (theirs > U1536::ONE && theirs < last).then(|| self.power(theirs))
    }

    /// In constant time.
    fn power(&self, base: U1536) -> Zeroizing<[u8; KEY_LEN]> {
        let modulus = Odd::new(PRIME).expect("the prime is odd");
        let params = FixedMontyParams::new(modulus);
        let power = FixedMontyForm::new(&base, &params).pow(&self.0);
        let mut octets = Zeroizing::new([0; KEY_LEN]);
        octets.copy_from_slice(power.retrieve().to_be_bytes().as_ref());
        octets
    }
}

/// The keys of a run.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Keys {
    /// AuthKey.
    auth: [u8; 32],
    /// KeyWrapKey.
    wrap: [u8; 16],
}

impl Keys {
    /// Those of who shares a secret, for the run with these nonces.
    pub(super) fn derive(shared: &[u8], nonces: &[&[u8]]) -> Self {
        let hashed = Zeroizing::new(<[u8; 32]>::from(Sha256::digest(shared)));
        let root = Zeroizing::new(hmac(hashed.as_slice(), nonces).finish());
        let mut derived = Zeroizing::new([0; 96]);
        for (chunk, count) in derived.as_chunks_mut::<32>().0.iter_mut().zip(1_u32..) {
            let parts: [&[u8]; 3] = [&count.to_be_bytes(), LABEL, &DERIVED.to_be_bytes()];
            *chunk = hmac(root.as_slice(), &parts).finish();
        }
        let mut keys = Self {
            auth: [0; 32],
            wrap: [0; 16],
        };
        let wanted = keys.auth.iter_mut().chain(&mut keys.wrap);
        for (to, from) in wanted.zip(derived.iter()) {
            *to = *from;
        }
        keys
    }

    /// What only who has the keys can say of these octets.
    pub(super) fn seal(&self, parts: &[&[u8]]) -> Seal {
        hmac(&self.auth, parts)
    }

    /// AES-128-CBC with padding, the initialization vector in front.
    pub(super) fn encrypt(&self, iv: [u8; 16], plain: &[u8]) -> Vec<u8> {
        let cipher = cbc::Encryptor::<Aes128>::new(&self.wrap.into(), &iv.into());
        [iv.as_slice(), &cipher.encrypt_padded_vec::<Pkcs7>(plain)].concat()
    }

    /// The octets are authentic: what is wrong with their padding tells nobody anything.
    pub(super) fn decrypt(&self, sealed: &[u8]) -> Option<Plain> {
        let (iv, rest) = sealed.split_first_chunk::<16>()?;
        let cipher = cbc::Decryptor::<Aes128>::new(&self.wrap.into(), &(*iv).into());
        let plain = cipher.decrypt_padded_vec::<Pkcs7>(rest);
        plain.ok().map(Zeroizing::new)
    }
}

/// A keyed hash.
pub(super) struct Seal(Hmac<Sha256>);

impl Seal {
    pub(super) fn finish(self) -> [u8; 32] {
        self.0.finalize().into_bytes().into()
    }

    /// As an authenticator: the first 64 bits.
    pub(super) fn short(self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = self.finish();
        [a, b, c, d, e, f, g, h]
    }

    /// As a key of half its length.
    pub(super) fn half(self) -> Zeroizing<[u8; 16]> {
        let whole = Zeroizing::new(self.finish());
        let mut half = Zeroizing::new([0; 16]);
        for (to, from) in half.iter_mut().zip(whole.iter()) {
            *to = *from;
        }
        half
    }

    /// Whether it begins with these octets; in constant time.
    pub(super) fn begins(self, octets: &[u8]) -> bool {
        self.0.verify_truncated_left(octets).is_ok()
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Seal {
    let mut mac = Hmac::new_from_slice(key).expect("a key of HMAC has any length");
    for part in parts {
        mac.update(part);
    }
    Seal(mac)
}
