//! The certificate authority of one network. Its key is never stored: it ends with the network.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::NetError;

/// A container lives for as long as it likes, so the certificate does too.
const VALID: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// For clocks in containers' clients that are behind.
const BEFORE: Duration = Duration::from_secs(24 * 3600);

/// An authority of its own for each network, so that what one container trusts is worth nothing elsewhere.
#[derive(Debug)]
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    /// A fresh ECDSA P-256 key with a self-signed certificate.
    pub(crate) fn generate() -> Result<Self, NetError> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "Wharf container CA");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Wharf");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let now = SystemTime::now();
        params.not_before = (now - BEFORE).into();
        params.not_after = (now + VALID).into();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        Ok(Self(CertifiedIssuer::self_signed(params, key)?))
    }

    /// The certificate as PEM, what `GET /ca` answers.
    pub fn pem(&self) -> String {
        self.0.pem()
    }
}
