//! Types of bindings that Cloudflare has and Wharf has not, by the names that people know.

const UNSUPPORTED_TYPES: &[(&str, &str)] = &[
    ("kv_namespace", "KV namespaces"),
    ("r2_bucket", "R2 buckets"),
    ("d1", "D1 databases"),
    ("queue", "Queues"),
    ("workflow", "Workflows"),
    ("ai", "Workers AI bindings"),
    ("ratelimit", "rate limits"),
    ("analytics_engine", "Analytics Engine datasets"),
    ("vectorize", "Vectorize indexes"),
    ("hyperdrive", "Hyperdrive configurations"),
    ("secrets_store_secret", "Secrets Store secrets"),
    ("dispatch_namespace", "dispatch namespaces"),
    ("mtls_certificate", "mTLS certificates"),
    ("pipelines", "Pipelines"),
    ("worker_loader", "Worker loaders"),
    ("browser", "Browser Rendering bindings"),
    ("images", "Images bindings"),
    ("send_email", "Email bindings"),
    (
        "wasm_module",
        "WebAssembly bindings (import the module instead)",
    ),
    ("text_blob", "text blobs (import the module instead)"),
    ("data_blob", "data blobs (import the module instead)"),
    ("logfwdr", "logfwdr bindings"),
    ("ai_search", "AI Search bindings"),
    ("ai_search_namespace", "AI Search namespaces"),
    ("agent_memory", "Agent Memory bindings"),
    ("analytics", "Analytics bindings"),
    ("artifacts", "Artifacts bindings"),
    ("flagship", "Flagship bindings"),
    ("k2", "K2 streams"),
    ("media", "Media bindings"),
    ("secret_key", "secret keys"),
    ("stream", "Stream bindings"),
    ("unsafe_hello_world", "hello-world bindings"),
    ("vpc_network", "VPC networks"),
    ("vpc_service", "VPC services"),
];

/// What such a binding gives, as a plural.
pub(crate) fn plural(kind: &str) -> String {
    let known = UNSUPPORTED_TYPES.iter().find(|(known, _)| *known == kind);
    known.map_or_else(
        || format!("bindings of type {kind:?}"),
        |(_, what)| (*what).to_owned(),
    )
}
