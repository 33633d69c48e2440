#![allow(clippy::unwrap_used)]
mod support;
use support::Node;
#[tokio::test(flavor = "multi_thread")]
async fn debian() {
    let node = Node::new().await;
    node.images.import_rootfs("debian:12", std::fs::File::open("/tmp/deb-base/debian.tar").unwrap()).unwrap();
    std::fs::copy("/etc/ssl/certs/ca-certificates.crt", node.context.join("ca.crt")).unwrap();
    let text = std::fs::read_to_string("/tmp/deb-base/Dockerfile").unwrap();
    for round in 0..2 {
        let t = std::time::Instant::now();
        let (sender, mut rx) = tokio::sync::mpsc::unbounded_channel();
        let show = tokio::spawn(async move {
            while let Some(p) = rx.recv().await {
                match p {
                    wharf_build::Progress::Step { number, total, text, cached } => println!("[{number}/{total}] {text}{}", if cached { " CACHED" } else { "" }),
                    wharf_build::Progress::Output(o) => print!("{}", String::from_utf8_lossy(&o)),
                }
            }
        });
        let r = node.builder.build(node.request(&text), sender).await;
        show.await.unwrap();
        println!("round {round}: {:?}", t.elapsed());
        match r { Ok(i) => { println!("{} {:?}", i.id, i.layers.iter().map(|l| l.size).collect::<Vec<_>>());
            for l in &i.layers[1..] { let p = node.layer_paths(l); println!("{} paths; {:?}", p.len(), &p[..p.len().min(12)]); } },
            Err(e) => { println!("ERROR {e}"); break } }
    }
    node.finish().await;
}
