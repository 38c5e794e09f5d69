//! A frame into a buffer, in the format that was agreed on: one pass over its pixels.

use gstreamer as gst;
use gstreamer_video::prelude::*;
use gstreamer_video::{VideoColorMatrix, VideoColorRange, VideoFormat, VideoFrameRef, VideoInfo};
use yuv::{
    BufferStoreMut, YuvBiPlanarImageMut, YuvConversionMode, YuvError, YuvPlanarImageMut, YuvRange,
    YuvStandardMatrix,
};

use crate::generator::Frame;

/// Writes a frame; the buffer's strides are honoured.
pub fn write(frame: &Frame, buffer: &mut gst::BufferRef, info: &VideoInfo) -> Result<(), String> {
    let mut picture =
        VideoFrameRef::from_buffer_ref_writable(buffer, info).map_err(|error| error.to_string())?;
    let strides: [u32; 4] = std::array::from_fn(|plane| {
        picture.plane_stride().get(plane).map_or(0, |&stride| stride.unsigned_abs())
    });
    let planes = Planes { planes: picture.planes_data_mut(), strides };
    let written = match info.format() {
        VideoFormat::I420 => planes.i420(frame, info),
        VideoFormat::Nv12 => planes.nv12(frame, info),
        VideoFormat::Rgb => planes.rgb(frame),
        VideoFormat::Bgrx => planes.four(frame, yuv::rgb_to_bgra),
        VideoFormat::Rgba | VideoFormat::Rgbx => planes.four(frame, yuv::rgb_to_rgba),
        other => return Err(format!("format {other} was never offered")),
    };
    written.map_err(|error| error.to_string())
}

struct Planes<'a> {
    planes: [&'a mut [u8]; 4],
    /// In bytes.
    strides: [u32; 4],
}

/// A conversion of packed pixels: source, its stride, destination, its stride, width, height.
type Shuffle = fn(&[u8], u32, &mut [u8], u32, u32, u32) -> Result<(), YuvError>;

impl Planes<'_> {
    fn i420(self, frame: &Frame, info: &VideoInfo) -> Result<(), YuvError> {
        let ([y, u, v, _], [y_stride, u_stride, v_stride, _]) = (self.planes, self.strides);
        let mut image = YuvPlanarImageMut {
            y_plane: BufferStoreMut::Borrowed(y),
            y_stride,
            u_plane: BufferStoreMut::Borrowed(u),
            u_stride,
            v_plane: BufferStoreMut::Borrowed(v),
            v_stride,
            width: frame.width,
            height: frame.height,
        };
        let (range, matrix) = colours(info);
        yuv::rgb_to_yuv420(&mut image, &frame.rgb, 3 * frame.width, range, matrix, MODE)
    }

    fn nv12(self, frame: &Frame, info: &VideoInfo) -> Result<(), YuvError> {
        let ([y, uv, ..], [y_stride, uv_stride, ..]) = (self.planes, self.strides);
        let mut image = YuvBiPlanarImageMut {
            y_plane: BufferStoreMut::Borrowed(y),
            y_stride,
            uv_plane: BufferStoreMut::Borrowed(uv),
            uv_stride,
            width: frame.width,
            height: frame.height,
        };
        let (range, matrix) = colours(info);
        yuv::rgb_to_yuv_nv12(&mut image, &frame.rgb, 3 * frame.width, range, matrix, MODE)
    }

    fn rgb(self, frame: &Frame) -> Result<(), YuvError> {
        let ([pixels, ..], [stride, ..]) = (self.planes, self.strides);
        let width = 3 * frame.width as usize;
        let rows = pixels.chunks_mut(stride as usize).zip(frame.rgb.chunks_exact(width));
        rows.for_each(|(to, from)| to[..width].copy_from_slice(from));
        Ok(())
    }

    fn four(self, frame: &Frame, shuffle: Shuffle) -> Result<(), YuvError> {
        let ([pixels, ..], [stride, ..]) = (self.planes, self.strides);
        shuffle(&frame.rgb, 3 * frame.width, pixels, stride, frame.width, frame.height)
    }
}

/// Rounds to the nearest level; the default mode is more than one off at times.
const MODE: YuvConversionMode = YuvConversionMode::Professional;

fn colours(info: &VideoInfo) -> (YuvRange, YuvStandardMatrix) {
    let colorimetry = info.colorimetry();
    let range = match colorimetry.range() {
        VideoColorRange::Range0_255 => YuvRange::Full,
        _ => YuvRange::Limited,
    };
    let matrix = match colorimetry.matrix() {
        VideoColorMatrix::Bt709 => YuvStandardMatrix::Bt709,
        VideoColorMatrix::Bt2020 => YuvStandardMatrix::Bt2020,
        VideoColorMatrix::Smpte240m => YuvStandardMatrix::Smpte240,
        VideoColorMatrix::Fcc => YuvStandardMatrix::Fcc,
        _ => YuvStandardMatrix::Bt601,
    };
    (range, matrix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gstreamer_video::VideoColorimetry;

    /// A frame of one colour, written and read back: the first pixel of each plane.
    fn pixel(format: VideoFormat, colorimetry: &str, rgb: [u8; 3]) -> Vec<Vec<u8>> {
        gst::init().unwrap();
        let (width, height) = (18, 4); // strides longer than rows
        let colorimetry: VideoColorimetry = colorimetry.parse().unwrap();
        let info = VideoInfo::builder(format, width, height).colorimetry(&colorimetry);
        let info = info.build().unwrap();
        let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
        let rgb = rgb.repeat((width * height) as usize);
        let frame = Frame { index: 0, block: 0, prompt: Default::default(), width, height, rgb };
        write(&frame, buffer.get_mut().unwrap(), &info).unwrap();
        let picture = VideoFrameRef::from_buffer_ref_readable(&buffer, &info).unwrap();
        let bytes = |plane: u32| {
            let data = picture.plane_data(plane).unwrap();
            let stride = picture.plane_stride()[plane as usize] as usize;
            let step = picture.comp_pstride(plane) as usize;
            assert_eq!(data[..step], data[stride..stride + step], "rows differ");
            data[..step].to_vec()
        };
        (0..picture.n_planes()).map(bytes).collect()
    }

    #[test]
    fn primaries_have_the_standards_values() {
        let check = |colorimetry, rgb, expected: [u8; 3]| {
            let got = pixel(VideoFormat::I420, colorimetry, rgb).concat();
            let is_near = got.iter().zip(expected).all(|(got, want)| got.abs_diff(want) <= 1);
            assert!(is_near, "{rgb:?} in {colorimetry} is {got:?}, expected {expected:?}");
        };
        check("bt601", [255, 0, 0], [81, 90, 240]);
        check("bt601", [0, 0, 255], [41, 240, 110]);
        check("bt709", [255, 0, 0], [63, 102, 240]);
        check("bt709", [0, 255, 0], [173, 42, 26]);
        check("bt601", [255, 255, 255], [235, 128, 128]);
        check("1:4:0:0", [255, 255, 255], [255, 128, 128]);
        assert_eq!(pixel(VideoFormat::Nv12, "bt601", [255, 0, 0]), [vec![81], vec![90, 240]]);
    }

    #[test]
    fn packed_formats_keep_their_order() {
        let packed = |format| pixel(format, "sRGB", [1, 2, 3]).concat();
        assert_eq!(packed(VideoFormat::Rgb), [1, 2, 3]);
        assert_eq!(packed(VideoFormat::Rgba), [1, 2, 3, 255]);
        assert_eq!(packed(VideoFormat::Bgrx)[..3], [3, 2, 1]);
        assert_eq!(packed(VideoFormat::Rgbx)[..3], [1, 2, 3]);
    }
}
