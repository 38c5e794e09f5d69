//! How the workers of one tick give each other keys and values: one call a layer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Result, Tensor, bail};

use crate::device::moved;
use crate::model::Kv;

/// The board that the workers of one tick share; it ends with the tick, and all that is on it.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Workers that take part.
    workers: usize,
    board: Mutex<Board>,
    changed: Condvar,
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Board {
    layers: HashMap<usize, Shelf>,
    /// Who failed first.
    failed: Option<usize>,
}

/// Keys and values of one layer, by place among the blocks in flight.
#[derive(Debug, Default)]
struct Shelf {
    kv: Vec<Option<Kv>>,
    /// Workers that have what they wanted.
    served: usize,
}

/// What one worker gives and wants at one layer.
#[derive(Debug)]
pub(super) struct Offer<'a> {
    pub(super) layer: usize,
    /// Its own blocks, by place.
    pub(super) own: Vec<(usize, Kv)>,
    /// How many of the oldest blocks it wants.
    pub(super) wanted: usize,
    /// Where it computes.
    pub(super) device: &'a Device,
}

impl Link {
    pub(super) fn new(workers: usize) -> Self {
        Self { workers, ..Self::default() }
    }

    /// Waits for the keys and values that are wanted and returns them, oldest first, on the
    /// caller's device. An error as soon as any worker has failed.
    pub(super) fn gather(&self, offer: Offer<'_>) -> Result<Vec<Kv>> {
        let own: Vec<usize> = offer.own.iter().map(|(place, _)| *place).collect();
        self.put(offer.layer, offer.own);
        let found = self.take(offer.layer, offer.wanted)?;
        let mut gathered = Vec::with_capacity(found.len());
        for (place, kv) in found.into_iter().enumerate() {
            if !own.contains(&place) {
                self.bytes.fetch_add(bytes(&kv.k) + bytes(&kv.v), Ordering::Relaxed);
            }
            gathered.push(on(&kv, offer.device)?);
        }
        Ok(gathered)
    }

    /// Tells all that one of them, by its number, will not go on.
    pub(super) fn fail(&self, number: usize) {
        self.lock().failed.get_or_insert(number);
        self.changed.notify_all();
    }

    /// Who failed first.
    pub(super) fn failed(&self) -> Option<usize> {
        self.lock().failed
    }

    /// Keys and values that went from one worker to another.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn put(&self, layer: usize, own: Vec<(usize, Kv)>) {
        let mut board = self.lock();
        let shelf = board.layers.entry(layer).or_default();
        for (place, kv) in own {
            shelf.kv.resize_with(shelf.kv.len().max(place + 1), || None);
            shelf.kv[place] = Some(kv);
        }
        self.changed.notify_all();
    }

    fn take(&self, layer: usize, wanted: usize) -> Result<Vec<Kv>> {
        let misses = |board: &mut Board| {
            board.failed.is_none() && board.layers.get(&layer).is_none_or(|s| !s.has(wanted))
        };
        let board = self.changed.wait_while(self.lock(), misses);
        let mut board = board.unwrap_or_else(PoisonError::into_inner);
        if board.failed.is_some() {
            bail!("another worker failed");
        }
        let Some(shelf) = board.layers.get_mut(&layer) else { bail!("layer {layer} is gone") };
        let found = shelf.kv.iter().take(wanted).flatten().cloned().collect();
        shelf.served += 1;
        if shelf.served == self.workers {
            board.layers.remove(&layer);
        }
        Ok(found)
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn has(&self, wanted: usize) -> bool {
        self.kv.len() >= wanted && self.kv.iter().take(wanted).all(Option::is_some)
    }
}

/// The same keys and values on another device.
pub(super) fn on(kv: &Kv, device: &Device) -> Result<Kv> {
    Ok(Kv { k: moved(&kv.k, device)?, v: moved(&kv.v, device)? })
}

fn bytes(x: &Tensor) -> u64 {
    (x.elem_count() * x.dtype().size_in_bytes()) as u64
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn kv(number: f32) -> Kv {
        let x = Tensor::full(number, (1, 2, 1, 4), &Device::Cpu).unwrap();
        Kv { k: x.clone(), v: x }
    }

    fn gather(link: &Link, own: &[usize], wanted: usize) -> Result<Vec<f32>> {
        let own = own.iter().map(|&place| (place, kv(place as f32))).collect();
        let offer = Offer { layer: 0, own, wanted, device: &Device::Cpu };
        let first = |kv: &Kv| kv.k.flatten_all()?.get(0)?.to_scalar();
        link.gather(offer)?.iter().map(first).collect()
    }

    #[test]
    fn all_get_all_in_order_and_nothing_stays() {
        let link = Link::new(3);
        thread::scope(|scope| {
            let ranks = [&[0, 3][..], &[1], &[2]].map(|own| scope.spawn(|| gather(&link, own, 4)));
            for rank in ranks {
                assert_eq!(rank.join().unwrap().unwrap(), [0.0, 1.0, 2.0, 3.0]);
            }
        });
        assert!(link.lock().layers.is_empty());
        // Each of four blocks goes to two others: 2 tensors of 8 numbers of 4 bytes.
        assert_eq!(link.bytes(), 4 * 2 * 2 * 8 * 4);
    }

    #[test]
    fn who_wants_older_blocks_does_not_wait_for_younger_ones() {
        let link = Link::new(2);
        assert_eq!(gather(&link, &[0], 1).unwrap(), [0.0]);
        assert_eq!(gather(&link, &[1], 2).unwrap(), [0.0, 1.0]);
        assert!(link.lock().layers.is_empty());
    }

    #[test]
    fn a_failure_wakes_who_waits_and_turns_away_who_comes() {
        let link = Link::new(3);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| gather(&link, &[0], 3));
            thread::sleep(Duration::from_millis(20));
            link.fail(2);
            link.fail(0);
            assert!(waiting.join().unwrap().is_err());
        });
        assert!(gather(&link, &[1], 1).is_err());
        assert_eq!(link.failed(), Some(2));
    }
}
