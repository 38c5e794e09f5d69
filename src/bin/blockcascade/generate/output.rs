//! Where frames go: a `.y4m` file, standard output, or numbered pictures.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

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

/// An open output; what was written is whole after each frame.
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
            return Y4m::new(Box::new(io::stdout()), None, config).map(Self::from);
        }
        let extension = path.extension().unwrap_or_default();
        if extension == "y4m" {
            let file = create(path, force)?;
            return Y4m::new(Box::new(file), Some(path.into()), config).map(Self::from);
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

    /// Ends the output; a file without a single frame is removed.
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

fn create(path: &Path, force: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).truncate(force).create(force).create_new(!force);
    match options.open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("output: {} exists already; --force overwrites it", path.display())
        }
        file => file.with_context(|| path.display().to_string()),
    }
}

/// BT.601, limited range, chroma in the middle of four pixels: what players take `.y4m` for.
pub struct Y4m {
    encoder: y4m::Encoder<Box<dyn Write>>,
    planes: YuvPlanarImageMut<'static, u8>,
    /// The file, if it is one.
    path: Option<PathBuf>,
    frames: u64,
}

impl Y4m {
    fn new(
        writer: Box<dyn Write>,
        path: Option<PathBuf>,
        config: &GeneratorConfig,
    ) -> Result<Self> {
        let (size, fps) = (config.frame_size(), config.model.preset.fps);
        let range = VendorExtensionString::new(b"COLORRANGE=LIMITED".to_vec()).map_err(unpacked)?;
        let header =
            y4m::encode(size.width as usize, size.height as usize, Ratio::new(fps as usize, 1))
                .with_colorspace(Colorspace::C420jpeg)
                .append_vendor_extension(range);
        let planes =
            YuvPlanarImageMut::alloc(size.width, size.height, YuvChromaSubsampling::Yuv420);
        Ok(Self {
            encoder: header.write_header(writer).map_err(unpacked)?,
            planes,
            path,
            frames: 0,
        })
    }

    fn write(&mut self, frame: &Frame) -> Result<()> {
        let (range, matrix) = (YuvRange::Limited, YuvStandardMatrix::Bt601);
        let (planes, mode) = (&mut self.planes, YuvConversionMode::Professional);
        yuv::rgb_to_yuv420(planes, &frame.rgb, 3 * frame.width, range, matrix, mode)?;
        let planes = [planes.y_plane.borrow(), planes.u_plane.borrow(), planes.v_plane.borrow()];
        self.encoder.write_frame(&y4m::Frame::new(planes, None)).map_err(unpacked)?;
        self.frames += 1;
        Ok(())
    }

    fn close(self) -> Result<()> {
        match self.path {
            None => Ok(io::stdout().flush()?),
            // Devices and pipes stay, whatever went through them.
            Some(path) if self.frames == 0 && path.is_file() => {
                fs::remove_file(&path).with_context(|| path.display().to_string())
            }
            Some(_) => Ok(()),
        }
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
        let file = BufWriter::new(create(&path, self.force)?);
        let mut encoder = png::Encoder::new(file, frame.width, frame.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
        let written = encoder.write_header().and_then(|mut writer| {
            writer.write_image_data(&frame.rgb)?;
            writer.finish()
        });
        written.with_context(|| path.display().to_string())
    }
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
