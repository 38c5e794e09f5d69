//! What blocks are conditioned on: the prompt of now, or a place on the way to it.

use std::sync::Arc;

use candle_core::Result;

use super::prompt::{AppliedPrompt, Due};
use super::transition::{PromptChange, between};
use crate::cascade::{PromptPolicy, TextContexts};
use crate::model::{TextEmbedding, VideoModel};

/// The prompt of now, and which prompts blocks in flight were told of.
#[derive(Debug)]
pub(super) struct Conditioning {
    /// Those of the workers.
    models: Vec<Arc<dyn VideoModel>>,
    /// How prompts change that do not say it themselves.
    change: PromptChange,
    /// What the newest block hears; nothing before the first.
    embedding: Option<TextEmbedding>,
    way: Option<Way>,
    heard: Vec<(Arc<TextContexts>, Arc<AppliedPrompt>)>,
}

/// A prompt that is on its way.
#[derive(Debug)]
struct Way {
    from: TextEmbedding,
    to: TextEmbedding,
    prompt: Arc<AppliedPrompt>,
    change: PromptChange,
    /// Blocks that were told of it, of `change.blocks`.
    told: u32,
}

impl Conditioning {
    pub(super) fn new(models: Vec<Arc<dyn VideoModel>>, change: PromptChange) -> Self {
        Self { models, change, embedding: None, way: None, heard: Vec::new() }
    }

    /// Sets out for a prompt.
    pub(super) fn turn(&mut self, due: Due) -> Result<()> {
        let to = due.text?;
        let mut change = due.change.unwrap_or(self.change);
        if due.scheduled {
            change.policy = PromptPolicy::NextBlock;
        }
        let from = self.embedding.clone().unwrap_or_else(|| to.clone());
        if self.embedding.is_none() {
            change.blocks = 0;
        }
        self.way = Some(Way { from, to, prompt: Arc::new(due.prompt), change, told: 0 });
        Ok(())
    }

    /// What blocks hear from the coming tick on, if it is something else than before: it goes on with
    /// each block that starts, and begins at once if the blocks in flight are to hear it.
    pub(super) fn advance(
        &mut self,
        starts_block: bool,
    ) -> Result<Option<(Arc<TextContexts>, PromptPolicy)>> {
        let Some(mut way) = self.way.take() else { return Ok(None) };
        // A way of several blocks starts with a cut, at most.
        let policy = match way.change.policy {
            PromptPolicy::Cut if way.told > 0 => PromptPolicy::NextBlock,
            policy => policy,
        };
        let is_due = starts_block || (way.told == 0 && policy != PromptPolicy::NextBlock);
        if !is_due {
            self.way = Some(way);
            return Ok(None);
        }
        way.told += 1;
        let embedding = if way.told >= way.change.blocks {
            way.to.clone()
        } else {
            let share = f64::from(way.told) / f64::from(way.change.blocks);
            between(&way.from, &way.to, share, way.change.method)?
        };
        let text = self.text(embedding, way.prompt.clone())?;
        if way.told < way.change.blocks {
            self.way = Some(way);
        }
        Ok(Some((text, policy)))
    }

    fn text(
        &mut self,
        embedding: TextEmbedding,
        prompt: Arc<AppliedPrompt>,
    ) -> Result<Arc<TextContexts>> {
        let context = Arc::new(TextContexts::new(&self.models, &embedding)?);
        self.embedding = Some(embedding);
        // What nobody else holds any more was heard by the last block that could.
        self.heard.retain(|(context, _)| Arc::strong_count(context) > 1);
        self.heard.push((context.clone(), prompt));
        Ok(context)
    }

    /// The prompt that a block was told of.
    pub(super) fn prompt(&self, text: &Arc<TextContexts>) -> Arc<AppliedPrompt> {
        let heard = self.heard.iter().find(|(context, _)| Arc::ptr_eq(context, text));
        heard.map(|(_, prompt)| prompt.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::generator::PromptId;

    #[test]
    fn prompts_that_no_block_in_flight_hears_are_forgotten() {
        let mut conditioning = Conditioning::new(Vec::new(), PromptChange::default());
        let mut in_flight = VecDeque::new();
        for id in 1..100 {
            let text = Tensor::zeros((1, 1), DType::F32, &Device::Cpu).map(TextEmbedding);
            let prompt = AppliedPrompt { id: PromptId(id), ..AppliedPrompt::default() };
            conditioning.turn(Due { text, prompt, change: None, scheduled: true }).unwrap();
            let (context, _) = conditioning.advance(true).unwrap().unwrap();
            in_flight.push_back(context);
            if in_flight.len() > 3 {
                in_flight.pop_front();
            }
            assert!(conditioning.heard.len() <= 4, "{} contexts", conditioning.heard.len());
        }
        let heard = in_flight.iter().map(|context| conditioning.prompt(context).id.0);
        assert_eq!(heard.collect::<Vec<_>>(), [97, 98, 99]);
    }
}
