//! Networks on their way from disk to a device: once for a whole process, on a thread of their own.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Builder;

use candle_core::Error as Cause;

use super::config::{Decoder, Dtype, GeneratorConfig};
use super::error::{Error, Result};
use super::progress::Progress;
use super::stream::panic_message;
use super::weights::WeightsSource;
use super::{Interrupt, Parts, load};
use crate::checkpoint::Manifest;
use crate::device::{DeviceSpec, Devices};

/// A hold on networks that are loaded or being loaded. Whoever asks for the same while somebody has
/// such a hold shares them; when nobody has one any more, what is not loaded is cancelled at the next
/// tensor, and what is loaded is freed.
#[derive(Debug)]
pub struct Loading {
    networks: Arc<Networks>,
    /// Whoever waits on this hold is turned away. Raised under the lock of `networks`.
    woken: AtomicBool,
    /// How often it was: who waits may look only when that was taken back.
    wakes: AtomicU64,
}

/// Everything that anybody in this process holds, or held.
static SHARED: Mutex<Vec<Weak<Networks>>> = Mutex::new(Vec::new());

/// What a configuration's networks are made from: the same gives the same.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    model: Manifest,
    weights: WeightsSource,
    devices: Devices,
    decoder_device: Option<DeviceSpec>,
    dtype: Dtype,
    decoder: Decoder,
}

#[derive(Debug)]
struct Networks {
    key: Key,
    interrupt: Interrupt,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    result: Option<Result<Parts, Arc<Error>>>,
    watchers: Vec<Watcher>,
    /// All watchers know the result.
    is_told: bool,
}

/// How far networks are.
#[derive(Clone, Copy, Debug)]
pub enum LoadingState<'a> {
    /// So many percent are loaded.
    Percent(u32),
    /// They are there.
    Ready,
    /// They cannot be had.
    Failed(&'a Error),
}

type Watcher = Box<dyn FnMut(LoadingState<'_>) + Send>;

impl Loading {
    /// Takes what is loaded already, or starts to load; does not wait.
    pub fn start(config: &GeneratorConfig) -> Result<Self> {
        let (key, mut shared) = (Key::of(config), lock(&SHARED));
        if let Some(networks) = find(&mut shared, &key) {
            return Ok(networks.into());
        }
        let networks = Arc::new(Networks::new(key));
        let (config, filled) = (config.clone(), Arc::downgrade(&networks));
        let (interrupt, watched) = (networks.interrupt.clone(), filled.clone());
        let progress = Progress::new(move |percent| {
            if let Some(networks) = watched.upgrade() {
                networks.tell(LoadingState::Percent(percent));
            }
        });
        let work = move || {
            let result = load_safely(&config, &interrupt, &progress);
            if let Some(networks) = filled.upgrade() {
                networks.fill(result.map_err(Arc::new));
            }
        };
        let thread = Builder::new().name("blockcascade-load".into()).spawn(work);
        thread.map_err(|error| Error::worker("starting a thread", Cause::wrap(error)))?;
        shared.push(Arc::downgrade(&networks));
        Ok(networks.into())
    }

    /// Shares given networks in place of those that a configuration names, for as long as this hold
    /// lasts.
    pub fn given(config: &GeneratorConfig, parts: Parts) -> Self {
        let networks = Arc::new(Networks::new(Key::of(config)));
        networks.fill(Ok(parts));
        lock(&SHARED).push(Arc::downgrade(&networks));
        networks.into()
    }

    /// Tells how far the networks are, from now until they are there or cannot be had; on the loading
    /// thread, before [`wait`](Self::wait) returns, or at once.
    pub fn watch(&self, mut watcher: impl FnMut(LoadingState<'_>) + Send + 'static) {
        let mut state = self.networks.lock();
        let Some(result) = state.result.clone() else {
            return state.watchers.push(Box::new(watcher));
        };
        drop(state);
        watcher(outcome(&result));
    }

    /// Waits for the networks. [`Error::Cancelled`] after [`wake`](Self::wake).
    pub fn wait(&self) -> Result<Parts, Arc<Error>> {
        let state = self.networks.lock();
        let before = self.wakes.load(Ordering::SeqCst);
        let is_woken =
            || self.woken.load(Ordering::SeqCst) || self.wakes.load(Ordering::SeqCst) != before;
        let state = self.networks.changed.wait_while(state, |state| !state.is_told && !is_woken());
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let cancelled = || Err(Arc::new(Error::Cancelled));
        if is_woken() { cancelled() } else { state.result.clone().unwrap_or_else(cancelled) }
    }

    /// Whether it is known how loading ended.
    pub fn is_done(&self) -> bool {
        self.networks.lock().result.is_some()
    }

    /// Turns whoever waits on this hold away until [`resume`](Self::resume); loading goes on.
    pub fn wake(&self) {
        let _state = self.networks.lock();
        self.woken.store(true, Ordering::SeqCst);
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.networks.changed.notify_all();
    }

    /// Takes a wake back.
    pub fn resume(&self) {
        self.woken.store(false, Ordering::SeqCst);
    }
}

impl From<Arc<Networks>> for Loading {
    fn from(networks: Arc<Networks>) -> Self {
        Self { networks, woken: AtomicBool::new(false), wakes: AtomicU64::new(0) }
    }
}

impl Key {
    fn of(config: &GeneratorConfig) -> Self {
        let GeneratorConfig { model, weights, devices, decoder_device, dtype, decoder, .. } =
            config.clone();
        Self { model, weights, devices, decoder_device, dtype, decoder }
    }

    /// How a model is run makes no other networks of it.
    fn serves(&self, other: &Self) -> bool {
        let preset =
            |key: &Self| Manifest { preset: other.model.preset.clone(), ..key.model.clone() };
        let own = Self { model: preset(self), ..self.clone() };
        own == *other
    }
}

/// The newest of a kind that somebody still holds, and that did not fail.
fn find(shared: &mut Vec<Weak<Networks>>, key: &Key) -> Option<Arc<Networks>> {
    shared.retain(|networks| networks.strong_count() > 0);
    let mut held = shared.iter().rev().filter_map(Weak::upgrade);
    held.find(|networks| networks.key.serves(key) && !networks.has_failed())
}

fn load_safely(
    config: &GeneratorConfig,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Parts> {
    let load = || load::parts(config, interrupt, progress);
    catch_unwind(AssertUnwindSafe(load))
        .unwrap_or_else(|panic| Err(Error::worker("loading", Cause::msg(panic_message(&*panic)))))
}

fn outcome(result: &Result<Parts, Arc<Error>>) -> LoadingState<'_> {
    match result {
        Ok(_) => LoadingState::Ready,
        Err(error) => LoadingState::Failed(error),
    }
}

impl Networks {
    fn new(key: Key) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self { key, interrupt: Interrupt::default(), state, changed }
    }

    /// Leaves the result, and tells everybody before those who wait can go on.
    fn fill(&self, result: Result<Parts, Arc<Error>>) {
        let watchers = {
            let mut state = self.lock();
            state.result = Some(result.clone());
            std::mem::take(&mut state.watchers)
        };
        for mut watcher in watchers {
            let told = catch_unwind(AssertUnwindSafe(|| watcher(outcome(&result))));
            if let Err(panic) = told {
                log::error!("who was told how loading ended {}", panic_message(&*panic));
            }
        }
        self.lock().is_told = true;
        self.changed.notify_all();
    }

    /// Only the loading thread tells, so that nobody is told twice while the lock is open.
    fn tell(&self, how_far: LoadingState<'_>) {
        let mut watchers = std::mem::take(&mut self.lock().watchers);
        watchers.iter_mut().for_each(|watcher| watcher(how_far));
        self.lock().watchers.append(&mut watchers);
    }

    fn has_failed(&self) -> bool {
        matches!(self.lock().result, Some(Err(_)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        self.interrupt.raise();
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { result, watchers, is_told } = self;
        let watchers = watchers.len();
        write!(f, "State {{ result: {result:?}, watchers: {watchers}, is_told: {is_told} }}")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// What waits longer has failed.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Networks that no other test asks for.
    fn config(seed: u64) -> GeneratorConfig {
        let mut model = Manifest::named("pocket").unwrap();
        model.description = format!("shared by tests, {seed}");
        GeneratorConfig { weights: WeightsSource::Random { seed }, ..GeneratorConfig::new(model) }
    }

    fn same(a: &Parts, b: &Parts) -> bool {
        Arc::ptr_eq(&a.models[0], &b.models[0]) && Arc::ptr_eq(&a.decoder, &b.decoder)
    }

    /// The loading thread may still be about to let go.
    fn eventually(is_so: impl Fn() -> bool) {
        let patience = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < patience, "it never came");
            thread::yield_now();
        }
    }

    #[test]
    fn who_asks_for_the_same_gets_the_same_while_it_is_held() {
        let first = Loading::start(&config(1)).unwrap();
        let mut other_run = config(1);
        other_run.model.preset.window += 1;
        other_run.cascade_width = 3;
        let second = Loading::start(&other_run).unwrap();
        let parts = first.wait().unwrap();
        assert!(same(&parts, &second.wait().unwrap()));
        drop(first);
        assert!(same(&parts, &Loading::start(&config(1)).unwrap().wait().unwrap()));
        let others = [GeneratorConfig { dtype: Dtype::F32, ..config(1) }, config(2)];
        for other in others {
            assert!(!same(&parts, &Loading::start(&other).unwrap().wait().unwrap()));
        }
        drop(second);
        eventually(|| !same(&parts, &Loading::start(&config(1)).unwrap().wait().unwrap()));
    }

    #[test]
    fn what_nobody_holds_any_more_is_freed() {
        let loading = Loading::start(&config(3)).unwrap();
        let model = Arc::downgrade(&loading.wait().unwrap().models[0]);
        assert!(model.upgrade().is_some());
        drop(loading);
        eventually(|| model.upgrade().is_none());
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_cancelled() {
        let holds = [(); 2].map(|_| Loading::start(&config(6)).unwrap());
        let interrupt = holds[0].networks.interrupt.clone();
        let [first, second] = holds;
        drop(first);
        assert!(!interrupt.is_raised(), "another one waits");
        drop(second);
        eventually(|| interrupt.is_raised());
    }

    #[test]
    fn everybody_is_told_once_before_the_networks_can_be_had() {
        let loading = Loading::start(&config(4)).unwrap();
        let (told, news) = mpsc::channel();
        for _ in 0..2 {
            let told = told.clone();
            loading.watch(move |state| told.send(matches!(state, LoadingState::Ready)).unwrap());
        }
        loading.wait().unwrap();
        assert_eq!(news.try_iter().collect::<Vec<_>>(), [true, true]);
        loading.watch(move |state| told.send(matches!(state, LoadingState::Ready)).unwrap());
        assert_eq!(news.iter().collect::<Vec<_>>(), [true]);
    }

    #[test]
    fn who_panics_when_told_keeps_nobody_waiting() {
        let loading = Loading::start(&config(9)).unwrap();
        let (told, news) = mpsc::channel();
        loading.watch(|state| assert!(matches!(state, LoadingState::Percent(_)), "a test's panic"));
        loading.watch(move |_| told.send(()).unwrap());
        eventually(|| loading.networks.lock().is_told);
        assert!(loading.wait().is_ok());
        assert!(news.iter().count() >= 1);
    }

    #[test]
    fn percents_are_told_on_the_way() {
        let mut model = Manifest::named("pocket").unwrap();
        let mut percents = Vec::new();
        // A thread that is not let run may come too late to hear of it.
        for turn in 0..100 {
            model.description = format!("loaded from files by a test, {turn}");
            let loading = Loading::start(&GeneratorConfig::new(model.clone())).unwrap();
            let (told, news) = mpsc::channel();
            loading.watch(move |state| {
                if let LoadingState::Percent(percent) = state {
                    told.send(percent).unwrap();
                }
            });
            loading.wait().unwrap();
            percents.extend(news.iter());
            if !percents.is_empty() {
                break;
            }
        }
        assert!(percents.is_sorted() && percents.last() == Some(&100), "{percents:?}");
    }

    #[test]
    fn a_hold_is_woken_alone_and_can_go_on() {
        let holds = [(); 2].map(|_| Loading::start(&config(5)).unwrap());
        thread::scope(|scope| {
            let waiting = holds.each_ref().map(|hold| scope.spawn(|| hold.wait()));
            holds[0].wake();
            let [first, second] = waiting.map(|thread| thread.join().unwrap());
            // Loading may have been done before the wake.
            assert!(first.is_ok() || matches!(*first.unwrap_err(), Error::Cancelled));
            assert!(second.is_ok());
        });
        assert!(matches!(*holds[0].wait().unwrap_err(), Error::Cancelled));
        holds[0].resume();
        assert!(holds[0].wait().is_ok());
    }

    #[test]
    fn who_waits_hears_of_a_wake_that_is_taken_back_at_once() {
        let hold = Loading::from(Arc::new(Networks::new(Key::of(&config(7)))));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| hold.wait());
            // It may not wait yet. Few turns, in each of which a wake may be seen by chance.
            let mut pause = Duration::from_millis(20);
            while !waiting.is_finished() && pause < PATIENCE {
                hold.wake();
                hold.resume();
                thread::sleep(pause);
                pause *= 2;
            }
            hold.networks.fill(Err(Arc::new(Error::MissingFeature("waited on")))); // what it would wait for else
            let error = waiting.join().unwrap().unwrap_err();
            assert!(matches!(*error, Error::Cancelled), "{error}");
        });
    }

    #[test]
    fn a_failure_is_told_to_all_and_tried_again() {
        let weights = WeightsSource::Files(super::super::WeightPaths {
            dit: Some("nowhere.safetensors".into()),
            ..Default::default()
        });
        let config = GeneratorConfig { weights, ..config(6) };
        let hold = Loading::start(&config).unwrap();
        for _ in 0..2 {
            assert!(matches!(*hold.wait().unwrap_err(), Error::Weights(_)));
        }
        let again = Loading::start(&config).unwrap();
        assert!(!Arc::ptr_eq(&hold.networks, &again.networks));
    }

    #[test]
    fn given_networks_take_the_place_of_those_that_are_named() {
        let parts = Loading::start(&config(7)).unwrap().wait().unwrap();
        let hold = Loading::given(&config(8), parts.clone());
        assert!(same(&parts, &Loading::start(&config(8)).unwrap().wait().unwrap()));
        drop(hold);
        assert!(!same(&parts, &Loading::start(&config(8)).unwrap().wait().unwrap()));
    }
}
