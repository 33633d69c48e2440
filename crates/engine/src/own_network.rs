//! The network that an instance gets for itself alone, anew with each start: what it may reach, and
//! which of its ports the host shows.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use wharf_net::{NetError, Network, Networks, Policy};

/// What an instance's own network is like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnNetwork {
    /// Whether it may reach the internet.
    pub internet: bool,
    /// Ports that the host shows while the instance runs.
    pub publish: Vec<Published>,
}

/// A port inside, and where the host shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// TCP port inside.
    pub inside: u16,
    /// Address on the host; port 0 in a request is any.
    pub outside: SocketAddr,
}

impl OwnNetwork {
    /// A network like this.
    pub(crate) async fn make(
        &self,
        networks: &Networks,
    ) -> Result<(Network, Vec<Published>), NetError> {
        let network = networks.create().await?;
        let published = self.apply(&network).await?;
        Ok((network, published))
    }

    /// Makes a network like this one; returns where its ports are shown.
    pub(crate) async fn apply(&self, network: &Network) -> Result<Vec<Published>, NetError> {
        network.set_policy(Policy {
            internet: self.internet,
        });
        let mut published = Vec::with_capacity(self.publish.len());
        for Published { inside, outside } in &self.publish {
            published.push(Published {
                inside: *inside,
                outside: network.publish(*outside, *inside).await?,
            });
        }
        Ok(published)
    }
}
