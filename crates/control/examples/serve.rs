//! The control API alone, with effects that do nothing, to try a client against: `cargo run -p wharf-control --example serve -- DIR PORT`.

use std::future::Future;
use std::net::Ipv4Addr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use wharf_control::{ControlConfig, Effects, router};
use wharf_store::Store;

struct Nothing;

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Effects for Nothing {
    fn script_changed<'a>(&'a self, script: &'a str) -> Answer<'a, Result<(), String>> {
        println!("script_changed {script}");
        Box::pin(async { Ok(()) })
    }
    fn script_deleted<'a>(&'a self, script: &'a str) -> Answer<'a, ()> {
        println!("script_deleted {script}");
        Box::pin(async {})
    }
    fn application_changed<'a>(&'a self, id: &'a str) -> Answer<'a, Result<(), String>> {
        println!("application_changed {id}");
        Box::pin(async { Ok(()) })
    }
    fn check_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Result<(), String>> {
        println!("check_image {reference}");
        Box::pin(async { Ok(()) })
    }
    fn instances<'a>(&'a self, _application: &'a str) -> Answer<'a, Vec<serde_json::Value>> {
        Box::pin(async { vec![] })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(port)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve DIR PORT".into());
    };
    let port: u16 = port.parse()?;
    let store = Store::open(Path::new(&dir))?;
    let account_id = store.account_id();
    println!("export CLOUDFLARE_API_BASE_URL=http://127.0.0.1:{port}/client/v4");
    println!("export CLOUDFLARE_CONTAINER_REGISTRY=127.0.0.1:{port}");
    println!("export CLOUDFLARE_ACCOUNT_ID={account_id}");
    println!(
        "export CLOUDFLARE_API_TOKEN={}",
        store.create_token("serve")?
    );
    let config = ControlConfig {
        account_id,
        registry_host: format!("127.0.0.1:{port}"),
        script_url: "http://{script}.localhost:8080".into(),
    };
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    axum::serve(listener, router(config, store, Arc::new(Nothing))).await?;
    Ok(())
}
