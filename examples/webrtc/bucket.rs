//! How often something may happen.

use std::time::{Duration, Instant};

/// So much at once, and after that one more each time that `pause` has passed.
#[derive(Debug)]
pub struct Bucket {
    size: u32,
    pause: Duration,
    left: u32,
    /// Until when it was filled.
    filled: Instant,
}

impl Bucket {
    pub fn new(size: u32, pause: Duration, now: Instant) -> Self {
        Self { size, pause, left: size, filled: now }
    }

    /// Whether it may happen now.
    pub fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        true
    }

    fn fill(&mut self, now: Instant) {
        let pauses = now.saturating_duration_since(self.filled).as_nanos() / self.pause.as_nanos();
        let pauses = u32::try_from(pauses).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(pauses).min(self.size);
        self.filled = if self.left == self.size { now } else { self.filled + self.pause * pauses };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn taken(bucket: &mut Bucket, tries: u32, now: Instant) -> u32 {
        (0..tries).filter(|_| bucket.take(now)).count() as u32
    }

    #[test]
    fn what_was_not_used_is_kept_up_to_its_size() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, SECOND, start);
        assert_eq!(taken(&mut bucket, 10, start), 3);
        assert_eq!(taken(&mut bucket, 10, start + SECOND * 2), 2);
        assert_eq!(taken(&mut bucket, 10, start + SECOND * 1_000), 3);
    }

    #[test]
    fn parts_of_a_pause_add_up() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1, SECOND, start);
        assert!(bucket.take(start));
        let tries = (1..=25).filter(|tenth| bucket.take(start + SECOND * *tenth / 10)).count();
        assert_eq!(tries, 2);
    }

    #[test]
    fn a_clock_that_stands_still_gives_nothing() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1, SECOND, start + SECOND);
        assert!(bucket.take(start));
        assert!(!bucket.take(start));
    }
}
