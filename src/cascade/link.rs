//! How the workers of one tick give each other keys and values: once a layer, each to all that see
//! its blocks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Result, Tensor, bail};

use crate::device::{Kept, Sent, moved, sent};
use crate::model::Kv;

/// Layers after which what was sent is let go of: a worker's layer follows from what all had at the one
/// before, so that by then it has arrived.
const ON_THEIR_WAY: usize = 2;

/// The board that the workers of one tick share; it ends with the tick, and all that is on it.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Who takes part.
    parties: Vec<Party>,
    board: Mutex<Board>,
    changed: Condvar,
    bytes: AtomicU64,
}

/// A worker that has blocks.
#[derive(Clone, Debug)]
pub(super) struct Party {
    /// Its blocks, by place among those in flight.
    pub(super) places: Vec<usize>,
    /// How many of the oldest blocks it sees.
    pub(super) wanted: usize,
    /// Where it computes.
    pub(super) device: Device,
    /// Where what it is given from elsewhere arrives, beside that.
    pub(super) arrivals: Device,
}

/// A block's keys and values, by its place.
type Placed = (usize, Kv);

#[derive(Debug, Default)]
struct Board {
    /// What is given, by layer and party, until it is taken.
    given: HashMap<(usize, usize), Vec<Placed>>,
    /// What is on its way to other devices, with its layer and who gave it.
    kept: Vec<(usize, usize, Kept)>,
    /// Who failed first.
    failed: Option<usize>,
}

impl Party {
    /// Whether it sees a block of others.
    fn awaits(&self, place: usize) -> bool {
        place < self.wanted && !self.places.contains(&place)
    }

    /// What is on its own device already stays there.
    fn arrivals_from(&self, device: &Device) -> &Device {
        if device.same_device(&self.device) { &self.device } else { &self.arrivals }
    }

    fn awaited(&self) -> usize {
        (0..self.wanted).filter(|&place| self.awaits(place)).count()
    }
}

impl Link {
    pub(super) fn new(parties: Vec<Party>) -> Self {
        Self { parties, ..Self::default() }
    }

    /// Sends the keys and values of a party's own blocks to all that see them. An error if any party
    /// has failed.
    pub(super) fn give(&self, layer: usize, number: usize, own: &[Placed]) -> Result<()> {
        self.release(|(of, giver, _)| *giver == number && of + ON_THEIR_WAY <= layer)?;
        for (receiver, party) in self.parties.iter().enumerate() {
            for (place, kv) in own.iter().filter(|(place, _)| party.awaits(*place)) {
                let to = party.arrivals_from(kv.k.device());
                let k = self.kept(layer, number, sent(&kv.k, to)?);
                let v = self.kept(layer, number, sent(&kv.v, to)?);
                self.bytes.fetch_add(bytes(&kv.k) + bytes(&kv.v), Ordering::Relaxed);
                let mut board = self.lock();
                board.given.entry((layer, receiver)).or_default().push((*place, Kv { k, v }));
                self.changed.notify_all();
            }
        }
        self.check()
    }

    /// An error if any party has failed.
    pub(super) fn check(&self) -> Result<()> {
        self.lock().check()
    }

    /// What is sent, where it goes.
    fn kept(&self, layer: usize, number: usize, Sent { there, kept }: Sent) -> Tensor {
        self.lock().kept.extend(kept.map(|kept| (layer, number, kept)));
        there
    }

    /// Lets go of some of what was sent. The first error, if there is any, when all of it is done.
    fn release(&self, which: impl Fn(&(usize, usize, Kept)) -> bool) -> Result<()> {
        let released: Vec<_> = self.lock().kept.extract_if(.., |kept| which(kept)).collect();
        let results: Vec<_> = released.into_iter().map(|(_, _, kept)| kept.release()).collect();
        results.into_iter().collect()
    }

    /// Waits for the keys and values that a party awaits, and returns them, the oldest first, where
    /// they arrived. An error as soon as any party has failed.
    pub(super) fn take(&self, layer: usize, number: usize) -> Result<Vec<Placed>> {
        let Some(party) = self.parties.get(number) else { bail!("there is no worker {number}") };
        let (key, awaited) = ((layer, number), party.awaited());
        let misses = |board: &mut Board| {
            board.failed.is_none() && board.given.get(&key).map_or(0, Vec::len) < awaited
        };
        let board = self.changed.wait_while(self.lock(), misses);
        let mut board = board.unwrap_or_else(PoisonError::into_inner);
        board.check()?;
        let mut taken = board.given.remove(&key).unwrap_or_default();
        taken.sort_by_key(|(place, _)| *place);
        Ok(taken)
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

    /// Lets go of all that was sent, once nobody computes any more.
    pub(super) fn settle(&self) -> Result<()> {
        self.release(|_| true)
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    fn check(&self) -> Result<()> {
        if self.failed.is_some() { bail!("another worker failed") } else { Ok(()) }
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

    fn link(parties: &[(&[usize], usize)]) -> Link {
        let party = |&(places, wanted): &(&[usize], usize)| Party {
            places: places.to_vec(),
            wanted,
            device: Device::Cpu,
            arrivals: Device::Cpu,
        };
        Link::new(parties.iter().map(party).collect())
    }

    fn give(link: &Link, number: usize) -> Result<()> {
        let own = link.parties[number].places.iter().map(|&place| (place, kv(place as f32)));
        link.give(0, number, &own.collect::<Vec<_>>())
    }

    fn take(link: &Link, number: usize) -> Result<Vec<usize>> {
        let place = |(place, kv): &Placed| {
            let number: f32 = kv.k.flatten_all()?.get(0)?.to_scalar()?;
            assert_eq!(number, *place as f32);
            Ok(*place)
        };
        link.take(0, number)?.iter().map(place).collect()
    }

    #[test]
    fn all_get_all_in_order_and_nothing_stays() {
        let link = link(&[(&[0, 3], 4), (&[1], 4), (&[2], 4)]);
        let others = [vec![1, 2], vec![0, 2, 3], vec![0, 1, 3]];
        thread::scope(|scope| {
            let link = &link;
            let both =
                |number| scope.spawn(move || give(link, number).and_then(|()| take(link, number)));
            for (thread, others) in [0, 1, 2].map(both).into_iter().zip(others) {
                assert_eq!(thread.join().unwrap().unwrap(), others);
            }
        });
        assert!(link.lock().given.is_empty());
        // Each of four blocks goes to two others: 2 tensors of 8 numbers of 4 bytes.
        assert_eq!(link.bytes(), 4 * 2 * 2 * 8 * 4);
    }

    #[test]
    fn who_wants_older_blocks_does_not_wait_for_younger_ones() {
        let link = link(&[(&[0], 1), (&[1], 2)]);
        give(&link, 0).unwrap();
        assert_eq!(take(&link, 0).unwrap(), [0usize; 0]);
        give(&link, 1).unwrap();
        assert_eq!(take(&link, 1).unwrap(), [0]);
        assert!(link.lock().given.is_empty());
    }

    #[test]
    fn a_failure_wakes_who_waits_and_turns_away_who_comes() {
        let link = link(&[(&[0], 3), (&[1], 3), (&[2], 3)]);
        thread::scope(|scope| {
            give(&link, 0).unwrap();
            let waiting = scope.spawn(|| take(&link, 0));
            thread::sleep(Duration::from_millis(20));
            link.fail(2);
            link.fail(0);
            assert!(waiting.join().unwrap().is_err());
        });
        assert!(give(&link, 1).is_err());
        assert!(take(&link, 1).is_err());
        assert_eq!(link.failed(), Some(2));
    }
}
