//! A version change must not end the containers of the objects: workerd deletes them on SIGTERM unless its engine is out of reach.
#![allow(clippy::unwrap_used)]

mod support;

use self::support::{World, with_class};

#[tokio::test]
async fn containers_live_on_when_a_version_is_replaced() {
    let (world, engine) = support::engine::world().await;
    let code = r#"
import { DurableObject } from "cloudflare:workers";
export class Box extends DurableObject {
  async fetch(request) {
    switch (new URL(request.url).pathname) {
      case "/start":
        this.ctx.container.start({ enableInternet: false });
        this.ctx.container.monitor().catch(() => {});
        // A start that nobody waits for is given up with its request.
        while (!this.started) await scheduler.wait(10);
        break;
      case "/started":
        this.started = true;
    }
    return new Response(String(this.ctx.container.running));
  }
}
export default { fetch(request, env) { return env.BOX.getByName("a").fetch(request); } };"#;
    let version = |world: &World, code: &str| {
        let mut desired = with_class(world.desired("hello", 1, code), "Box");
        desired.version.container_classes.push("Box".into());
        desired
    };
    world.deploy(version(&world, code)).await;
    assert_eq!(world.text("hello", "/").await, "false");
    let both_run = wharf_testkit::eventually("the container and its sidecar run", async || {
        (engine.running.lock().unwrap().len() == 2).then_some(())
    });
    let (start, ()) = tokio::join!(world.text("hello", "/start"), async {
        both_run.await;
        world.text("hello", "/started").await;
    });
    assert_eq!(start, "true");
    engine.asked.lock().unwrap().clear();

    world.deploy(version(&world, &format!("{code}//"))).await;
    assert_eq!(world.text("hello", "/").await, "true", "adopted");
    let asked = engine.asked.lock().unwrap().clone();
    assert!(
        !asked.iter().any(|line| line.starts_with("DELETE")),
        "{asked:?}"
    );
    assert_eq!(engine.running.lock().unwrap().len(), 2);
    world.close().await;
}
