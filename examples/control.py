#!/usr/bin/python3
"""Prompts from a program, by each of the ways in, and the answers.

Needs python3-gst-1.0, and the plugin where GST_PLUGIN_PATH says:
cargo build --release --lib && GST_PLUGIN_PATH=target/release examples/control.py
"""

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402 (a version is required before)

# Text that an application pushes goes by an appsrc, as it would by `fdsrc` or `subparse`.
LINE = """blockcascadesrc name=src wait-prompt=false prompt="a sea" ! fakesink sync=true
          appsrc name=text format=time caps=text/x-raw,format=utf8 ! src.prompt"""


def answered(pipeline, way):
    """Waits for the message about the first frame of a prompt."""
    kinds = Gst.MessageType.ERROR | Gst.MessageType.ELEMENT
    while message := pipeline.get_bus().timed_pop_filtered(60 * Gst.SECOND, kinds):
        if message.type == Gst.MessageType.ERROR:
            raise SystemExit(message.parse_error().gerror.message)
        answer = message.get_structure()
        if answer.get_name() == "blockcascade/prompt-applied":
            fields = {name: answer.get_value(name) for name in ("text", "frame", "block", "pts", "id")}
            print(f"{way}: {fields}", flush=True)
            return
    raise SystemExit(f"no answer to {way}")


def main():
    Gst.init(None)
    pipeline = Gst.parse_launch(LINE)
    source, text = pipeline.get_by_name("src"), pipeline.get_by_name("text")
    pipeline.set_state(Gst.State.PLAYING)
    pipeline.get_state(60 * Gst.SECOND)  # the first frame is there

    # The property: what is shown from now on.
    source.set_property("prompt", "a desert")
    answered(pipeline, "property")

    # The signal: says whether the prompt was taken, and has options. An `id` comes back.
    options = Gst.Structure.new_from_string("options, id=(string)42, prompt-policy=cut")
    assert source.emit("set-prompt", "snow", options)
    answered(pipeline, "signal")

    # The event: it travels upstream, so that nobody needs to know where the source is.
    prompt = Gst.Structure.new_empty("blockcascade/prompt")
    prompt.set_value("text", "a forest")
    assert pipeline.send_event(Gst.Event.new_custom(Gst.EventType.CUSTOM_UPSTREAM, prompt))
    answered(pipeline, "event")

    # The text pad: a buffer is a prompt, and its time, if it has one, says when.
    text.emit("push-buffer", Gst.Buffer.new_wrapped(b"a city at night"))
    answered(pipeline, "text pad")

    pipeline.set_state(Gst.State.NULL)


main()
