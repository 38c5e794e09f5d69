//! Connections, one after the other, and the waits between them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::connection::Connection;
use crate::maker::Maker;
use crate::valve::Valve;
use crate::warn;

/// The first wait of an outage, and the one that the next ones grow to, each twice the one before.
const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub struct Sender {
    words: Vec<String>,
    streams: Vec<String>,
    valve: Arc<Valve>,
    connection: Option<Connection>,
    outage: Option<Outage>,
    /// Some connection worked: what fails now may work again.
    has_worked: bool,
}

/// A time off the air.
#[derive(Debug)]
struct Outage {
    since: Instant,
    wait: Duration,
    /// When to try again.
    due: Instant,
}

impl Sender {
    pub fn new(words: &[String], maker: &Maker, valve: Arc<Valve>) -> Result<Self> {
        let (words, streams) = (words.to_vec(), maker.streams());
        let mut sender =
            Self { words, streams, valve, connection: None, outage: None, has_worked: false };
        sender.connect(maker)?;
        Ok(sender)
    }

    fn connect(&mut self, maker: &Maker) -> Result<()> {
        let connection = Connection::open(&self.words, &self.streams).context("what sends")?;
        self.valve.open_at_key_frame(connection.entrances());
        maker.ask_key_frame();
        self.connection = Some(connection);
        Ok(())
    }

    /// Looks after the connection, or makes one when it is time.
    pub fn tend(&mut self, maker: &Maker) -> Result<()> {
        let Some(connection) = &self.connection else {
            return if self.is_due() { self.connect(maker) } else { Ok(()) };
        };
        match connection.failure() {
            Some(reason) => self.lose(&reason),
            None if connection.is_steady() => self.welcome(),
            None => Ok(()),
        }
    }

    fn is_due(&self) -> bool {
        self.outage.as_ref().is_none_or(|outage| outage.due <= Instant::now())
    }

    fn lose(&mut self, reason: &str) -> Result<()> {
        self.valve.shut();
        self.connection = None;
        if !self.has_worked {
            bail!("{reason}");
        }
        let now = Instant::now();
        self.outage = Some(match self.outage.take() {
            Some(Outage { since, wait, .. }) => {
                let wait = LONGEST.min(2 * wait);
                Outage { since, wait, due: now + wait }
            }
            None => {
                warn(format_args!("off the air: {reason}; trying again"));
                Outage { since: now, wait: SHORTEST, due: now + SHORTEST }
            }
        });
        Ok(())
    }

    fn welcome(&mut self) -> Result<()> {
        self.has_worked = true;
        if let Some(outage) = self.outage.take() {
            let seconds = outage.since.elapsed().as_secs_f64();
            warn(format_args!("on the air again after {seconds:.1} s"));
        }
        Ok(())
    }

    /// Sends what there is, as long as it may.
    pub fn finish(&mut self, may_wait: impl Fn() -> bool) {
        self.valve.shut();
        if let Some(connection) = self.connection.take() {
            connection.finish(may_wait);
        }
    }
}
