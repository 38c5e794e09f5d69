//! A page's own pipeline: frames of the one encoder, by WebRTC.

use std::net::IpAddr;

use anyhow::Context;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_sdp as gst_sdp;
use gstreamer_utils::ConsumptionLink;
use gstreamer_webrtc as gst_webrtc;
use tokio::sync::mpsc;

use crate::air::Air;
use crate::message::Reply;

/// Ticks a second of video's timestamps in RTP.
const RTP_RATE: u64 = 90_000;
const PIPELINE: &str = "appsrc name=frames ! rtpvp8pay name=pay picture-id-mode=15-bit ! \
     application/x-rtp,media=video,encoding-name=VP8,payload=96,clock-rate=90000 ! \
     webrtcbin name=peer bundle-policy=max-bundle";

/// What a viewer's pipeline has for its page, or why it cannot go on.
pub type Said = Result<Reply, String>;

/// From when a page opens to when it goes.
#[derive(Debug)]
pub struct Viewer {
    pipeline: gst::Pipeline,
    peer: gst::Element,
    /// Timestamp of a frame at running time 0.
    offset: u32,
    _link: ConsumptionLink,
}

impl Viewer {
    /// Starts to negotiate: what it says goes to the page. On this machine alone, nothing listens to others.
    pub fn new(air: &Air, address: IpAddr, said: mpsc::Sender<Said>) -> anyhow::Result<Self> {
        let pipeline = gst::parse::launch(PIPELINE)?;
        let pipeline = pipeline.downcast::<gst::Pipeline>().ok().context("no pipeline")?;
        let peer = pipeline.by_name("peer").context("no webrtcbin")?;
        let frames = pipeline.by_name("frames").and_downcast::<gst_app::AppSrc>();
        let link = air.producer().add_consumer(&frames.context("no appsrc")?)?;
        let offset = glib::random_int();
        pipeline.by_name("pay").context("no payloader")?.set_property("timestamp-offset", offset);
        air.share_time(&pipeline);
        listen_at(&peer, address);
        send_only(&peer);
        connect(&peer, &said);
        report_errors(&pipeline, said)?;
        let viewer = Self { pipeline, peer, offset, _link: link };
        viewer.pipeline.set_state(gst::State::Playing)?;
        Ok(viewer)
    }

    /// What the page's browser answers to the offer.
    pub fn answer(&self, sdp: &str) -> Result<(), String> {
        let malformed = |_| "got an answer that is no SDP".to_owned();
        let sdp = gst_sdp::SDPMessage::parse_buffer(sdp.as_bytes()).map_err(malformed)?;
        if sdp.medias_len() != 1 {
            return Err(format!("got an answer with {} media, expected 1", sdp.medias_len()));
        }
        let kind = gst_webrtc::WebRTCSDPType::Answer;
        let answer = gst_webrtc::WebRTCSessionDescription::new(kind, sdp);
        let none = None::<gst::Promise>;
        self.peer.emit_by_name::<()>("set-remote-description", &[&answer, &none]);
        Ok(())
    }

    /// Where the page's browser may be reached.
    pub fn candidate(&self, candidate: &str) {
        self.peer.emit_by_name::<()>("add-ice-candidate", &[&0u32, &candidate]);
    }

    /// The timestamp in RTP of a frame shown at that running time.
    pub fn rtp_time(&self, time: gst::ClockTime) -> u32 {
        rtp_time(self.offset, time)
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        // On a thread of GStreamer's: it waits for the pipeline's own.
        self.pipeline.call_async(|pipeline| {
            let _ = pipeline.set_state(gst::State::Null); // there is nothing left to do about it
        });
    }
}

fn rtp_time(offset: u32, time: gst::ClockTime) -> u32 {
    let second = gst::ClockTime::SECOND.nseconds();
    let ticks = time.nseconds().mul_div_floor(RTP_RATE, second).unwrap_or_default();
    offset.wrapping_add(ticks as u32) // timestamps go round
}

/// The media's sockets are where the page is, and no router is asked to open a port; by itself, they
/// are at every address, and it is.
fn listen_at(peer: &gst::Element, address: IpAddr) {
    let agent = peer.property::<glib::Object>("ice-agent");
    if agent.has_property("agent") {
        agent.property::<glib::Object>("agent").set_property("upnp", false);
    }
    if !address.is_unspecified() {
        agent.emit_by_name::<bool>("add-local-ip-address", &[&address.to_string()]);
    }
}

/// Nothing comes back but reports, and lost packets are sent again.
fn send_only(peer: &gst::Element) {
    let transceiver =
        peer.emit_by_name::<Option<gst_webrtc::WebRTCRTPTransceiver>>("get-transceiver", &[&0i32]);
    if let Some(transceiver) = transceiver {
        transceiver.set_direction(gst_webrtc::WebRTCRTPTransceiverDirection::Sendonly);
        transceiver.set_property("do-nack", true);
    }
}

fn connect(peer: &gst::Element, said: &mpsc::Sender<Said>) {
    let offers = said.clone();
    peer.connect("on-negotiation-needed", false, move |values| {
        let peer = values.first()?.get::<gst::Element>().ok()?;
        offer(&peer, offers.clone());
        None
    });
    let candidates = said.clone();
    peer.connect("on-ice-candidate", false, move |values| {
        let [_, line, candidate] = values else { return None };
        let (line, candidate) = (line.get().ok()?, candidate.get().ok()?);
        let _ = candidates.try_send(Ok(Reply::Candidate { candidate, line })); // or the page is gone
        None
    });
}

fn offer(peer: &gst::Element, said: mpsc::Sender<Said>) {
    let weak = peer.downgrade();
    let promise = gst::Promise::with_change_func(move |reply| {
        let fields = reply.ok().flatten();
        let offer = fields.and_then(|fields| fields.get("offer").ok());
        let offer: Option<gst_webrtc::WebRTCSessionDescription> = offer;
        let (Some(peer), Some(offer)) = (weak.upgrade(), offer) else { return };
        let none = None::<gst::Promise>;
        peer.emit_by_name::<()>("set-local-description", &[&offer, &none]);
        if let Ok(sdp) = offer.sdp().as_text() {
            let _ = said.try_send(Ok(Reply::Offer { sdp })); // or the page is gone
        }
    });
    peer.emit_by_name::<()>("create-offer", &[&None::<gst::Structure>, &promise]);
}

/// An error here is this viewer's end and nobody else's.
fn report_errors(pipeline: &gst::Pipeline, said: mpsc::Sender<Said>) -> anyhow::Result<()> {
    let bus = pipeline.bus().context("a pipeline without a bus")?;
    bus.set_sync_handler(move |_, message| {
        if let gst::MessageView::Error(error) = message.view() {
            let _ = said.try_send(Err(error.error().to_string())); // or the page is gone
        }
        gst::BusSyncReply::Drop
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_count_from_their_offset_and_go_round() {
        assert_eq!(rtp_time(7, gst::ClockTime::ZERO), 7);
        assert_eq!(rtp_time(7, gst::ClockTime::from_seconds(2)), 180_007);
        assert_eq!(rtp_time(u32::MAX, gst::ClockTime::from_mseconds(1)), 89);
        let day = gst::ClockTime::from_seconds(86_400);
        assert_eq!(u64::from(rtp_time(0, day)), 86_400 * RTP_RATE % (1 << 32));
    }
}
