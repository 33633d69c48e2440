//! Dockerfiles built for real: busybox in the sandbox, layers in an image store.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::support::Node;

#[tokio::test]
async fn from_scratch_with_one_file() {
    let node = Node::new().await;
    node.file("server", "binary");
    let built = node
        .build(
            "FROM scratch\nCOPY --chmod=755 server /server\nEXPOSE 8080\nENTRYPOINT [\"/server\"]",
        )
        .await;
    assert_eq!(
        built.steps,
        [
            ("FROM scratch".to_owned(), false),
            ("COPY --chmod=755 server /server".to_owned(), false)
        ]
    );
    let image = built.image();
    assert_eq!(image.layers.len(), 1);
    assert_eq!(node.layer_paths(&image.layers[0]), ["server"]);
    let config = image.config.config().clone().unwrap();
    assert_eq!(config.entrypoint().clone().unwrap(), ["/server"]);
    assert_eq!(config.exposed_ports().clone().unwrap(), ["8080/tcp"]);
    assert_eq!(image.repo_tags, ["result:latest"]);
    assert_eq!(
        (
            image.config.os().to_string(),
            image.config.architecture().to_string()
        ),
        ("linux".to_owned(), "amd64".to_owned())
    );
    node.finish().await;
}

#[tokio::test]
async fn run_sees_the_image_its_variables_and_its_user() {
    let node = Node::new().await;
    node.busybox();
    let built = node
        .build(
            "ARG VERSION=1\nFROM busybox\nARG VERSION\nENV A=env\nWORKDIR /srv/app\n\
             RUN echo out; echo err >&2; echo \"$A $VERSION $PWD $(id -u) $(hostname)\" > facts\n\
             USER app\nRUN id > /tmp/id && echo $HOME > /tmp/home\n\
             SHELL [\"/bin/sh\", \"-e\", \"-c\"]\nRUN [\"sh\", \"-c\", \"echo exec > /tmp/exec\"]\n\
             RUN cat <<EOF > /tmp/doc && cat /etc/hosts > /tmp/hosts\nhello $A\nEOF\n\
             RUN <<EOF\nx=1\necho \"x is $x\" > /tmp/script\nEOF",
        )
        .await;
    assert!(
        built.output.contains("out\n") && built.output.contains("err\n"),
        "{}",
        built.output
    );
    let image = built.image();
    let read = |path: &str| node.read(&image, path);
    assert_eq!(read("srv/app/facts"), "env 1 /srv/app 0 build\n");
    assert!(
        read("tmp/id").starts_with("uid=1000(app) gid=1001(app)"),
        "{}",
        read("tmp/id")
    );
    assert_eq!(read("tmp/home"), "/home/app\n");
    assert_eq!(read("tmp/exec"), "exec\n");
    assert_eq!(read("tmp/doc"), "hello env\n");
    assert_eq!(read("tmp/script"), "x is 1\n");
    assert!(read("tmp/hosts").contains("localhost build"));
    node.finish().await;
}

#[tokio::test]
async fn a_layer_holds_what_the_command_changed_and_nothing_of_the_sandbox() {
    let node = Node::new().await;
    node.busybox();
    let image = node
        .build("FROM busybox\nRUN echo x > /made && rm /etc/group && ls /dev /proc /sys > /dev/null\nRUN true")
        .await
        .image();
    assert_eq!(
        image.layers.len(),
        2,
        "a RUN without changes makes no layer"
    );
    assert_eq!(
        node.layer_paths(&image.layers[1]),
        ["etc", "etc/group", "made"]
    );
    node.look(&image.layers, |root| {
        assert!(!root.join("etc/group").exists(), "removed");
        assert!(root.join("etc/passwd").exists());
        for absent in ["proc", "sys", "dev", "etc/resolv.conf", "etc/hosts"] {
            assert!(!root.join(absent).exists(), "{absent}");
        }
    });
    let history = image.config.history().clone().unwrap();
    let empty: Vec<bool> = history
        .iter()
        .map(|h| h.empty_layer().unwrap_or(false))
        .collect();
    assert_eq!(empty, [false, false, true]);
    node.finish().await;
}

#[tokio::test]
async fn a_dangling_resolv_conf_works_and_stays_as_it_is() {
    let node = Node::new().await;
    node.busybox();
    fs::create_dir(node.context.join("etc")).unwrap();
    symlink(
        "../run/dns/resolv.conf",
        node.context.join("etc/resolv.conf"),
    )
    .unwrap();
    let image = node
        .build("FROM busybox\nCOPY etc /etc\nRUN grep nameserver /etc/resolv.conf > /seen")
        .await
        .image();
    assert!(node.read(&image, "seen").starts_with("nameserver "));
    assert_eq!(node.layer_paths(&image.layers[2]), ["seen"]);
    node.finish().await;
}

#[tokio::test]
async fn a_failing_command_says_where_and_with_which_code() {
    let node = Node::new().await;
    node.busybox();
    let built = node
        .build("FROM busybox\nRUN true\nRUN echo reason \\\n  && exit 42")
        .await;
    assert!(built.output.contains("reason"), "its output is shown");
    assert_eq!(
        built.error(),
        "Dockerfile:3: the command 'echo reason && exit 42' returned a non-zero code: 42"
    );
    let missing = node.build("FROM busybox\nRUN [\"/no/such\"]").await.error();
    assert!(
        missing.starts_with("Dockerfile:2: ") && missing.contains("/no/such"),
        "{missing}"
    );
    let absent = node.build("FROM scratch\nCOPY absent /").await;
    assert_eq!(absent.steps.len(), 2, "the step that fails is shown");
    let no_files = node.build("FROM scratch\nRUN x").await.error();
    assert!(
        no_files.starts_with("Dockerfile:2: RUN needs a program"),
        "{no_files}"
    );
    let unknown = node.build("FROM nowhere\nRUN x").await.error();
    assert!(
        unknown.starts_with("Dockerfile:1: ") && unknown.contains("nowhere"),
        "{unknown}"
    );
    assert!(
        node.images.resolve("result").is_err(),
        "a failed build makes no image"
    );
    node.finish().await;
}

#[tokio::test]
async fn copy_between_stages_keeps_owners_and_links() {
    let node = Node::new().await;
    node.busybox();
    let built = node
        .build(
            "FROM busybox AS unused\nRUN exit 1\n\
             FROM busybox AS make\nRUN mkdir -p /out/sub && echo tool > /out/tool && chown 5:6 /out/tool && ln -s tool /out/link \
             && ln /out/tool /out/hard && echo t > /out/sub/t\n\
             FROM busybox\nCOPY --from=make /out /bin/\nCOPY --from=0 --chown=app:web /etc/passwd /copied/\n\
             COPY --from=busybox /bin/sh /from-image",
        )
        .await;
    assert!(
        built.result.is_err(),
        "COPY --from=0 needs the first stage after all"
    );
    let built = node
        .build(
            "FROM busybox AS unused\nRUN exit 1\n\
             FROM busybox AS make\nRUN mkdir -p /out/sub && echo tool > /out/tool && chown 5:6 /out/tool && ln -s tool /out/link \
             && ln /out/tool /out/hard && echo t > /out/sub/t\n\
             FROM busybox\nCOPY --from=make /out /bin/\nCOPY --from=1 --chown=app:web /etc/passwd /copied/\n\
             COPY --from=busybox /bin/sh /from-image",
        )
        .await;
    assert!(
        built.steps.iter().all(|(text, _)| !text.contains("exit 1")),
        "{:?}",
        built.steps
    );
    assert_eq!(built.steps[1].0.split(' ').next(), Some("[make]"));
    let image = built.image();
    node.look(&image.layers, |root| {
        let meta = |p: &str| fs::symlink_metadata(root.join(p)).unwrap();
        assert!(meta("bin").is_symlink(), "the image's /bin stays a link");
        assert_eq!(
            (meta("usr/bin/tool").uid(), meta("usr/bin/tool").gid()),
            (5, 6)
        );
        assert_eq!(meta("usr/bin/tool").ino(), meta("usr/bin/hard").ino());
        assert_eq!(
            fs::read_link(root.join("usr/bin/link")).unwrap(),
            Path::new("tool")
        );
        assert_eq!(
            (meta("copied/passwd").uid(), meta("copied/passwd").gid()),
            (1000, 50)
        );
        assert!(
            meta("from-image").is_file(),
            "a link that is the source is followed"
        );
        assert!(root.join("usr/bin/sub/t").exists());
    });
    node.finish().await;
}

#[tokio::test]
async fn unchanged_steps_come_from_the_cache_and_give_the_same_image() {
    let node = Node::new().await;
    node.busybox();
    node.file("app/main", "one");
    node.file("other", "x");
    let text = "FROM busybox\nLABEL a=1 b=2 c=3 d=4\nRUN cat /proc/sys/kernel/random/uuid > /built\nWORKDIR /app\nCOPY app .\nRUN cat main > copy";
    let first = node.build(text).await;
    assert_eq!(first.cached(), [false; 4]);
    let second = node.build(text).await;
    assert_eq!(second.cached(), [true; 4]);
    let first = first.image();
    let second = second.image();
    assert_eq!((&second.id, &second.manifest), (&first.id, &first.manifest));

    // Neither times nor files that are not copied matter; content does.
    let main = fs::File::options()
        .write(true)
        .open(node.context.join("app/main"))
        .unwrap();
    main.set_modified(std::time::UNIX_EPOCH).unwrap();
    node.file("other", "y");
    assert_eq!(node.build(text).await.image().id, first.id);
    node.file("app/main", "two");
    let changed = node.build(text).await;
    assert_eq!(changed.cached(), [true, true, false, false]);
    let changed = changed.image();
    assert_eq!(node.read(&changed, "app/copy"), "two");
    assert_eq!(node.read(&changed, "built"), node.read(&first, "built"));
    node.file("app/main", "one");
    assert_eq!(
        node.build(text).await.image().id,
        first.id,
        "the old content is still cached"
    );

    let fresh = node
        .build_with(wharf_build::BuildRequest {
            no_cache: true,
            ..node.request(text)
        })
        .await;
    assert!(!fresh.cached().contains(&true));
    assert_ne!(
        node.read(&fresh.image(), "built"),
        node.read(&first, "built")
    );
    node.finish().await;
}

#[tokio::test]
async fn build_arguments_reach_run_and_decide_about_the_cache() {
    let node = Node::new().await;
    node.busybox();
    let text = "FROM busybox\nARG A=default\nARG B\nRUN echo \"$A $B $HTTP_PROXY\" > /args\nARG LATE\nRUN echo \"$LATE\" > /late";
    let with = |args: &[(&str, &str)]| wharf_build::BuildRequest {
        build_args: args
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ..node.request(text)
    };
    let image = node.build_with(with(&[])).await.image();
    assert_eq!(node.read(&image, "args"), "default  \n");
    let built = node
        .build_with(with(&[
            ("A", "given"),
            ("HTTP_PROXY", "proxy.test"),
            ("TYPO", "x"),
        ]))
        .await;
    assert_eq!(built.cached(), [false, false]);
    assert!(
        built.output.contains("the build argument TYPO is not used"),
        "{}",
        built.output
    );
    let image = built.image();
    assert_eq!(node.read(&image, "args"), "given  proxy.test\n");
    let json = image.config.to_string().unwrap();
    assert!(
        !json.contains("proxy.test"),
        "proxies leave no trace: {json}"
    );
    let built = node
        .build_with(with(&[
            ("A", "given"),
            ("LATE", "z"),
            ("HTTP_PROXY", "other"),
        ]))
        .await;
    assert_eq!(built.cached(), [true, false]);
    node.finish().await;
}

#[tokio::test]
async fn ignored_missing_and_escaping_files() {
    let node = Node::new().await;
    node.file(".dockerignore", "secret\nnode_modules\n");
    node.file("secret", "s");
    node.file("node_modules/x/y", "n");
    node.file("src/a", "a");
    symlink("/etc/passwd", node.context.join("src/out")).unwrap();
    let image = node.build("FROM scratch\nCOPY . /").await.image();
    assert_eq!(
        node.layer_paths(&image.layers[0]),
        [".dockerignore", "src", "src/a", "src/out"]
    );
    node.look(&image.layers, |root| {
        assert_eq!(
            fs::read_link(root.join("src/out")).unwrap(),
            Path::new("/etc/passwd")
        );
    });
    for (line, want) in [
        (
            "COPY secret /",
            "Dockerfile:2: secret: the file is there, but .dockerignore excludes it",
        ),
        (
            "COPY nothing /",
            "Dockerfile:2: nothing: not found in the build context",
        ),
        (
            "COPY src/out /",
            "Dockerfile:2: src/out: not found in the build context",
        ),
        (
            "COPY ../x /",
            "Dockerfile:2: ../x: the path leads out of the build context",
        ),
        (
            "COPY --chmod=u+q src /",
            "Dockerfile:2: --chmod=u+q: a mode is octal",
        ),
    ] {
        let error = node.build(&format!("FROM scratch\n{line}")).await.error();
        assert!(error.starts_with(want), "{error}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_stage_has_the_args_of_the_stage_that_it_begins_from() {
    let node = Node::new().await;
    node.busybox();
    let text = "ARG GLOBAL=global\n\
        FROM busybox AS base\nARG GLOBAL\nARG V=1.2.3\nENV E=env\nARG E=arg\nRUN echo \"$V $E\" > /base\n\
        FROM base AS middle\nRUN echo \"$GLOBAL $V $E\" > /middle\n\
        FROM middle\nARG LATER=${V%.*}-${V##*.}\nENV F=${LATER/-/+}\nRUN echo \"$V $LATER $F\" > /last\nWORKDIR /v${V%%.*}\n\
        FROM middle AS other\nARG V=other\nRUN echo \"$V\" > /other";
    let of = async |target: &str, v: Option<&str>| {
        let mut request = node.request(text);
        request.target = Some(target.to_owned());
        request
            .build_args
            .extend(v.map(|v| ("V".to_owned(), v.to_owned())));
        node.build_with(request).await.image()
    };
    let last = of("2", None).await;
    assert_eq!(node.read(&last, "base"), "1.2.3 arg\n");
    assert_eq!(node.read(&last, "middle"), "global 1.2.3 env\n");
    assert_eq!(node.read(&last, "last"), "1.2.3 1.2-3 1.2+3\n");
    let config = last.config.config().clone().unwrap();
    assert_eq!(config.working_dir().as_deref(), Some("/v1"));
    let env = config.env().clone().unwrap();
    assert!(env.contains(&"F=1.2+3".to_owned()), "{env:?}");
    assert!(!env.iter().any(|e| e.starts_with("V=")), "{env:?}");
    let last = of("2", Some("9.8")).await;
    assert_eq!(node.read(&last, "middle"), "global 9.8 env\n");
    assert_eq!(node.read(&last, "last"), "9.8 9-8 9+8\n");
    let other = of("other", None).await;
    assert_eq!(node.read(&other, "other"), "other\n");
    // An image has no ARGs.
    let image = node.build("FROM result\nRUN echo \"$V $E\" > /image").await;
    assert_eq!(node.read(&image.image(), "image"), " env\n");
    node.finish().await;
}

#[tokio::test]
async fn what_the_target_does_not_need_may_have_what_is_not_supported() {
    let node = Node::new().await;
    node.busybox();
    let text = "FROM --platform=linux/arm64 registry.invalid/nothing:1 AS foreign\nRUN --mount=type=secret,id=x --network=host y\n\
        ONBUILD RUN <<E\nnot a line\nE\nADD https://registry.invalid/x /x\n\
        FROM busybox AS twice\nRUN echo first > /which\n\
        FROM twice AS from-first\nRUN cp /which /copy\n\
        FROM busybox AS twice\nRUN echo second > /which\n\
        FROM twice\nCOPY --from=from-first /copy /first\nCOPY --from=twice /which /second\nEXPOSE 8080:80\nMAINTAINER Someone O'Else";
    let built = node.build(text).await;
    assert!(
        built
            .output
            .contains("warning: Dockerfile:16: EXPOSE 8080:80"),
        "{}",
        built.output
    );
    let image = built.image();
    let read = |path: &str| node.read(&image, path);
    assert_eq!(read("which"), "second\n");
    assert_eq!(
        (read("first"), read("second")),
        ("first\n".into(), "second\n".into())
    );
    assert_eq!(image.config.author().as_deref(), Some("Someone O'Else"));
    let ports = image
        .config
        .config()
        .clone()
        .unwrap()
        .exposed_ports()
        .clone();
    assert_eq!(ports.unwrap(), ["80/tcp"]);
    let mut request = node.request(text);
    request.target = Some("foreign".to_owned());
    let error = node.build_with(request).await.error();
    assert!(
        error.starts_with("Dockerfile:1: FROM --platform=linux/arm64"),
        "{error}"
    );
    node.finish().await;
}

#[tokio::test]
async fn copy_gives_files_to_groups_and_changes_modes_as_chmod_does() {
    let node = Node::new().await;
    node.busybox();
    node.file("tool", "x");
    let built = node
        .build(
            "FROM busybox\nCOPY --chown=:web tool /group\nCOPY --chown=app tool /user\n\
             COPY --chown=ghost:web tool /ghost\nCOPY --chmod=u+x,go-r tool /mode\n\
             COPY --chown=7:root --chmod=g=u,o= <<EOF /doc\ntext\\\\n \\$x\nEOF\n\
             COPY none* /none/\nCOPY none* tool /some/\nADD --unpack=false tool /added\n\
             RUN test ! -e /none && stat -c '%n %u %g %a' /group /user /ghost /mode /doc /some/tool /added > /facts",
        )
        .await;
    for warning in [
        "warning: Dockerfile:4: the user \"ghost\" is not in the image's /etc/passwd",
        "warning: Dockerfile:9: no file matches",
    ] {
        assert!(built.output.contains(warning), "{}", built.output);
    }
    let image = built.image();
    assert_eq!(
        node.read(&image, "facts"),
        "/group 0 50 644\n/user 1000 1001 644\n/ghost 0 50 644\n/mode 0 0 700\n/doc 7 0 660\n/some/tool 0 0 644\n/added 0 0 644\n"
    );
    assert_eq!(node.read(&image, "doc"), "text\\n $x\n");
    // Where there is no /etc/passwd, root is root all the same.
    let built = node
        .build("FROM scratch\nCOPY --chown=root:root tool /tool")
        .await;
    assert_eq!(built.output, "");
    built.image();
    node.finish().await;
}

#[tokio::test]
async fn a_cache_mount_outlives_the_build_and_is_not_in_the_image() {
    let node = Node::new().await;
    node.busybox();
    let text = |n: u32| {
        format!(
            "FROM busybox\nRUN --mount=type=cache,target=/root/.cache/x echo {n} >> /root/.cache/x/log && cp /root/.cache/x/log /log"
        )
    };
    node.build(&text(1)).await.image();
    let image = node.build(&text(2)).await.image();
    assert_eq!(node.read(&image, "log"), "1\n2\n");
    assert_eq!(node.layer_paths(&image.layers[1]), ["log"]);
    node.finish().await;
}

#[tokio::test]
async fn add_unpacks_archives_and_copy_does_not() {
    let node = Node::new().await;
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
        fs::File::create(node.context.join("a.tgz")).unwrap(),
        flate2::Compression::fast(),
    ));
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    tar.append_data(&mut header, "dir/inside", &b"text"[..])
        .unwrap();
    tar.into_inner().unwrap().finish().unwrap();
    let image = node
        .build("FROM scratch\nADD a.tgz /x/\nCOPY a.tgz /y/")
        .await
        .image();
    assert_eq!(
        node.layer_paths(&image.layers[0]),
        ["x", "x/dir", "x/dir/inside"]
    );
    assert_eq!(node.layer_paths(&image.layers[1]), ["y", "y/a.tgz"]);
    node.finish().await;
}

/// Sends every connection of a container to one server of the test.
#[derive(Debug)]
struct World(std::net::SocketAddr);

impl wharf_net::Dial for World {
    fn dial(
        &self,
        _destination: std::net::SocketAddr,
    ) -> futures_util::future::BoxFuture<'_, std::io::Result<tokio::net::TcpStream>> {
        Box::pin(tokio::net::TcpStream::connect(self.0))
    }
    fn ipv6(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn run_reaches_the_network_unless_told_not_to() {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::with(Arc::new(World(server.local_addr().unwrap()))).await;
    node.busybox();
    let serve = tokio::spawn(async move {
        loop {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await.unwrap();
            let answer = b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\npacket";
            stream.write_all(answer).await.unwrap();
        }
    });
    let image = node
        .build("FROM busybox\nRUN wget -q -O /got http://93.184.215.14/package")
        .await
        .image();
    assert_eq!(node.read(&image, "got"), "packet");
    let error = node
        .build("FROM busybox\nRUN --network=none wget -q -T 5 -O /got http://93.184.215.14/package")
        .await
        .error();
    assert!(error.contains("non-zero code: 1"), "{error}");
    serve.abort();
    node.finish().await;
}

#[tokio::test]
async fn dropping_a_build_ends_its_command() {
    let node = Node::new().await;
    node.busybox();
    let (sender, mut progress) = tokio::sync::mpsc::unbounded_channel();
    let (builder, request) = (
        node.builder.clone(),
        node.request("FROM busybox\nRUN echo started && sleep 1000"),
    );
    let task = tokio::spawn(async move { builder.build(request, sender).await });
    loop {
        match progress.recv().await.expect("the build goes on") {
            wharf_build::Progress::Output(o) if o.starts_with(b"started") => break,
            _ => {}
        }
    }
    task.abort();
    // The scratch directory goes last, after the process.
    let tmp = node.dir().join("images/tmp");
    tokio::time::timeout(Duration::from_secs(60), async {
        while fs::read_dir(&tmp).unwrap().next().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the command is ended and its directory removed");
    node.finish().await;
}

#[tokio::test]
async fn target_labels_and_inherited_configuration() {
    let node = Node::new().await;
    node.busybox();
    let text = "FROM busybox AS base\nENV K=v\nCMD [\"c\"]\nVOLUME /data\nSTOPSIGNAL SIGINT\nUSER app\n\
                FROM base AS child\nENV L=\"$K-${M:-none}\" K=new\nENTRYPOINT run me\nLABEL x=y\n\
                FROM scratch";
    let image = node
        .build_with(wharf_build::BuildRequest {
            target: Some("child".into()),
            labels: [("given".to_owned(), "label".to_owned())].into(),
            ..node.request(text)
        })
        .await
        .image();
    let config = image.config.config().clone().unwrap();
    assert_eq!(config.env().clone().unwrap(), ["K=new", "L=v-none"]);
    assert_eq!(
        config.entrypoint().clone().unwrap(),
        ["/bin/sh", "-c", "run me"]
    );
    assert_eq!(
        config.cmd().clone(),
        None,
        "ENTRYPOINT resets an inherited CMD"
    );
    assert_eq!(config.user().as_deref(), Some("app"));
    assert_eq!(config.stop_signal().as_deref(), Some("SIGINT"));
    let labels = config.labels().clone().unwrap();
    assert_eq!(
        (labels["x"].as_str(), labels["given"].as_str()),
        ("y", "label")
    );
    node.finish().await;
}
