//! The project that is deployed: one Worker, and a Durable Object class with its container application for each image class.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use super::images::Class;

/// The script's name.
pub(super) const NAME: &str = "start-bench";
/// The same with instances started ahead.
pub(super) const AHEAD: &str = "start-bench-ahead";
/// The same with imports done ahead.
pub(super) const PRELOAD: &str = "start-bench-preload";

/// Writes it into `dir`, under this name. `modules` is a node_modules that has @cloudflare/containers.
pub(super) fn write(dir: &Path, name: &str, classes: &[Class], modules: &Path) -> Result<PathBuf> {
    let project = dir.join(name);
    fs::create_dir_all(project.join("src"))?;
    fs::write(project.join("src/index.js"), include_str!("apps/worker.js"))?;
    symlink(modules, project.join("node_modules"))?;
    let package = json!({"name": name, "private": true, "type": "module"});
    fs::write(project.join("package.json"), package.to_string())?;
    for class in classes {
        let context = project.join(class.name());
        fs::create_dir(&context)?;
        let argv = serde_json::to_string(class.argv())?;
        let label = match class.modules().filter(|_| name == PRELOAD) {
            Some(modules) => format!("LABEL wharf.preload=\"{modules}\"\n"),
            None => String::new(),
        };
        fs::write(
            context.join("Dockerfile"),
            format!(
                "FROM wharf-bench/{}:1\nENV PORT=8080 OPENBLAS_NUM_THREADS=1\nEXPOSE 8080\n{label}ENTRYPOINT {argv}\n",
                class.name()
            ),
        )?;
    }
    let bindings: Vec<_> = classes
        .iter()
        .map(|class| json!({"name": class.name().to_uppercase(), "class_name": class.class_name()}))
        .collect();
    let containers: Vec<_> = classes
        .iter()
        .map(|class| {
            json!({
                "class_name": class.class_name(),
                "image": format!("./{}/Dockerfile", class.name()),
                // As much as every other runtime's containers get here.
                "instance_type": {"vcpu": 1, "memory_mib": 3072, "disk_mb": 4000},
                "max_instances": 5000,
                "unsafe": {"configuration": {"wharf": {"min_instances": if name == AHEAD { 2 } else { 0 }}}},
            })
        })
        .collect();
    let names: Vec<_> = classes.iter().map(|class| class.class_name()).collect();
    let config = json!({
        "name": name,
        "main": "src/index.js",
        "compatibility_date": "2026-11-01",
        "containers": containers,
        "durable_objects": {"bindings": bindings},
        "migrations": [{"tag": "v1", "new_sqlite_classes": names}],
    });
    fs::write(
        project.join("wrangler.jsonc"),
        serde_json::to_string_pretty(&config)?,
    )?;
    Ok(project)
}
