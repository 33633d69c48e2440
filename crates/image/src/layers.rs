//! Layers: unpacking them for overlayfs, making them, and making images of them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use flate2::Compression;
use flate2::write::GzEncoder;
use oci_spec::image::{
    HistoryBuilder, ImageConfiguration, ImageConfigurationBuilder, Os, RootFsBuilder,
};

use crate::content::{self, BlobWriter, TempDir, sync_dir};
use crate::digest::Hasher;
use crate::error::{Context, ImageError, Result, held, now_ms};
use crate::manifest::{OCI_LAYER_GZIP, OCI_MANIFEST, canonical, host_architecture, image_manifest};
use crate::tar_read::bad;
use crate::{Digest, Image, ImageStore, Layer, Reference, pack, unpack};

/// Against level 6, the usual one: 40 % less time for 7 % more bytes, and most layers never leave the node.
const COMPRESSION: Compression = Compression::new(2);

/// Which layers are known to be unpacked, and who is unpacking one.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// When each was last asked for, Unix milliseconds.
    ready: RwLock<HashMap<Digest, AtomicI64>>,
    busy: Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
}

impl Unpacked {
    /// Whether it is there; counts as use.
    pub(crate) fn is_ready(&self, diff_id: &Digest) -> bool {
        match held(self.ready.read()).get(diff_id) {
            Some(used) => {
                used.store(now_ms(), Ordering::Relaxed);
                true
            }
            None => false,
        }
    }
    fn set_ready(&self, diff_id: &Digest) {
        held(self.ready.write()).insert(diff_id.clone(), AtomicI64::new(now_ms()));
    }
    /// When it was last used in this daemon's life.
    pub(crate) fn last_used(&self, diff_id: &Digest) -> Option<i64> {
        held(self.ready.read())
            .get(diff_id)
            .map(|used| used.load(Ordering::Relaxed))
    }
    pub(crate) fn forget(&self, diff_id: &Digest) {
        held(self.ready.write()).remove(diff_id);
    }
    /// Runs `work` while nobody else works on the same layer.
    pub(crate) fn alone<T>(&self, diff_id: &Digest, work: impl FnOnce() -> T) -> T {
        let lock = held(self.busy.lock())
            .entry(diff_id.clone())
            .or_default()
            .clone();
        let answer = {
            let _turn = held(lock.lock());
            work()
        };
        let mut busy = held(self.busy.lock());
        // Ours and the map's: nobody waits.
        if Arc::strong_count(&lock) == 2 {
            busy.remove(diff_id);
        }
        answer
    }
}

impl ImageStore {
    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.inner.dir.join("layers")
    }

    /// A lower directory to be put under those of an image: it has what a container's own mounts are put on (/proc, /sys, /dev, and three files in
    /// /etc), so that no start has to make it.
    pub fn mount_points(&self) -> PathBuf {
        self.layers_dir().join(content::MOUNT_POINTS).join("fs")
    }

    fn layer_fs(&self, diff_id: &Digest) -> PathBuf {
        self.layers_dir().join(diff_id.hex()).join("fs")
    }

    /// Overlay lower directories of an image, topmost first, unpacking what is not unpacked yet (verified against the diff ids, safe paths,
    /// atomic by rename). Concurrent calls for the same layer unpack once. A layer that an image has twice is listed once, where it is topmost:
    /// overlayfs refuses a directory twice, and whatever the lower one does the upper one does again.
    pub fn lower_dirs(&self, layers: &[Layer]) -> Result<Vec<PathBuf>> {
        let mut dirs: Vec<PathBuf> = Vec::with_capacity(layers.len());
        for layer in layers.iter().rev() {
            let dir = self.layer_fs(&layer.diff_id);
            if dirs.contains(&dir) {
                continue;
            }
            if !self.inner.layers.is_ready(&layer.diff_id) {
                self.inner
                    .layers
                    .alone(&layer.diff_id, || self.ensure_unpacked(layer, &dir))?;
            }
            dirs.push(dir);
        }
        Ok(dirs)
    }

    fn ensure_unpacked(&self, layer: &Layer, dir: &Path) -> Result<()> {
        if self.inner.layers.is_ready(&layer.diff_id) {
            return Ok(());
        }
        if !dir.exists() {
            let blob = self.blob_path(&layer.digest);
            let file = match File::open(&blob) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(ImageError::NotFound(format!(
                        "layer {} is not on this node",
                        layer.digest
                    )));
                }
                result => result.context(|| format!("opening {}", blob.display()))?,
            };
            let temp = self.layer_temp()?;
            let mut source = Tee::new(decompress(file)?, io::sink());
            unpack::unpack(&mut source, &temp.path().join("fs"))?;
            let (found, _) = source.finish()?;
            if found != layer.diff_id {
                return Err(ImageError::Invalid(format!(
                    "layer {} unpacks to content with digest {found}, but the image says {}",
                    layer.digest, layer.diff_id
                )));
            }
            self.move_in(&temp, &layer.diff_id)?;
        }
        self.inner.layers.set_ready(&layer.diff_id);
        Ok(())
    }

    /// A temporary directory with an empty `fs` in it.
    fn layer_temp(&self) -> Result<TempDir> {
        let temp = self.temp_dir()?;
        let fs = temp.path().join("fs");
        fs::create_dir(&fs)
            .and_then(|()| {
                Ok(rustix::fs::chmod(
                    &fs,
                    rustix::fs::Mode::from_raw_mode(0o755),
                )?)
            })
            .context(|| format!("making {}", fs.display()))?;
        Ok(temp)
    }

    /// Moves an unpacked layer into place once its content is on disk. Only with the layer's turn ([`Unpacked::alone`]).
    fn move_in(&self, temp: &TempDir, diff_id: &Digest) -> Result<()> {
        File::open(temp.path())
            .and_then(|dir| Ok(rustix::fs::syncfs(&dir)?))
            .context(|| "syncing an unpacked layer".to_owned())?;
        let to = self.layers_dir().join(diff_id.hex());
        fs::rename(temp.path(), &to).context(|| format!("moving a layer to {}", to.display()))?;
        sync_dir(&self.layers_dir())
    }

    /// The same where the layer may be there already; then the one in `temp` is dropped.
    fn install(&self, temp: &TempDir, diff_id: &Digest) -> Result<()> {
        self.inner.layers.alone(diff_id, || {
            if !self.layer_fs(diff_id).exists() {
                self.move_in(temp, diff_id)?;
            }
            self.inner.layers.set_ready(diff_id);
            Ok(())
        })
    }

    /// Whether a layer's blob is still here: what a build cache remembers may have been collected.
    pub fn has_layer(&self, layer: &Layer) -> Result<bool> {
        match self.blob(&layer.digest) {
            Ok(_) => Ok(true),
            Err(ImageError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Imports a root file system tar (plain, gzip or zstd) as a one-layer image named `name`. The archive is unpacked on the way, so a bad
    /// one is refused here. Equal archives give equal images.
    pub fn import_rootfs(&self, name: &str, tar: impl Read) -> Result<Image> {
        local_name(name)?;
        let temp = self.layer_temp()?;
        let mut source = Tee::new(decompress(tar)?, self.gzip_blob()?);
        unpack::unpack(&mut source, &temp.path().join("fs"))?;
        let (diff_id, gzip) = source.finish()?;
        let layer = self.finish_layer(gzip, diff_id)?;
        self.install(&temp, &layer.diff_id)?;
        let invalid = |e: oci_spec::OciSpecError| ImageError::Invalid(e.to_string());
        let history = HistoryBuilder::default()
            .created_by("wharf image import")
            .build()
            .map_err(invalid)?;
        let config = ImageConfigurationBuilder::default()
            .architecture(host_architecture())
            .os(Os::Linux)
            .history(vec![history])
            .build()
            .map_err(invalid)?;
        self.create(config, &[layer], &[name.to_owned()])
    }

    /// Turns an overlay upper directory into a layer: overlay whiteouts and opaque markers become OCI whiteouts in a gzip'd tar blob (entries sorted,
    /// so equal trees give equal digests), and the directory itself is moved into place as the unpacked layer. Consumes the directory, also when
    /// it fails. It must be on the store's file system ([`ImageStore::scratch_dir`]), and no longer mounted.
    pub fn commit_upper(&self, upper: &Path) -> Result<Layer> {
        let temp = self.temp_dir()?;
        let fs = temp.path().join("fs");
        fs::rename(upper, &fs).context(|| format!("taking {}", upper.display()))?;
        let hashing = HashWriter {
            hasher: Hasher::default(),
            to: self.gzip_blob()?,
        };
        let HashWriter { hasher, to } = pack::pack(&fs, hashing)?;
        let layer = self.finish_layer(to, hasher.finish())?;
        self.install(&temp, &layer.diff_id)?;
        Ok(layer)
    }

    /// A blob that is compressed as it is written. No name and no time goes into the gzip header.
    fn gzip_blob(&self) -> Result<GzEncoder<BlobWriter>> {
        Ok(GzEncoder::new(self.blob_writer()?, COMPRESSION))
    }

    fn finish_layer(&self, gzip: GzEncoder<BlobWriter>, diff_id: Digest) -> Result<Layer> {
        let writer = gzip.finish().context(|| "compressing a layer".to_owned())?;
        let (digest, size) = self.finish_blob(writer)?;
        Ok(Layer {
            digest,
            diff_id,
            size,
            media_type: OCI_LAYER_GZIP.to_owned(),
        })
    }

    /// Writes config and manifest of an image made of these layers; gives it the local names. `config.rootfs` is set from the layers. Equal
    /// inputs give equal digests.
    pub fn create(
        &self,
        mut config: ImageConfiguration,
        layers: &[Layer],
        names: &[String],
    ) -> Result<Image> {
        let names = names
            .iter()
            .map(|name| local_name(name))
            .collect::<Result<Vec<_>>>()?;
        let invalid = |e: String| ImageError::Invalid(format!("image configuration: {e}"));
        config.set_rootfs(
            RootFsBuilder::default()
                .typ("layers")
                .diff_ids(
                    layers
                        .iter()
                        .map(|l| l.diff_id.to_string())
                        .collect::<Vec<_>>(),
                )
                .build()
                .map_err(|e| invalid(e.to_string()))?,
        );
        let json = serde_json::to_value(&config).map_err(|e| invalid(e.to_string()))?;
        let bytes = canonical(&json);
        let digest = self.change(|change, _| {
            // Inside the change, so that no garbage collection comes between this look and the row.
            for layer in layers {
                self.blob_size(&layer.digest)?;
            }
            let config = self.put_blob(&bytes)?;
            let body = image_manifest(&config, bytes.len() as u64, layers);
            let digest = Digest::of(&body);
            change.put_manifest(&digest, OCI_MANIFEST, &body)?;
            for name in &names {
                change.put_name(name, &digest)?;
            }
            Ok(digest)
        })?;
        self.image(&self.catalog(), &digest)
    }
}

/// A name that an image may be given: no digest. In full.
pub(crate) fn local_name(text: &str) -> Result<String> {
    let reference = Reference::parse(text)?;
    if reference.digest.is_some() {
        return Err(ImageError::Invalid(format!(
            "\"{text}\" cannot be given to an image as a name: leave out the digest"
        )));
    }
    Ok(reference.tagged())
}

/// Takes gzip or zstd off a stream, told by its first bytes; anything else passes as it is. What the media type claims does not matter.
pub(crate) fn decompress<'a>(mut source: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut magic = [0; 4];
    let mut filled = 0;
    while filled < magic.len() {
        match source.read(&mut magic[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(bad(format!("cannot read it: {error}"))),
        }
    }
    if filled == 0 {
        return Err(bad("it is empty"));
    }
    let whole = io::Cursor::new(magic).take(filled as u64).chain(source);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(
            io::BufReader::with_capacity(128 * 1024, whole),
        )),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(zstd::Decoder::new(whole).context(|| "starting a zstd decoder".to_owned())?)
        }
        _ => Box::new(io::BufReader::with_capacity(128 * 1024, whole)),
    })
}

/// Hashes what is read through it, and copies it to `to`.
struct Tee<R, W> {
    from: R,
    to: W,
    hasher: Hasher,
    /// Kept apart: the reader's user takes every error for a bad archive, but a full disk is none.
    write_error: Option<io::Error>,
}

impl<R: Read, W: Write> Tee<R, W> {
    fn new(from: R, to: W) -> Self {
        Self {
            from,
            to,
            hasher: Hasher::default(),
            write_error: None,
        }
    }
    fn finish(self) -> Result<(Digest, W)> {
        match self.write_error {
            Some(error) => Err(error).context(|| "compressing a layer".to_owned()),
            None => Ok((self.hasher.finish(), self.to)),
        }
    }
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        if self.write_error.is_none()
            && let Err(error) = self.to.write_all(&buffer[..n])
        {
            self.write_error = Some(error);
        }
        Ok(n)
    }
}

struct HashWriter<W> {
    hasher: Hasher,
    to: W,
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
