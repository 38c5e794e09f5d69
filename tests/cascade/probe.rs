//! A model whose every exchange can be watched and made to fail.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Result, Tensor};
use gstblockcascade::model::{
    DenoiseInput, Kv, KvExchange, TextContext, TextEmbedding, VideoModel, VideoSpec, Visible,
};

use super::case::Subject;

/// Shortly before or after an exchange.
pub struct Moment<'a> {
    /// Exchanges begun before this one, in all forwards.
    pub exchange: usize,
    /// Where the blocks of this forward begin.
    pub first_frames: &'a [usize],
    /// What they see, after the exchange.
    pub seen: Option<&'a Visible>,
}

type Hook = dyn Fn(Moment<'_>) -> Result<()> + Send + Sync;

pub struct Probed {
    model: Arc<dyn VideoModel>,
    hook: Box<Hook>,
    exchanges: AtomicUsize,
}

impl Probed {
    /// `subject` with `hook` called before and after each exchange.
    pub fn subject(
        subject: Subject,
        hook: impl Fn(Moment<'_>) -> Result<()> + Send + Sync + 'static,
    ) -> Subject {
        let (hook, exchanges) = (Box::new(hook), AtomicUsize::new(0));
        let model = Arc::new(Self { model: subject.model, hook, exchanges });
        Subject { model, ..subject }
    }
}

impl fmt::Debug for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.model.fmt(f)
    }
}

impl VideoModel for Probed {
    fn spec(&self) -> &VideoSpec {
        self.model.spec()
    }

    fn device(&self) -> &Device {
        self.model.device()
    }

    fn text_context(&self, text: &TextEmbedding) -> Result<TextContext> {
        self.model.text_context(text)
    }

    fn predict_flow(
        &self,
        blocks: &[DenoiseInput<'_>],
        kv: &mut dyn KvExchange,
    ) -> Result<Vec<Tensor>> {
        let first_frames = blocks.iter().map(|block| block.first_frame).collect();
        let mut watched = Watched { probed: self, first_frames, kv, exchange: 0, offered: None };
        self.model.predict_flow(blocks, &mut watched)
    }
}

struct Watched<'a> {
    probed: &'a Probed,
    first_frames: Vec<usize>,
    kv: &'a mut dyn KvExchange,
    /// Of the exchange that has begun.
    exchange: usize,
    offered: Option<Visible<Option<Kv>>>,
}

impl KvExchange for Watched<'_> {
    fn offer(&mut self, layer: usize, own: Vec<Kv>) -> Result<Visible<Option<Kv>>> {
        self.exchange = self.probed.exchanges.fetch_add(1, Ordering::SeqCst);
        self.tell(None)?;
        let offered = self.kv.offer(layer, own)?;
        if offered.is_complete() {
            let seen = offered.clone().filled(|| unreachable!("nothing is missing"))?;
            self.tell(Some(&seen))?;
        }
        self.offered = Some(offered.clone());
        Ok(offered)
    }

    fn receive(&mut self, layer: usize) -> Result<Visible> {
        let received = self.kv.receive(layer)?;
        let offered = self.offered.take().expect("it was offered before");
        let seen = offered.filled(|| Ok(received.clone()))?;
        self.tell(Some(&seen))?;
        Ok(received)
    }
}

impl Watched<'_> {
    fn tell(&self, seen: Option<&Visible>) -> Result<()> {
        let (exchange, first_frames) = (self.exchange, &self.first_frames[..]);
        (self.probed.hook)(Moment { exchange, first_frames, seen })
    }
}
