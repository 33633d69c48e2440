//! TLS towards the container: the certificates that the network's authority gives out, one for each name, and the handshake.
//!
//! Certificates are made when they are first needed, kept, and made again well before they end.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::ca::{Ca, LEAF_VALID};

/// How many names' certificates are kept; the one that was needed the longest ago goes first.
const KEPT: usize = 512;
/// A certificate that is older is made anew, so that none is ever shown near its end.
const RENEW: Duration = LEAF_VALID.checked_div(2).expect("not by zero");
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// HTTP/1 first: workerd speaks nothing else, and only then bytes need no translation. Clients that offer h2 alone get it.
const PROTOCOLS: [&[u8]; 3] = [b"http/1.1", b"http/1.0", b"h2"];

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(default_provider()));

/// The certificates of one network.
#[derive(Debug, Default)]
pub(crate) struct Leaves {
    made: Mutex<HashMap<String, Leaf>>,
}

#[derive(Debug)]
struct Leaf {
    config: Arc<ServerConfig>,
    made: SystemTime,
    used: Instant,
}

impl Leaves {
    /// What to be for a name or an address.
    ///
    /// # Errors
    /// No certificate can be made for it.
    fn config(&self, ca: &Ca, name: &str) -> io::Result<Arc<ServerConfig>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(leaf) = made.get_mut(name)
            && leaf.made.elapsed().is_ok_and(|age| age < RENEW)
        {
            leaf.used = now;
            return Ok(leaf.config.clone());
        }
        let config = Arc::new(config(ca, name)?);
        if made.len() >= KEPT
            && !made.contains_key(name)
            && let Some(oldest) = made
                .iter()
                .min_by_key(|(_, leaf)| leaf.used)
                .map(|(name, _)| name.clone())
        {
            made.remove(&oldest);
        }
        let leaf = Leaf {
            config: config.clone(),
            made: SystemTime::now(),
            used: now,
        };
        made.insert(name.to_owned(), leaf);
        Ok(config)
    }

    /// Is the server of a name or an address.
    ///
    /// # Errors
    /// The client does not trust the certificate, or goes away.
    pub(super) async fn accept<S>(&self, ca: &Ca, name: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from(self.config(ca, name)?);
        tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await?
    }
}

/// Whether a client has chosen HTTP/2. `None` if it did not say.
pub(super) fn chose_http2<S>(stream: &TlsStream<S>) -> Option<bool> {
    let protocol = stream.get_ref().1.alpn_protocol()?;
    Some(protocol == b"h2")
}

fn config(ca: &Ca, name: &str) -> io::Result<ServerConfig> {
    let leaf = ca.leaf(name).map_err(io::Error::other)?;
    let provider = PROVIDER.clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf.key));
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(io::Error::other)?;
    let certified = CertifiedKey::new(leaf.chain, key);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    // A handshake on the same machine is cheap, and memory for sessions of every name is not.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

#[cfg(test)]
pub(super) mod tests {
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    use super::*;

    pub(in super::super) fn client(roots: RootCertStore, protocols: &[&str]) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// A handshake in memory; what protocol was chosen.
    fn handshake(
        server: Arc<ServerConfig>,
        roots: &Ca,
        name: &str,
        protocols: &[&str],
    ) -> Result<Option<String>, rustls::Error> {
        let mut store = RootCertStore::empty();
        store.add(roots.der().clone()).unwrap();
        let name = name.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(client(store, protocols), name)?;
        let mut server = ServerConnection::new(server)?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut wire = wire.as_slice();
            while !wire.is_empty() {
                client.read_tls(&mut wire).unwrap();
                client.process_new_packets()?;
            }
        }
        assert_eq!(client.peer_certificates().unwrap().len(), 2, "leaf and CA");
        let chosen = client
            .alpn_protocol()
            .map(|p| String::from_utf8(p.to_vec()).unwrap());
        Ok(chosen)
    }

    #[test]
    fn a_client_that_trusts_the_authority_trusts_every_leaf() {
        let (ca, other) = (Ca::generate().unwrap(), Ca::generate().unwrap());
        let leaves = Leaves::default();
        let long = format!("{}.example.com", "a".repeat(60));
        for name in [
            "www.example.com",
            "under_score.example.com",
            &long,
            "192.0.2.1",
            "2001:db8::1",
        ] {
            let config = leaves.config(&ca, name).unwrap();
            handshake(config.clone(), &ca, name, &[]).unwrap();
            handshake(config.clone(), &other, name, &[]).unwrap_err();
        }
        let config = leaves.config(&ca, "a.example").unwrap();
        handshake(config, &ca, "b.example", &[]).unwrap_err();
    }

    #[test]
    fn who_trusted_the_authority_trusts_it_after_an_adoption() {
        let ca = Ca::generate().unwrap();
        let adopted = Ca::restore(&ca.key()).unwrap();
        let config = Leaves::default().config(&adopted, "a.example").unwrap();
        handshake(config, &ca, "a.example", &[]).unwrap();
        assert!(!format!("{:?}", ca.key()).contains("PRIVATE"));
    }

    #[test]
    fn http_1_is_chosen_where_the_client_knows_it() {
        let ca = Ca::generate().unwrap();
        let config = Leaves::default().config(&ca, "a.example").unwrap();
        for (offered, chosen) in [
            (&["h2", "http/1.1"][..], Some("http/1.1")),
            (&["h2"], Some("h2")),
            (&["http/1.0"], Some("http/1.0")),
            (&[], None),
        ] {
            let found = handshake(config.clone(), &ca, "a.example", offered).unwrap();
            assert_eq!(found.as_deref(), chosen, "{offered:?}");
        }
    }

    #[test]
    fn certificates_are_kept_but_not_without_bound() {
        let ca = Ca::generate().unwrap();
        let leaves = Leaves::default();
        let first = leaves.config(&ca, "0.example").unwrap();
        for i in 1..=KEPT {
            let again = leaves.config(&ca, "0.example").unwrap();
            assert!(Arc::ptr_eq(&first, &again), "{i}");
            leaves.config(&ca, &format!("{i}.example")).unwrap();
        }
        assert_eq!(leaves.made.lock().unwrap().len(), KEPT);
        let one = leaves.config(&ca, "1.example").unwrap();
        assert!(Arc::ptr_eq(&one, &leaves.config(&ca, "1.example").unwrap()));
    }
}
