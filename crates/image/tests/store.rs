//! Names, pushes, crashes and garbage, as a user of the store notices them.
#![allow(clippy::unwrap_used)]

mod common;

use wharf_image::{Digest, ImageError, ImageStore};

use self::common::{HOST, Tar, config, fixture, plain_layer};

#[test]
fn an_image_is_found_by_every_name_it_has() {
    let fixture = fixture();
    let image = fixture.image("hello", "1");
    let store = &fixture.store;
    store.tag("hello", "acc/other:2").unwrap();
    for name in [
        "hello",
        "hello:latest",
        "docker.io/library/hello",
        "acc/other:2",
        image.id.as_str(),
        image.id.hex(),
        &image.id.hex()[..12],
        &image.id.as_str()[..11],
        &format!("hello@{}", image.manifest),
        &format!("acc/other@{}", image.manifest),
    ] {
        let found = store.resolve(name).unwrap();
        assert_eq!(found.id, image.id, "{name}");
        assert_eq!(found.repo_tags, ["acc/other:2", "hello:latest"]);
    }
    for name in [
        "hello:2",
        "other:2",
        &image.id.hex()[..3],
        &format!("stranger@{}", image.manifest),
        &format!("{HOST}/hello"),
        "0".repeat(64).as_str(),
    ] {
        assert!(
            matches!(store.resolve(name), Err(ImageError::NotFound(_))),
            "{name}"
        );
    }
    let error = store.resolve("debian:12").unwrap_err().to_string();
    assert!(
        error.contains("wharf image import") && error.contains(HOST),
        "{error}"
    );
    assert!(matches!(
        store.resolve("Hello"),
        Err(ImageError::Invalid(_))
    ));
}

#[test]
fn equal_inputs_give_equal_images() {
    let (a, b) = (fixture(), fixture());
    // Labels and ports are in hash maps, whose order changes.
    let images: Vec<_> = (0..5)
        .flat_map(|_| [a.image("x", "1"), b.image("x", "1")])
        .collect();
    assert!(images.iter().all(|i| i.manifest == images[0].manifest));
    let tar = Tar::default().file("f", "x").end();
    let id = a.store.import_rootfs("i", tar.as_slice()).unwrap().id;
    assert_eq!(id, b.store.import_rootfs("i", tar.as_slice()).unwrap().id);
}

#[test]
fn a_push_is_what_makes_a_repository_digest() {
    let fixture = fixture();
    let store = &fixture.store;
    let image = fixture.image("app:build", "1");
    let reference = format!("{HOST}/acc/app:1");
    store.tag("app:build", &reference).unwrap();
    assert!(store.resolve(&reference).unwrap().repo_digests.is_empty());
    let before = fixture.files();

    let digest = store.push_local(&reference).unwrap();
    assert_eq!(digest, image.manifest);
    assert_eq!(fixture.files(), before, "a push copies nothing");
    let by_digest = format!("{HOST}/acc/app@{digest}");
    for name in [&reference, &by_digest, "app:build"] {
        assert_eq!(
            store.resolve(name).unwrap().repo_digests,
            std::slice::from_ref(&by_digest)
        );
    }
    // Under another of its hosts: both.
    let other = "localhost:7400/acc/app:1";
    store.tag("app:build", other).unwrap();
    store.push_local(other).unwrap();
    assert_eq!(
        store.resolve("app:build").unwrap().repo_digests,
        [
            by_digest.clone(),
            format!("localhost:7400/acc/app@{digest}")
        ]
    );

    // Deployed by digest, the image outlives its local names, and a restart.
    store.remove("app:build").unwrap();
    store.remove(&reference).unwrap();
    store.remove(other).unwrap();
    store.collect_garbage(&[], 0).unwrap();
    let fixture = fixture.reopen();
    let image = fixture.store.resolve(&by_digest).unwrap();
    assert_eq!(image.registry_tags, std::slice::from_ref(&reference));
    assert!(image.repo_tags.is_empty());
    fixture.store.lower_dirs(&image.layers).unwrap();
    assert_eq!(fixture.store.resolve(&reference).unwrap().id, image.id);

    for (wrong, why) in [
        (
            "elsewhere.example/acc/app:1",
            "only this node's own registry",
        ),
        (&format!("{HOST}/acc/nothing:1"), "no local image"),
        (&by_digest, "name a tag"),
    ] {
        let error = fixture.store.push_local(wrong).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn removing_says_what_docker_says() {
    let fixture = fixture();
    let store = &fixture.store;
    let image = fixture.image("a:1", "1");
    store.tag("a:1", "b:1").unwrap();
    let conflict = store.remove(image.id.hex()).unwrap_err().to_string();
    assert!(conflict.contains("a:1, b:1"), "{conflict}");
    assert_eq!(
        store.remove("a:1").unwrap(),
        [("Untagged", "a:1".to_owned())]
    );
    assert_eq!(
        store.remove(&image.id.hex()[..12]).unwrap(),
        [
            ("Untagged", "b:1".to_owned()),
            ("Deleted", image.id.to_string())
        ]
    );
    assert!(matches!(store.remove("b:1"), Err(ImageError::NotFound(_))));
    assert!(store.list().unwrap().is_empty());
    assert_eq!(fixture.files(), (2, 1));
    assert!(store.collect_garbage(&[], 3_600_000).unwrap() == 0);
    assert_eq!(fixture.files(), (2, 1), "young content stays");
    assert!(store.collect_garbage(&[], 0).unwrap() > 0);
    assert_eq!(fixture.files(), (0, 0));
}

#[test]
fn garbage_collection_spares_what_is_named_or_runs() {
    let fixture = fixture();
    let store = &fixture.store;
    let kept = fixture.image("kept", "1");
    let running = fixture.image("running", "2");
    fixture.image("moved", "3");
    fixture.image("moved", "4");
    assert_eq!(store.list().unwrap().len(), 4, "one without a name");
    store.remove("running").unwrap();
    store
        .collect_garbage(&[running.layers[0].diff_id.clone()], 0)
        .unwrap();
    assert_eq!(store.list().unwrap().len(), 2);
    // Two images with config and layer; three layers unpacked.
    assert_eq!(fixture.files(), (4, 3));
    let dirs = store.lower_dirs(&kept.layers).unwrap();
    assert!(dirs[0].join("file").exists());
    assert!(!store.has_layer(&running.layers[0]).unwrap());
    store.collect_blobs(0).unwrap();
    assert_eq!(
        fixture.files(),
        (4, 3),
        "unpacked layers are not its business"
    );
    store.collect_garbage(&[], 0).unwrap();
    assert_eq!(fixture.files(), (4, 2));
    // A layer that went is unpacked anew when its blob is there.
    std::fs::remove_dir_all(fixture.dir.path().join("images/layers")).unwrap();
    let fixture = fixture.reopen();
    assert!(
        fixture.store.lower_dirs(&kept.layers).unwrap()[0]
            .join("file")
            .exists()
    );
}

#[test]
fn a_crash_leaves_uploads_and_no_halves() {
    let fixture = fixture();
    let id = fixture.store.begin_upload().unwrap();
    let (path, length) = fixture.store.upload(&id).unwrap();
    assert_eq!(length, 0);
    std::fs::write(&path, "half").unwrap();
    let scratch = fixture.store.scratch_dir().unwrap();
    std::fs::write(scratch.join("x"), "x").unwrap();
    let fixture = fixture.reopen();
    assert_eq!(fixture.temporaries(), 0);
    let (path, length) = fixture.store.upload(&id).unwrap();
    assert_eq!(length, 4);
    std::fs::write(&path, "whole").unwrap();
    let digest = Digest::of(b"whole");
    fixture.store.finish_upload(&id, &digest).unwrap();
    assert_eq!(
        std::fs::read(fixture.store.blob(&digest).unwrap().0).unwrap(),
        b"whole"
    );
    assert!(matches!(
        fixture.store.upload(&id),
        Err(ImageError::NotFound(_))
    ));

    // Forgotten for more than a day: gone.
    let id = fixture.store.begin_upload().unwrap();
    let (path, _) = fixture.store.upload(&id).unwrap();
    common::set_mtime(&path, 1_000_000, 0);
    assert!(matches!(
        fixture.reopen().store.upload(&id),
        Err(ImageError::NotFound(_))
    ));
}

#[test]
fn content_with_another_digest_does_not_come_in() {
    let fixture = fixture();
    let id = fixture.store.begin_upload().unwrap();
    std::fs::write(fixture.store.upload(&id).unwrap().0, "evil").unwrap();
    let error = fixture
        .store
        .finish_upload(&id, &Digest::of(b"good"))
        .unwrap_err();
    assert!(matches!(error, ImageError::Invalid(_)));
    assert_eq!(fixture.files().0, 0);
    for id in ["../index.sqlite", "..", "", &"g".repeat(32)] {
        assert!(matches!(
            fixture.store.upload(id),
            Err(ImageError::NotFound(_))
        ));
    }
}

#[test]
fn a_newer_store_is_left_alone() {
    let fixture = fixture();
    let path = fixture.dir.path().join("images");
    drop(fixture.store);
    rusqlite::Connection::open(path.join("index.sqlite"))
        .unwrap()
        .execute_batch("PRAGMA user_version = 99")
        .unwrap();
    let error = ImageStore::open(&path).unwrap_err().to_string();
    assert!(error.contains("newer wharf"), "{error}");
}

#[test]
fn many_at_once_unpack_once() {
    let fixture = fixture();
    let mut tar = Tar::default();
    for n in 0..200 {
        tar = tar.file(&format!("f{n}"), "content");
    }
    let layer = plain_layer(&fixture, &tar.end());
    let inodes: Vec<_> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let dirs = fixture
                        .store
                        .lower_dirs(std::slice::from_ref(&layer))
                        .unwrap();
                    std::os::unix::fs::MetadataExt::ino(
                        &std::fs::metadata(dirs[0].join("f7")).unwrap(),
                    )
                })
            })
            .collect();
        tasks.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(inodes.iter().all(|i| *i == inodes[0]));
    assert_eq!(fixture.temporaries(), 0);
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Body of a Docker manifest for a zstd layer of one file, everything it names uploaded.
fn docker_manifest(fixture: &common::Fixture, content: &str, arch: &str) -> Vec<u8> {
    let tar = Tar::default().file("f", content).end();
    let blob = zstd::encode_all(tar.as_slice(), 1).unwrap();
    let config = serde_json::json!({"architecture": arch, "os": "linux", "config": {"Env": null},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar).as_str()]}})
    .to_string();
    fixture.upload(&blob);
    fixture.upload(config.as_bytes());
    serde_json::json!({"schemaVersion": 2, "mediaType": DOCKER,
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": Digest::of(config.as_bytes()).as_str(), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.zstd", "digest": Digest::of(&blob).as_str(), "size": blob.len()}]})
    .to_string()
    .into_bytes()
}

#[test]
fn what_docker_pushes_can_be_run_also_by_index() {
    let fixture = fixture();
    let store = &fixture.store;
    let here = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let mine = docker_manifest(&fixture, "mine", here);
    let other = docker_manifest(&fixture, "other", "s390x");
    let entry = |body: &[u8], arch: &str| serde_json::json!({"mediaType": DOCKER, "digest": Digest::of(body).as_str(), "size": body.len(), "platform": {"os": "linux", "architecture": arch}});
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(&other, "s390x"), entry(&mine, here)]}).to_string();

    // Children first.
    let early = store.put_manifest("acc/multi", "1", INDEX, index.as_bytes());
    assert!(matches!(early, Err(ImageError::NotFound(_))));
    for body in [&mine, &other] {
        store
            .put_manifest("acc/multi", Digest::of(body).as_str(), DOCKER, body)
            .unwrap();
    }
    let digest = store
        .put_manifest("acc/multi", "1", INDEX, index.as_bytes())
        .unwrap();
    let image = store.resolve(&format!("{HOST}/acc/multi:1")).unwrap();
    assert_eq!(image.manifest, Digest::of(&mine));
    assert!(
        image
            .repo_digests
            .contains(&format!("{HOST}/acc/multi@{digest}"))
    );
    let dir = &store.lower_dirs(&image.layers).unwrap()[0];
    assert_eq!(std::fs::read_to_string(dir.join("f")).unwrap(), "mine");
    assert_eq!(store.list().unwrap().len(), 1, "not other machines' part");
    // Garbage collection sees through the index.
    store.collect_garbage(&[], 0).unwrap();
    assert_eq!(fixture.files(), (4, 1));
    let fixture = fixture.reopen();
    let store = &fixture.store;
    assert_eq!(
        store.manifest("acc/multi", "1").unwrap(),
        (digest, INDEX.to_owned(), index.into_bytes())
    );
    // The tag takes everything with it.
    store.delete_manifest("acc/multi", "1").unwrap();
    assert!(store.repositories().unwrap().is_empty());
    store.collect_garbage(&[], 0).unwrap();
    assert_eq!(fixture.files(), (0, 0));
}

#[test]
fn manifests_are_checked() {
    let fixture = fixture();
    let store = &fixture.store;
    let body = docker_manifest(&fixture, "x", "amd64");
    let mut lying: serde_json::Value = serde_json::from_slice(&body).unwrap();
    lying["layers"][0]["size"] = 1.into();
    let mut missing: serde_json::Value = serde_json::from_slice(&body).unwrap();
    missing["layers"][0]["digest"] = Digest::of(b"nothing").as_str().into();
    let other = Digest::of(b"other");
    for (repository, reference, bytes, why) in [
        ("a", "1", lying.to_string(), "bytes, but it has"),
        ("a", "1", missing.to_string(), "no blob"),
        (
            "A",
            "1",
            String::from_utf8(body.clone()).unwrap(),
            "repository",
        ),
        ("a", ".1", String::from_utf8(body.clone()).unwrap(), "tag"),
        (
            "a",
            other.as_str(),
            String::from_utf8(body.clone()).unwrap(),
            "has digest",
        ),
    ] {
        let error = store
            .put_manifest(repository, reference, DOCKER, bytes.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(store.repositories().unwrap().is_empty());
    assert!(matches!(
        store.put_manifest("a", "1", MANIFEST, &body),
        Err(ImageError::Invalid(_))
    ));
}

#[test]
fn a_push_by_a_client_supersedes_the_local_name_of_that_tag() {
    let fixture = fixture();
    let store = &fixture.store;
    let reference = format!("{HOST}/acc/app:1");
    fixture.image(&reference, "old");
    store.push_local(&reference).unwrap();
    let body = docker_manifest(&fixture, "new", "amd64");
    let digest = store.put_manifest("acc/app", "1", DOCKER, &body).unwrap();
    assert_eq!(store.resolve(&reference).unwrap().manifest, digest);
    // And a deletion there leaves no stale name here.
    store.delete_manifest("acc/app", "1").unwrap();
    assert!(matches!(
        store.resolve(&reference),
        Err(ImageError::NotFound(_))
    ));
}

#[test]
fn a_push_moves_no_manifest_that_is_not_complete() {
    let fixture = fixture();
    let layer = fixture.layer("f", "1");
    std::fs::remove_file(fixture.store.blob(&layer.digest).unwrap().0).unwrap();
    let result = fixture.store.create(config(), &[layer], &["x".to_owned()]);
    assert!(matches!(result, Err(ImageError::NotFound(_))));
    assert!(fixture.store.list().unwrap().is_empty());
}
