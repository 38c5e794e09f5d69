//! What is shown while there is nothing to show: how far loading is.

use std::sync::Arc;

use crate::generator::{AppliedPrompt, Frame, FrameSize};

const GROUND: [u8; 3] = [16, 18, 24];
const GROOVE: [u8; 3] = [44, 48, 58];
const BAR: [u8; 3] = [92, 148, 220];

/// A dark picture with a bar of a length.
pub fn frame(size: FrameSize, percent: u32) -> Frame {
    let FrameSize { width, height } = size;
    let bar = Bar::of(size);
    let colour = |(x, y): (u32, u32)| match () {
        () if !bar.holds(x, y) => GROUND,
        () if (x - bar.left) * 100 < bar.width * percent => BAR,
        () => GROOVE,
    };
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let rgb = pixels.flat_map(colour).collect();
    let prompt = Arc::<AppliedPrompt>::default();
    Frame { index: 0, block: 0, prompt, width, height, rgb }
}

/// A strip in the middle: half as wide as the picture, a thirtieth as high.
struct Bar {
    left: u32,
    width: u32,
    top: u32,
    height: u32,
}

impl Bar {
    fn of(FrameSize { width, height }: FrameSize) -> Self {
        let thick = (height / 30).max(2);
        Self { left: width / 4, width: width / 2, top: (height - thick) / 2, height: thick }
    }

    fn holds(&self, x: u32, y: u32) -> bool {
        let columns = self.left..self.left + self.width;
        columns.contains(&x) && (self.top..self.top + self.height).contains(&y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(percent: u32) -> [usize; 3] {
        let frame = frame(FrameSize { width: 200, height: 120 }, percent);
        let (pixels, rest) = frame.rgb.as_chunks::<3>();
        assert_eq!((pixels.len(), rest.len()), (200 * 120, 0));
        [GROUND, GROOVE, BAR].map(|colour| pixels.iter().filter(|&&p| p == colour).count())
    }

    #[test]
    fn the_bar_is_as_long_as_loading_is_far() {
        let ground = 200 * 120 - 100 * 4;
        assert_eq!(shares(0), [ground, 400, 0]);
        assert_eq!(shares(25), [ground, 300, 100]);
        assert_eq!(shares(100), [ground, 0, 400]);
    }

    #[test]
    fn the_smallest_pictures_have_one_too() {
        let frame = frame(FrameSize { width: 16, height: 16 }, 50);
        assert!(frame.rgb.as_chunks::<3>().0.contains(&BAR));
    }
}
