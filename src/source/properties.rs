//! The element's properties: one row each.

use glib::prelude::*;
use glib::{ParamSpec, Value};
use gstreamer as gst;
use gstreamer::prelude::*;
use once_cell::sync::Lazy;

use super::prompts::MAX_TRANSITION;
use super::settings::{Settings, steps_to_array};

/// A property that is kept in [`Settings`].
pub struct Property {
    spec: ParamSpec,
    get: fn(&Settings) -> Value,
    set: fn(&mut Settings, &Value),
}

impl Property {
    /// The property of a name, if it is one of these.
    pub fn named(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|property| property.spec.name() == name)
    }

    pub fn get(&self, settings: &Settings) -> Value {
        (self.get)(settings)
    }

    pub fn set(&self, settings: &mut Settings, value: &Value) {
        (self.set)(settings, value);
    }
}

/// Every property that the element adds to its base classes'.
pub fn specs() -> Vec<ParamSpec> {
    let settings = SETTINGS.iter().map(|property| property.spec.clone());
    settings.chain(read_only()).collect()
}

fn read_only() -> [ParamSpec; 2] {
    let current = glib::ParamSpecString::builder("current-prompt")
        .nick("Current prompt")
        .blurb("The prompt that the frame pushed last was made under")
        .read_only();
    let stats = glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
        .nick("Statistics")
        .blurb("Counters and times of the stream, and the seed in use")
        .read_only();
    [current.build(), stats.build()]
}

/// A row; the value's type was checked by GObject before it comes here.
macro_rules! row {
    ($spec:expr, $field:ident) => {
        Property {
            spec: $spec.build(),
            get: |settings| settings.$field.clone().to_value(),
            set: |settings, value| settings.$field = value.get().expect("GObject checks types"),
        }
    };
    (text $spec:expr, $field:ident) => {
        Property {
            spec: $spec.build(),
            get: |settings| settings.$field.to_value(),
            set: |settings, value| {
                let text: Option<String> = value.get().expect("GObject checks types");
                settings.$field = text.unwrap_or_default();
            },
        }
    };
}

static SETTINGS: Lazy<Vec<Property>> = Lazy::new(|| {
    let groups = [
        stream_rows,
        network_rows,
        cascade_rows,
        history_rows,
        live_rows,
        loading_rows,
        prompt_rows,
    ];
    groups.into_iter().flat_map(|rows| rows()).collect()
});

fn stream_rows() -> Vec<Property> {
    let defaults = Settings::default();
    vec![
        row!(text glib::ParamSpecString::builder("model")
            .nick("Model")
            .blurb("A model's name, a manifest file (.toml) or a folder with a known model's transformer")
            .default_value(Some(defaults.model.as_str()))
            .mutable_ready(), model),
        row!(text glib::ParamSpecString::builder("prompt")
            .nick("Prompt")
            .blurb("What to show; at most 16 KiB of text")
            .mutable_playing(), prompt),
        row!(
            glib::ParamSpecEnum::builder_with_default("prompt-policy", defaults.prompt_policy)
                .nick("Prompt policy")
                .blurb("Which blocks a prompt change touches")
                .mutable_playing(),
            prompt_policy
        ),
        row!(
            glib::ParamSpecInt64::builder("seed")
                .nick("Seed")
                .blurb("Same seed, same frames; -1 is another one each time, told in stats")
                .minimum(-1)
                .default_value(defaults.seed)
                .mutable_ready(),
            seed
        ),
    ]
}

fn network_rows() -> Vec<Property> {
    let defaults = Settings::default();
    vec![
        row!(text glib::ParamSpecString::builder("devices")
            .nick("Devices")
            .blurb("What to run on: auto, cpu or cuda:N, or a list with a worker for each, at most cascade-width")
            .default_value(Some(defaults.devices.as_str()))
            .mutable_ready(), devices),
        row!(text glib::ParamSpecString::builder("decoder-device")
            .nick("Decoder device")
            .blurb("What to decode on; empty is the first of the devices")
            .default_value(Some(defaults.decoder_device.as_str()))
            .mutable_ready(), decoder_device),
        row!(
            glib::ParamSpecEnum::builder_with_default("decoder", defaults.decoder)
                .nick("Decoder")
                .blurb("Which network turns latents into frames; not every model has all")
                .mutable_ready(),
            decoder
        ),
        row!(
            glib::ParamSpecEnum::builder_with_default("dtype", defaults.dtype)
                .nick("Number format")
                .blurb("Number format of the transformer and, on a GPU, of the decoder (tiny ones: f16 for bf16)")
                .mutable_ready(),
            dtype
        ),
    ]
}

fn cascade_rows() -> Vec<Property> {
    let defaults = Settings::default();
    vec![
        row!(
            glib::ParamSpecUInt::builder("cascade-width")
                .nick("Cascade width")
                .blurb("Blocks in flight at most, up to the passes of each (steps and cache pass); 1 is sequential generation")
                .minimum(1)
                .maximum(MAX_COUNT as u32)
                .default_value(defaults.cascade_width)
                .mutable_ready(),
            cascade_width
        ),
        row!(
            glib::ParamSpecEnum::builder_with_default("attention", defaults.attention)
                .nick("Attention")
                .blurb("What blocks in flight see of each other")
                .mutable_ready(),
            attention
        ),
        row!(
            glib::ParamSpecEnum::builder_with_default("history-policy", defaults.history_policy)
                .nick("History policy")
                .blurb("What a block reads of older ones")
                .mutable_ready(),
            history_policy
        ),
        row!(
            glib::ParamSpecEnum::builder_with_default("history-budget", defaults.history_budget)
                .nick("History budget")
                .blurb("Whether blocks in flight count against the window")
                .mutable_ready(),
            history_budget
        ),
    ]
}

fn denoising_steps() -> Property {
    Property {
        spec: gst::ParamSpecArray::builder("denoising-steps")
            .nick("Denoising steps")
            .blurb("Falling timesteps of 0 to 1000; empty is the model's own")
            .element_spec(&glib::ParamSpecInt::builder("step").minimum(0).maximum(1000).build())
            .mutable_ready()
            .build(),
        get: |settings| steps_to_array(&settings.denoising_steps).to_value(),
        set: |settings, value| {
            let steps: gst::Array = value.get().expect("GObject checks types");
            let step = |value: &glib::SendValue| value.get::<i32>().ok()?.try_into().ok();
            settings.denoising_steps = steps.iter().filter_map(step).collect();
        },
    }
}

fn history_rows() -> Vec<Property> {
    let defaults = Settings::default();
    vec![
        denoising_steps(),
        row!(
            glib::ParamSpecInt::builder("window")
                .nick("Window")
                .blurb("Most recent clean blocks that a block sees; -1 is the model's own")
                .minimum(-1)
                .maximum(MAX_COUNT)
                .default_value(defaults.window)
                .mutable_ready(),
            window
        ),
        row!(
            glib::ParamSpecInt::builder("sink")
                .nick("Sink")
                .blurb("First blocks of the stream that are never forgotten; -1 is the model's own")
                .minimum(-1)
                .maximum(MAX_COUNT)
                .default_value(defaults.sink)
                .mutable_ready(),
            sink
        ),
    ]
}

fn live_rows() -> Vec<Property> {
    let defaults = Settings::default();
    vec![
        row!(
            glib::ParamSpecBoolean::builder("is-live")
                .nick("Is live")
                .blurb("Whether each frame leaves when the clock says that it is due")
                .default_value(defaults.is_live)
                .mutable_ready(),
            is_live
        ),
        row!(
            glib::ParamSpecEnum::builder_with_default("underrun-policy", defaults.underrun_policy)
                .nick("Underrun policy")
                .blurb("What a live source does when the generator is late")
                .mutable_playing(),
            underrun_policy
        ),
        row!(
            glib::ParamSpecUInt::builder("queue-blocks")
                .nick("Queue")
                .blurb("Blocks that may wait decoded: more for smoothness, fewer for quick changes")
                .minimum(1)
                .maximum(64)
                .default_value(defaults.queue_blocks)
                .mutable_ready(),
            queue_blocks
        ),
    ]
}

fn loading_rows() -> Vec<Property> {
    let defaults = Settings::default();
    vec![
        row!(
            glib::ParamSpecEnum::builder_with_default("startup-policy", defaults.startup_policy)
                .nick("Startup policy")
                .blurb("What a live source shows until the first frame is there")
                .mutable_ready(),
            startup_policy
        ),
        row!(
            glib::ParamSpecBoolean::builder("preload")
                .nick("Preload")
                .blurb("Loads the model from READY on, not only from PAUSED")
                .default_value(defaults.preload)
                .mutable_ready(),
            preload
        ),
        row!(
            glib::ParamSpecUInt::builder("keep-loaded")
                .nick("Keep loaded")
                .blurb("Milliseconds for which the model stays loaded after NULL, for the next user of it")
                .default_value(defaults.keep_loaded)
                .mutable_ready(),
            keep_loaded
        ),
    ]
}

fn prompt_rows() -> Vec<Property> {
    let defaults = Settings::default();
    vec![
        row!(
            glib::ParamSpecUInt::builder("transition-blocks")
                .nick("Transition")
                .blurb("Blocks that a new prompt takes to arrive; 0 and 1 are at once")
                .maximum(MAX_TRANSITION)
                .default_value(defaults.transition_blocks)
                .mutable_playing(),
            transition_blocks
        ),
        row!(
            glib::ParamSpecEnum::builder_with_default(
                "transition-method",
                defaults.transition_method
            )
            .nick("Transition method")
            .blurb("The way from one prompt to the next")
            .mutable_playing(),
            transition_method
        ),
        row!(
            glib::ParamSpecBoolean::builder("wait-prompt")
                .nick("Wait for prompts")
                .blurb("Unless live, makes nothing before the text pad has told what to show then")
                .default_value(defaults.wait_prompt)
                .mutable_ready(),
            wait_prompt
        ),
        row!(
            glib::ParamSpecBoolean::builder("force-key-unit-on-prompt")
                .nick("Force key unit on prompt")
                .blurb("Asks encoders for a key frame where a new prompt starts")
                .default_value(defaults.force_key_unit)
                .mutable_playing(),
            force_key_unit
        ),
    ]
}

/// Most blocks of any kind: far beyond what fits anywhere.
const MAX_COUNT: i32 = 1024;
