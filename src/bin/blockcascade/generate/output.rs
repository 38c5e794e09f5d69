//! Where frames go: a `.y4m` file, standard output, or numbered pictures.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use gstblockcascade::generator::{Frame, GeneratorConfig};
use y4m::{Colorspace, Ratio, VendorExtensionString};
use yuv::{
    YuvChromaSubsampling, YuvConversionMode, YuvPlanarImageMut, YuvRange, YuvStandardMatrix,
};

/// Pictures in a folder that is named without a pattern.
const PATTERN: &str = "frame-%05d.png";
/// Digits of a picture's number, at most: as many as the largest has.
const MAX_DIGITS: usize = 20;
const ACCEPTED: &str =
    "NAME.y4m, - for standard output, a folder, or pictures such as frame-%05d.png";

/// An open output. What was there stays until the first frame; what was written is whole after each
/// frame, also where one cannot be written.
pub enum Output {
    /// One stream of planar 4:2:0 frames.
    Y4m(Box<Y4m>),
    /// A file for each frame.
    Pictures(Pictures),
}

impl Output {
    /// Opens `path` for a stream; nothing is overwritten without `force`.
    pub fn open(path: &Path, config: &GeneratorConfig, force: bool) -> Result<Self> {
        let text = path.to_str().unwrap_or_default();
        if text == "-" {
            return Ok(Y4m::new(None, config).into());
        }
        let extension = path.extension().unwrap_or_default();
        if extension == "y4m" {
            return Ok(Y4m::new(Some(VideoFile::open(path, force)?), config).into());
        }
        let pictures = if extension == "png" {
            Pictures::new(path, force)
        } else if path.is_dir() || extension.is_empty() {
            fs::create_dir_all(path).with_context(|| path.display().to_string())?;
            Pictures::new(&path.join(PATTERN), force)
        } else {
            None
        };
        let pictures = pictures.ok_or_else(|| anyhow!("output: got {text:?}, expected {ACCEPTED}"));
        pictures?.check().map(Self::Pictures)
    }

    /// Writes the next frame.
    pub fn write(&mut self, frame: &Frame) -> Result<()> {
        match self {
            Self::Y4m(y4m) => y4m.write(frame),
            Self::Pictures(pictures) => pictures.write(frame),
        }
    }

    /// Ends the output; a new file without a single frame is removed.
    pub fn close(self) -> Result<()> {
        match self {
            Self::Y4m(y4m) => y4m.close(),
            Self::Pictures(_) => Ok(()),
        }
    }
}

impl From<Y4m> for Output {
    fn from(y4m: Y4m) -> Self {
        Self::Y4m(Box::new(y4m))
    }
}

/// A file as it is, and whether it is new.
fn open(path: &Path, force: bool) -> Result<(File, bool)> {
    let mut options = OpenOptions::new();
    let (is_new, file) = match options.write(true).create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && force => {
            (false, options.create_new(false).create(true).open(path))
        }
        file => (true, file),
    };
    match file {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("output: {} exists already; --force overwrites it", path.display())
        }
        file => Ok((file.with_context(|| path.display().to_string())?, is_new)),
    }
}

/// Cuts a file; devices and pipes have no length.
fn cut(file: &File, length: u64) -> io::Result<()> {
    if file.metadata()?.is_file() { file.set_len(length) } else { Ok(()) }
}

/// BT.601, limited range, chroma in the middle of four pixels: what players take `.y4m` for.
pub struct Y4m {
    /// From the first frame on.
    encoder: Option<y4m::Encoder<Box<dyn Write>>>,
    planes: YuvPlanarImageMut<'static, u8>,
    fps: u32,
    /// Unless it is standard output.
    file: Option<VideoFile>,
}

impl Y4m {
    fn new(file: Option<VideoFile>, config: &GeneratorConfig) -> Self {
        let (size, subsampling) = (config.frame_size(), YuvChromaSubsampling::Yuv420);
        let planes = YuvPlanarImageMut::alloc(size.width, size.height, subsampling);
        Self { encoder: None, planes, fps: config.model.preset.fps, file }
    }

    fn write(&mut self, frame: &Frame) -> Result<()> {
        let written = self.append(frame);
        match &mut self.file {
            Some(file) => file.settle(written),
            None => written,
        }
    }

    fn append(&mut self, frame: &Frame) -> Result<()> {
        let (range, matrix) = (YuvRange::Limited, YuvStandardMatrix::Bt601);
        let (planes, mode) = (&mut self.planes, YuvConversionMode::Professional);
        yuv::rgb_to_yuv420(planes, &frame.rgb, 3 * frame.width, range, matrix, mode)?;
        let encoder = match self.encoder.take() {
            Some(encoder) => encoder,
            None => self.begin()?,
        };
        let encoder = self.encoder.insert(encoder);
        let planes = &self.planes;
        let planes = [planes.y_plane.borrow(), planes.u_plane.borrow(), planes.v_plane.borrow()];
        encoder.write_frame(&y4m::Frame::new(planes, None)).map_err(unpacked)
    }

    /// Empties the file, and writes the header.
    fn begin(&mut self) -> Result<y4m::Encoder<Box<dyn Write>>> {
        let writer: Box<dyn Write> = match &mut self.file {
            Some(file) => Box::new(file.emptied()?),
            None => Box::new(io::stdout()),
        };
        let (width, height) = (self.planes.width as usize, self.planes.height as usize);
        let range = VendorExtensionString::new(b"COLORRANGE=LIMITED".to_vec()).map_err(unpacked)?;
        let header = y4m::encode(width, height, Ratio::new(self.fps as usize, 1))
            .with_colorspace(Colorspace::C420jpeg)
            .append_vendor_extension(range);
        header.write_header(writer).map_err(unpacked)
    }

    fn close(self) -> Result<()> {
        match self.file {
            Some(file) => file.close(),
            None => Ok(io::stdout().flush()?),
        }
    }
}

/// The file of a video.
struct VideoFile {
    path: PathBuf,
    /// Shared with the encoder.
    file: Arc<File>,
    is_new: bool,
    /// Bytes up to the end of the last whole frame, once what was there is gone.
    whole: Option<u64>,
}

impl VideoFile {
    fn open(path: &Path, force: bool) -> Result<Self> {
        let (file, is_new) = open(path, force)?;
        Ok(Self { path: path.into(), file: Arc::new(file), is_new, whole: None })
    }

    fn emptied(&mut self) -> io::Result<Arc<File>> {
        cut(&self.file, 0)?;
        self.whole = Some(0);
        Ok(self.file.clone())
    }

    /// Keeps what a frame added, or cuts off what a failure left of it.
    fn settle(&mut self, written: Result<()>) -> Result<()> {
        match (&written, self.whole) {
            (Ok(()), _) => self.whole = Some(self.file.metadata()?.len()),
            (Err(cause), Some(whole)) => {
                cut(&self.file, whole).with_context(|| cause.to_string())?;
            }
            (Err(_), None) => {}
        }
        written
    }

    fn close(self) -> Result<()> {
        if self.is_new && self.whole.unwrap_or(0) == 0 {
            fs::remove_file(&self.path).with_context(|| self.path.display().to_string())?;
        }
        Ok(())
    }
}

/// The cause alone, so that a closed pipe is seen to be one.
fn unpacked(error: y4m::Error) -> anyhow::Error {
    match error {
        y4m::Error::IoError(error) => error.into(),
        other => other.into(),
    }
}

/// Numbered pictures.
pub struct Pictures {
    /// What comes before and after the number.
    around: (String, String),
    digits: usize,
    force: bool,
}

impl Pictures {
    /// From a path with `%d` or `%05d` in its name.
    fn new(pattern: &Path, force: bool) -> Option<Self> {
        let (before, rest) = pattern.to_str()?.rsplit_once('%')?;
        let (digits, after) = rest.split_once('d')?;
        let digits = if digits.is_empty() { 1 } else { digits.strip_prefix('0')?.parse().ok()? };
        (digits <= MAX_DIGITS).then_some(Self {
            around: (before.into(), after.into()),
            digits,
            force,
        })
    }

    /// Whether the first picture may be written; each is looked at again when its turn comes.
    fn check(self) -> Result<Self> {
        let first = self.path(0);
        if first.exists() && !self.force {
            bail!("output: {} exists already; --force overwrites it", first.display());
        }
        if let Some(folder) = first.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::metadata(folder).with_context(|| folder.display().to_string())?;
        }
        Ok(self)
    }

    fn path(&self, index: u64) -> PathBuf {
        let ((before, after), digits) = (&self.around, self.digits);
        format!("{before}{index:0digits$}{after}").into()
    }

    fn write(&self, frame: &Frame) -> Result<()> {
        let path = self.path(frame.index);
        let (file, _) = open(&path, self.force)?;
        let written = cut(&file, 0).map_err(png::EncodingError::from);
        let written = written.and_then(|()| encode(frame, file));
        if let Err(cause) = &written
            && path.is_file()
        {
            fs::remove_file(&path).with_context(|| format!("{}: {cause}", path.display()))?;
        }
        written.with_context(|| path.display().to_string())
    }
}

fn encode(frame: &Frame, file: File) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(BufWriter::new(file), frame.width, frame.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&frame.rgb)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_number_their_pictures() {
        let path = |pattern: &str| Some(Pictures::new(Path::new(pattern), false)?.path(7));
        assert_eq!(path("a/frame-%05d.png"), Some("a/frame-00007.png".into()));
        assert_eq!(path("%d.png"), Some("7.png".into()));
        for wrong in ["frame.png", "%x.png", "%5d.png", "%0xd.png", "%021d.png", "%0999999d.png"] {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }
}
