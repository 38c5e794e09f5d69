//! All workers of a cascade, and the threads that they compute on.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::{self, Builder, Result as Joined, ScopedJoinHandle, available_parallelism};

use candle_core::{Device, Error, Result, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::block::Block;
use super::history::History;
use super::link::Link;
use super::worker::{Tick, Worker};
use crate::device;
use crate::model::{Interrupt, VideoModel};

/// What a cascade is computed by.
#[derive(Clone, Debug)]
pub struct Workers {
    /// The model of each worker, by rank; several on one device may share theirs.
    pub models: Vec<Arc<dyn VideoModel>>,
    /// Threads of each worker on a CPU. `None` shares the cores among several, and leaves them all
    /// to one.
    pub threads: Option<usize>,
}

impl From<Arc<dyn VideoModel>> for Workers {
    fn from(model: Arc<dyn VideoModel>) -> Self {
        Self { models: vec![model], threads: None }
    }
}

impl Workers {
    /// Threads of its own for a worker, if it needs any.
    fn pool(&self, model: &Arc<dyn VideoModel>) -> Result<Option<ThreadPool>> {
        let on_cpu = self.models.iter().filter(|model| model.device().is_cpu()).count();
        let shared =
            || (on_cpu > 1).then(|| available_parallelism().map_or(1, usize::from) / on_cpu);
        let threads = self.threads.or_else(shared).filter(|_| model.device().is_cpu());
        let Some(threads) = threads else { return Ok(None) };
        let pool = ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
        Ok(Some(pool.map_err(Error::wrap)?))
    }
}

/// The workers of one cascade.
#[derive(Debug)]
pub(super) struct Crew(Vec<(Worker, Option<ThreadPool>)>);

/// What a worker makes of a tick: the flow of each of its blocks, by place.
type Share = Result<Vec<(usize, Tensor)>>;

impl Crew {
    /// At most `width` workers, each with such histories.
    pub(super) fn new(workers: &Workers, width: usize, histories: &[History]) -> Result<Self> {
        let models = workers.models.iter().take(width);
        let home = models.clone().next().map_or(&Device::Cpu, |model| model.device());
        let shared = models.clone().all(|model| model.device().same_device(home));
        let worker = |(rank, model): (usize, &Arc<dyn VideoModel>)| {
            let pool = workers.pool(model)?;
            Ok((Worker::new(rank, model.clone(), histories.to_vec(), shared)?, pool))
        };
        Ok(Self(models.enumerate().map(worker).collect::<Result<_>>()?))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Where latents are kept.
    pub(super) fn device(&self) -> &Device {
        self.0.first().map_or(&Device::Cpu, |(worker, _)| worker.device())
    }

    /// What those that have blocks exchange by.
    pub(super) fn link(&self, tick: &Tick<'_>) -> Link {
        Link::new(self.0.iter().filter_map(|(worker, _)| worker.party(tick)).collect())
    }

    /// The flow of every block in flight, by place. The first worker that fails or panics ends the
    /// tick for all within a layer, and its failure is the one that is told.
    pub(super) fn forward(&mut self, tick: &Tick<'_>) -> Result<Vec<Tensor>> {
        let home = self.device().clone();
        let shares = match &mut self.0[..] {
            [(worker, pool)] => vec![Ok(within(pool.as_ref(), || worker.forward(0, tick)))],
            workers => together(workers, tick),
        };
        let settled = tick.link.settle();
        let mut flows = Vec::with_capacity(tick.flying.len());
        for share in in_order_of_failure(shares, tick) {
            flows.extend(share.unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        settled?; // an error of a worker's says more
        flows.sort_by_key(|(place, _)| *place);
        flows.into_iter().map(|(_, flow)| device::moved(&flow, &home)).collect()
    }

    /// Keeps what the last tick left.
    pub(super) fn keep(&mut self) {
        self.0.iter_mut().for_each(|(worker, _)| worker.keep());
    }

    /// Forgets the past.
    pub(super) fn forget(&mut self) {
        self.0.iter_mut().for_each(|(worker, _)| worker.forget());
    }

    /// Blocks that [`recompute`](Self::recompute) is for: those of workers that have seen all.
    pub(super) fn recomputed(&self) -> usize {
        let longest = self.0.iter().max_by_key(|(worker, _)| worker.length());
        longest.map_or(0, |(worker, _)| worker.recomputed())
    }

    /// Computes the most recent clean blocks anew, on one worker, and gives them to all that have
    /// these: at a stream's end there are some that have nothing more to do.
    pub(super) fn recompute(
        &mut self,
        blocks: &[Block],
        timesteps: &[f64],
        interrupt: &Interrupt,
    ) -> Result<()> {
        let length = self.0.iter().map(|(worker, _)| worker.length()).max();
        let mut workers: Vec<_> =
            self.0.iter_mut().filter(|(worker, _)| Some(worker.length()) == length).collect();
        let Some((first, pool)) = workers.first_mut() else { return Ok(()) };
        let left = within(pool.as_ref(), || first.recompute(blocks, timesteps, interrupt))?;
        let moved = workers.iter().map(|(worker, _)| worker.on_its_device(&left));
        let moved = moved.collect::<Result<Vec<_>>>()?;
        workers.iter_mut().zip(moved).for_each(|((worker, _), kv)| worker.replace(kv));
        Ok(())
    }
}

/// The shares of workers that have blocks, computed at once.
fn together(workers: &mut [(Worker, Option<ThreadPool>)], tick: &Tick<'_>) -> Vec<Joined<Share>> {
    thread::scope(|scope| {
        let busy = workers.iter_mut().filter(|(worker, _)| !worker.places(tick).is_empty());
        let mut threads = Vec::new();
        for (index, (worker, pool)) in busy.enumerate() {
            let forward = move || within(pool.as_ref(), || worker.forward(index, tick));
            let thread = Builder::new().name("blockcascade-worker".into());
            let thread = thread.spawn_scoped(scope, move || guarded(index, tick, forward));
            if thread.is_err() {
                tick.link.fail(index);
            }
            threads.push(thread);
        }
        threads.into_iter().map(joined).collect()
    })
}

fn joined(thread: io::Result<ScopedJoinHandle<'_, Joined<Share>>>) -> Joined<Share> {
    match thread {
        Ok(thread) => thread.join().and_then(|share| share),
        Err(error) => Ok(Err(Error::wrap(error).context("starting a thread"))),
    }
}

/// Computes the share of a number, and wakes who waits for it if it fails.
fn guarded(index: usize, tick: &Tick<'_>, forward: impl FnOnce() -> Share) -> Joined<Share> {
    let share = catch_unwind(AssertUnwindSafe(forward));
    if !matches!(share, Ok(Ok(_))) {
        tick.link.fail(index);
    }
    share
}

/// The share that failed first comes first: others may have failed because of it.
fn in_order_of_failure(mut shares: Vec<Joined<Share>>, tick: &Tick<'_>) -> Vec<Joined<Share>> {
    if let Some(first) = tick.link.failed() {
        shares.swap(0, first);
    }
    shares
}

fn within<T: Send>(pool: Option<&ThreadPool>, work: impl FnOnce() -> T + Send) -> T {
    match pool {
        Some(pool) => pool.install(work),
        None => work(),
    }
}
