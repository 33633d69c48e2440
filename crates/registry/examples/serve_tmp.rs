use std::sync::Arc;
#[tokio::main]
async fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let images = wharf_image::ImageStore::open(dir.as_ref()).unwrap();
    images.set_registry_hosts(&["127.0.0.1:7499".into()]);
    if let Some(tar) = std::env::args().nth(2) {
        let t = std::time::Instant::now();
        let i = images.import_rootfs("127.0.0.1:7499/acc/base:1", std::fs::File::open(tar).unwrap()).unwrap();
        println!("import {:?} {}", t.elapsed(), i.id);
        images.push_local("127.0.0.1:7499/acc/base:1").unwrap();
        let t = std::time::Instant::now();
        for _ in 0..1000 { let i = images.resolve("127.0.0.1:7499/acc/base:1").unwrap(); images.lower_dirs(&i.layers).unwrap(); }
        println!("resolve+lower_dirs {:?}", t.elapsed()/1000);
    }
    let l = tokio::net::TcpListener::bind("127.0.0.1:7499").await.unwrap();
    let im = images.clone();
    tokio::task::spawn_blocking(move || loop {
        let mut s = String::new();
        if std::io::stdin().read_line(&mut s).unwrap() == 0 { std::process::exit(0) }
        for i in im.list().unwrap() {
            println!("{} {:?} {:?} {:?} {}", i.id, i.repo_tags, i.registry_tags, i.repo_digests, i.size());
            let t = std::time::Instant::now();
            println!("  {:?} {:?}", im.lower_dirs(&i.layers).map(|d| d.len()), t.elapsed());
        }
    });
    axum::serve(l, wharf_registry::router(images, Arc::new(|t| t == "tok"))).await.unwrap();
}
