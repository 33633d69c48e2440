//! The certificate authority of one network. Its key is on no disk. It goes to the daemon that adopts the container ([`CaKey`]), by whoever keeps
//! the container's process, and ends with that.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;

use crate::NetError;

/// A container lives for as long as it likes, so the certificate does too.
const VALID: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long what the authority signs is valid.
pub(crate) const LEAF_VALID: Duration = Duration::from_secs(7 * 24 * 3600);
/// For clocks in containers' clients that are behind.
const BEFORE: Duration = Duration::from_secs(24 * 3600);
/// Longer names have no place in a subject (RFC 5280, appendix A.1); clients look at the alternative names alone.
const MAX_COMMON_NAME: usize = 64;

/// An authority of its own for each network, so that what one container trusts is worth nothing elsewhere.
#[derive(Debug)]
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

/// The key of an authority, from which the same authority can be made again. To be kept in memory only.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct CaKey(String);

impl fmt::Debug for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CaKey(..)")
    }
}

/// A server's certificate with its authority's, and its key in PKCS #8.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Vec<u8>,
}

impl Ca {
    /// A fresh ECDSA P-256 key with a self-signed certificate.
    pub(crate) fn generate() -> Result<Self, NetError> {
        Self::of(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?)
    }

    /// The authority of a network that an earlier daemon made: who trusts its certificate trusts this one.
    pub(crate) fn restore(key: &CaKey) -> Result<Self, NetError> {
        Self::of(KeyPair::from_pem(&key.0)?)
    }

    fn of(key: KeyPair) -> Result<Self, NetError> {
        let mut params = valid_for(VALID);
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "Wharf container CA");
        name.push(DnType::OrganizationName, "Wharf");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        Ok(Self(CertifiedIssuer::self_signed(params, key)?))
    }

    /// The key, for [`crate::Networks::adopt`].
    pub fn key(&self) -> CaKey {
        CaKey(self.0.key().serialize_pem())
    }

    /// The certificate as PEM, what `GET /ca` answers.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    #[cfg(test)]
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        self.0.der()
    }

    /// A certificate for a host name or an IP address.
    ///
    /// # Errors
    /// The name has characters that none may have.
    pub(crate) fn leaf(&self, name: &str) -> Result<Leaf, rcgen::Error> {
        let mut params = valid_for(LEAF_VALID);
        if name.len() <= MAX_COMMON_NAME {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names = vec![match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.try_into()?),
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Without it, strict clients refuse the certificate (RFC 5280, 4.2.1.1).
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Leaf {
            chain: vec![certificate.der().clone(), self.0.der().clone()],
            key: key.serialize_der(),
        })
    }
}

/// A certificate from now on, with an empty subject.
fn valid_for(valid: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + valid).into();
    params
}
