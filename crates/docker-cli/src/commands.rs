//! What each command does: one function a command. Those of containers are in [`containers`].

mod containers;

use std::io::{IsTerminal, Read, Write};

use hyper::Method;
use serde_json::{Value, json};

use crate::args::{self, Command};
use crate::client::{Client, ClientError, empty, escape, json_body};
use crate::template;

type Outcome = Result<i32, ClientError>;

fn local(message: impl Into<String>) -> ClientError {
    ClientError::Local(message.into())
}

pub(crate) async fn run(client: &Client, command: Command) -> Outcome {
    match command {
        Command::Info(f) => show(client, "/info", f.format, print_info).await,
        Command::Version(f) => show(client, "/version", f.format, print_version).await,
        Command::Build(b)
        | Command::Buildx(args::Buildx::Build(b))
        | Command::Image(args::Image::Build(b)) => build(client, b).await,
        Command::Images(l) | Command::Image(args::Image::Ls(l)) => images(client, l).await,
        Command::Image(args::Image::Inspect(i)) => {
            inspect(client, i.names, i.format, &["images"]).await
        }
        Command::Inspect(i) => {
            let kinds: &[&str] = match i.kind.as_deref() {
                None => &["containers", "images"],
                Some("image") => &["images"],
                Some("container") => &["containers"],
                Some(other) => {
                    return Err(local(format!(
                        "\"{other}\" is not a valid value for --type; use image or container"
                    )));
                }
            };
            inspect(client, i.names, i.format, kinds).await
        }
        Command::Rmi(r) | Command::Image(args::Image::Rm(r)) => remove(client, r).await,
        Command::Tag(t) | Command::Image(args::Image::Tag(t)) => tag(client, t).await,
        Command::Push(p) | Command::Image(args::Image::Push(p)) => push(client, p).await,
        Command::Pull(p) | Command::Image(args::Image::Pull(p)) => pull(client, p).await,
        Command::Login(l) => login(client, l).await,
        Command::Logout { server } => {
            println!(
                "Not logged in to {}: no credentials are kept",
                server.as_deref().unwrap_or("any registry")
            );
            Ok(0)
        }
        Command::Manifest(args::Manifest::Inspect { verbose, name, .. }) => {
            manifest(client, &name, verbose).await
        }
        Command::Ps(p) => containers::ps(client, p).await,
        Command::Logs(l) => containers::logs(client, l).await,
        Command::Run(r) => containers::run(client, r).await,
        Command::Create(c) => containers::create(client, c).await,
        Command::Start(c) => containers::start(client, c).await,
        Command::Stop(s) => containers::stop(client, s).await,
        Command::Kill(k) => containers::kill(client, k).await,
        Command::Rm(r) => containers::remove(client, r).await,
        Command::Wait(c) => containers::wait(client, c).await,
    }
}

fn print_line(text: &str) {
    // A reader that has gone away (`docker ... | head`) is not this command's failure.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn render(format: &str, value: &Value) -> Result<String, ClientError> {
    template::render(format, value).map_err(|e| local(e.to_string()))
}

async fn show(client: &Client, path: &str, format: Option<String>, plain: fn(&Value)) -> Outcome {
    let value = client.json(Method::GET, path, empty()).await?;
    match format {
        Some(f) => print_line(&render(&f, &value)?),
        None => plain(&value),
    }
    Ok(0)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn print_info(info: &Value) {
    print_line("Server:");
    print_line(&format!(" Server Version: {}", text(info, "ServerVersion")));
    print_line(&format!(" Containers: {}", info["Containers"]));
    print_line(&format!("  Running: {}", info["ContainersRunning"]));
    print_line(&format!(" Images: {}", info["Images"]));
    print_line(&format!(" Kernel Version: {}", text(info, "KernelVersion")));
    print_line(&format!(" Name: {}", text(info, "Name")));
}

fn print_version(version: &Value) {
    print_line(&format!("Wharf version {}", text(version, "Version")));
    print_line(&format!(" API version: {}", text(version, "ApiVersion")));
}

async fn build(client: &Client, b: args::Build) -> Outcome {
    if let Some(platform) = b.platform.as_deref().filter(|p| *p != "linux/amd64") {
        return Err(local(format!(
            "the platform {platform} is not supported; this node builds linux/amd64"
        )));
    }
    if let Some(p) = b.provenance.as_deref().filter(|p| *p != "false") {
        return Err(local(format!(
            "--provenance={p} is not supported; provenance attestations are not made, use --provenance=false"
        )));
    }
    if let Some(n) = b
        .network
        .as_deref()
        .filter(|n| !matches!(*n, "default" | "host"))
    {
        return Err(local(format!(
            "--network {n} is not supported; RUN reaches the network through the daemon"
        )));
    }
    if b.context == "-" || b.context.contains("://") {
        return Err(local("the build context must be a local directory"));
    }
    let context = std::fs::canonicalize(&b.context)
        .map_err(|e| local(format!("build context \"{}\": {e}", b.context)))?;
    if !context.is_dir() {
        return Err(local(format!(
            "build context \"{}\" is not a directory",
            b.context
        )));
    }
    let dockerfile = read_dockerfile(b.file.as_deref(), &context)?;
    let pairs = |entries: &[String], from_env: bool| -> Result<Value, ClientError> {
        let mut map = serde_json::Map::new();
        for entry in entries {
            match entry.split_once('=') {
                Some((k, v)) => {
                    map.insert(k.into(), v.into());
                }
                None if from_env => {
                    if let Ok(v) = std::env::var(entry) {
                        map.insert(entry.clone(), v.into());
                    }
                }
                None => return Err(local(format!("\"{entry}\" must be KEY=VALUE"))),
            }
        }
        Ok(map.into())
    };
    let request = json!({
        "context": context,
        "dockerfile": dockerfile,
        "tags": b.tag,
        "build_args": pairs(&b.build_arg, true)?,
        "labels": pairs(&b.label, false)?,
        "target": b.target,
        "no_cache": b.no_cache,
    });
    let mut id = String::new();
    client
        .json_lines(Method::POST, "/wharf/build", json_body(&request), |line| {
            if let Some(text) = line.get("stream").and_then(Value::as_str)
                && !b.quiet
            {
                // Progress goes to standard error, as buildx does it.
                let _ = write!(std::io::stderr(), "{text}");
            }
            if let Some(built) = line.pointer("/aux/ID").and_then(Value::as_str) {
                id = built.to_owned();
            }
        })
        .await?;
    if b.quiet {
        print_line(&id);
    }
    Ok(0)
}

fn read_dockerfile(file: Option<&str>, context: &std::path::Path) -> Result<String, ClientError> {
    if file == Some("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| local(format!("the Dockerfile on standard input: {e}")))?;
        return Ok(text);
    }
    let path = match file {
        Some(f) => std::path::PathBuf::from(f),
        None => context.join("Dockerfile"),
    };
    std::fs::read_to_string(&path).map_err(|e| {
        local(format!(
            "failed to read the Dockerfile {}: {e}",
            path.display()
        ))
    })
}

async fn images(client: &Client, l: args::ListImages) -> Outcome {
    let list = client.json(Method::GET, "/images/json", empty()).await?;
    let list = list.as_array().cloned().unwrap_or_default();
    if l.format.is_none() && !l.quiet {
        print_line(&format!(
            "{:<50} {:<12} {:<14} {:>10}",
            "REPOSITORY", "TAG", "IMAGE ID", "SIZE"
        ));
    }
    for image in &list {
        let short = text(image, "Id")
            .trim_start_matches("sha256:")
            .get(..12)
            .unwrap_or_default()
            .to_owned();
        if l.quiet {
            print_line(&short);
            continue;
        }
        let tags = image["RepoTags"].as_array().cloned().unwrap_or_default();
        let names: Vec<(String, String)> = if tags.is_empty() {
            vec![("<none>".into(), "<none>".into())]
        } else {
            tags.iter()
                .filter_map(Value::as_str)
                .map(|t| {
                    let (r, t) = t.rsplit_once(':').unwrap_or((t, "latest"));
                    (r.to_owned(), t.to_owned())
                })
                .collect()
        };
        for (repository, tag) in names {
            let size = human_size(image["Size"].as_u64().unwrap_or(0));
            match &l.format {
                Some(f) => {
                    let row =
                        json!({"Repository": repository, "Tag": tag, "ID": short, "Size": size});
                    print_line(&render(f, &row)?);
                }
                None => print_line(&format!(
                    "{repository:<50} {tag:<12} {short:<14} {size:>10}"
                )),
            }
        }
    }
    Ok(0)
}

/// Decimal units with up to three digits, as docker prints sizes.
fn human_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if value < 10.0 && unit != "B" {
                format!("{value:.2}{unit}")
            } else {
                format!("{value:.0}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.2}TB")
}

async fn inspect(
    client: &Client,
    names: Vec<String>,
    format: Option<String>,
    kinds: &[&str],
) -> Outcome {
    let mut found = Vec::new();
    let mut code = 0;
    'names: for name in &names {
        let mut last = None;
        for kind in kinds {
            match client
                .json(
                    Method::GET,
                    &format!("/{kind}/{}/json", escape(name)),
                    empty(),
                )
                .await
            {
                Ok(value) => {
                    found.push(value);
                    continue 'names;
                }
                Err(ClientError::Daemon {
                    status: 404,
                    message,
                }) => last = Some(message),
                Err(e) => return Err(e),
            }
        }
        eprintln!(
            "Error: {}",
            last.unwrap_or_else(|| format!("No such object: {name}"))
        );
        code = 1;
    }
    match format.as_deref() {
        Some(f) => {
            for value in &found {
                print_line(&render(f, value)?);
            }
        }
        None => {
            let all = serde_json::to_string_pretty(&found).map_err(|e| local(e.to_string()))?;
            print_line(&all);
        }
    }
    Ok(code)
}

async fn remove(client: &Client, r: args::Remove) -> Outcome {
    let mut code = 0;
    for name in &r.names {
        match client
            .json(
                Method::DELETE,
                &format!("/images/{}", escape(name)),
                empty(),
            )
            .await
        {
            Ok(lines) => {
                for line in lines.as_array().into_iter().flatten() {
                    for (action, what) in line.as_object().into_iter().flatten() {
                        print_line(&format!("{action}: {}", what.as_str().unwrap_or_default()));
                    }
                }
            }
            Err(e @ ClientError::Daemon { .. }) => {
                eprintln!("{e}");
                code = 1;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(code)
}

async fn tag(client: &Client, t: args::Tag) -> Outcome {
    let path = format!(
        "/images/{}/tag?repo={}",
        escape(&t.source),
        escape(&t.target)
    );
    client.json(Method::POST, &path, empty()).await?;
    Ok(0)
}

async fn push(client: &Client, p: args::Push) -> Outcome {
    let path = format!("/images/{}/push", escape(&p.name));
    client
        .json_lines(Method::POST, &path, empty(), progress(p.quiet))
        .await?;
    if p.quiet {
        print_line(&p.name);
    }
    Ok(0)
}

async fn pull(client: &Client, p: args::Pull) -> Outcome {
    if let Some(platform) = p.platform.as_deref().filter(|p| *p != "linux/amd64") {
        return Err(local(format!(
            "the platform {platform} is not supported; this node runs linux/amd64"
        )));
    }
    let path = format!("/images/create?fromImage={}", escape(&p.name));
    client
        .json_lines(Method::POST, &path, empty(), progress(p.quiet))
        .await?;
    print_line(&p.name);
    Ok(0)
}

fn progress(quiet: bool) -> impl FnMut(&Value) {
    move |line| {
        if quiet {
            return;
        }
        if let Some(status) = line.get("status").and_then(Value::as_str) {
            match line.get("id").and_then(Value::as_str) {
                Some(id) => print_line(&format!("{id}: {status}")),
                None => print_line(status),
            }
        }
    }
}

async fn login(client: &Client, l: args::Login) -> Outcome {
    let mut password = l.password.unwrap_or_default();
    if l.password_stdin || (password.is_empty() && !std::io::stdin().is_terminal()) {
        std::io::stdin()
            .read_to_string(&mut password)
            .map_err(|e| local(format!("the password on standard input: {e}")))?;
    }
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(local("no password given; use --password-stdin"));
    }
    let request = json!({
        "username": l.username.unwrap_or_default(),
        "password": password,
        "serveraddress": l.server.unwrap_or_default(),
    });
    let answer = client
        .json(Method::POST, "/auth", json_body(&request))
        .await?;
    print_line(text(&answer, "Status"));
    Ok(0)
}

async fn manifest(client: &Client, name: &str, verbose: bool) -> Outcome {
    let answer = client
        .json(
            Method::GET,
            &format!("/wharf/manifest?name={}", escape(name)),
            empty(),
        )
        .await?;
    let shown = if verbose {
        &answer
    } else {
        &answer["SchemaV2Manifest"]
    };
    print_line(&serde_json::to_string_pretty(shown).map_err(|e| local(e.to_string()))?);
    Ok(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_read_like_dockers() {
        assert_eq!(super::human_size(0), "0B");
        assert_eq!(super::human_size(999), "999B");
        assert_eq!(super::human_size(1_234_567), "1.23MB");
        assert_eq!(super::human_size(123_456_789), "123MB");
    }
}
