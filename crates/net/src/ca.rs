//! The certificate authority of one network. Its key is never stored: it ends with the network.

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

/// A server's certificate with its authority's, and its key in PKCS #8.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Vec<u8>,
}

impl Ca {
    /// A fresh ECDSA P-256 key with a self-signed certificate.
    pub(crate) fn generate() -> Result<Self, NetError> {
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
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        Ok(Self(CertifiedIssuer::self_signed(params, key)?))
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
