//! OBS Studio on a display of its own, with the stream as its media source.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use gstreamer as gst;

use crate::latency::measure;
use crate::look::{Film, Place, RATE, Watch};
use crate::script::{Running, script, turn, wait_until};
use crate::server::{Server, free_udp_port};

/// Where the middle of OBS's preview is on a screen of this size.
const SCREEN: &str = "1280x720x24";
const PREVIEW: &str = "startx=300 endx=779 starty=80 endy=369";
/// Of OBS 29.0.2, so that it does not tell what is new.
const VERSION: u32 = 29 << 24 | 2;

/// A running OBS that shows one address.
struct Obs {
    display: String,
    _obs: Running,
    _screen: Running,
    _home: tempfile::TempDir,
}

impl Obs {
    fn show(address: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        configure(&home.path().join("obs-studio"), address);
        let mut screen = with_parent("Xvfb");
        screen.args(["-displayfd", "1", "-screen", "0", SCREEN, "-nolisten", "tcp"]);
        let mut screen = Running::start(screen);
        let display = format!(":{}", screen.line_after(""));
        let mut obs = with_parent("obs");
        obs.args(["--multi", "--disable-missing-files-check", "--collection", "blockcascade"]);
        obs.args(["--profile", "blockcascade"]).env("DISPLAY", &display);
        for name in ["HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"] {
            obs.env(name, home.path());
        }
        obs.env("LIBGL_ALWAYS_SOFTWARE", "1").env_remove("WAYLAND_DISPLAY");
        Self { display, _obs: Running::start(obs), _screen: screen, _home: home }
    }

    /// The middle of its preview, as a source of frames.
    fn preview(&self) -> String {
        format!(
            "ximagesrc display-name={} use-damage=false show-pointer=false {PREVIEW} !
             video/x-raw,framerate={RATE}/1 ! videoconvert ! videoscale",
            self.display
        )
    }

    /// The whole screen, for whoever wants to see it.
    fn save(&self, file: &Path) {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let mut command = Command::new("gst-launch-1.0");
        let source = format!("display-name={} use-damage=false num-buffers=1", self.display);
        command.args(["-q", "ximagesrc"]).args(source.split(' ')).args(["!", "videoconvert", "!"]);
        command.args(["pngenc", "!", "filesink"]).arg(format!("location={}", file.display()));
        assert!(command.status().unwrap().success());
    }
}

fn with_parent(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// A profile of nothing special, and one scene, filled by the media source.
fn configure(folder: &Path, address: &str) {
    let (profile, scenes) =
        (folder.join("basic/profiles/blockcascade"), folder.join("basic/scenes"));
    [&profile, &scenes].into_iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
    let global = format!(
        "[General]\nFirstRun=true\nLastVersion={VERSION}\nEnableAutoUpdates=false\n
         [Basic]\nProfile=blockcascade\nProfileDir=blockcascade\n
         SceneCollection=blockcascade\nSceneCollectionFile=blockcascade\n
         [OBSWebSocket]\nFirstLoad=false\nServerEnabled=false\n"
    );
    std::fs::write(folder.join("global.ini"), global.replace("  ", "")).unwrap();
    let video = "[General]\nName=blockcascade\n[Video]\nBaseCX=1280\nBaseCY=720\n\
                 OutputCX=1280\nOutputCY=720\nFPSCommon=30\n";
    std::fs::write(profile.join("basic.ini"), video).unwrap();
    let scene = serde_json::json!({
        "name": "blockcascade", "current_scene": "Scene", "current_program_scene": "Scene",
        "scene_order": [{ "name": "Scene" }],
        "sources": [
            { "id": "ffmpeg_source", "name": "blockcascade", "settings": {
                "is_local_file": false, "input": address, "reconnect_delay_sec": 1,
                "hw_decode": false, "restart_on_activate": false, "clear_on_media_end": false } },
            { "id": "scene", "name": "Scene", "settings": { "id_counter": 1, "items": [
                { "id": 1, "name": "blockcascade", "visible": true, "align": 5,
                  "bounds_type": 2, "bounds": { "x": 1280.0, "y": 720.0 } } ] } },
        ],
    });
    std::fs::write(scenes.join("blockcascade.json"), scene.to_string()).unwrap();
}

fn screenshot(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("screenshots").join(name)
}

/// What OBS shows is the stream, and a prompt changes it.
fn check(way: &str, obs: &Obs, stream: &mut Running) {
    measure(&format!("OBS by {way}"), stream, &Watch::start(&obs.preview()));
    Film::of_stream(&obs.preview(), 2 * RATE).check(Place::Snow);
    obs.save(&screenshot(&format!("obs-{}-snow.png", way.to_lowercase())));
    stream.write_line(Place::Desert.prompt());
    Watch::start(&obs.preview()).wait_for(Place::Desert);
    Film::of_stream(&obs.preview(), 2 * RATE).check(Place::Desert);
    obs.save(&screenshot(&format!("obs-{}-desert.png", way.to_lowercase())));
}

/// The text for obs-gstreamer as it is documented, between what that plugin puts around it: its names,
/// and the formats that it takes.
#[test]
fn the_text_for_obs_gstreamer_plays_and_takes_prompts() {
    let _turn = turn();
    gst::init().unwrap();
    gstblockcascade::register_static().unwrap();
    let port = free_udp_port();
    let documented = include_str!("../../pipelines/OBS.md");
    let text = documented.lines().find(|line| line.starts_with("blockcascadesrc")).unwrap();
    assert!(text.contains("port=5005"), "{text}");
    let text = text.replace("port=5005", &format!("port={port}"));
    let watch = Watch::start(&format!(
        "{text} videoconvert name=video ! \
         video/x-raw,format={{I420,NV12,BGRA,BGRx,RGBx,RGBA,YUY2,YVYU,UYVY}} ! identity"
    ));
    watch.wait_for(Place::Snow);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.send_to(Place::Desert.prompt().as_bytes(), (Ipv4Addr::LOCALHOST, port)).unwrap();
    watch.wait_for(Place::Desert);
}

#[test]
#[ignore = "needs OBS: ci/obs.sh"]
fn obs_shows_what_srt_sends() {
    let _turn = turn();
    let port = free_udp_port();
    let uri = format!("srt://:{port}");
    let mut srt = Running::start(script("srt.sh", &[&uri, Place::Snow.prompt()]));
    srt.line_after("gst-launch-1.0 -e ");
    check("SRT", &Obs::show(&format!("srt://127.0.0.1:{port}")), &mut srt);
}

#[test]
#[ignore = "needs OBS: ci/obs.sh"]
fn obs_shows_what_rtmp_relays() {
    let _turn = turn();
    let server = Server::start();
    let mut rtmp = Running::start(script("rtmp.sh", &[&server.stream(), Place::Snow.prompt()]));
    wait_until("a recording", || server.recordings().pop());
    check("RTMP", &Obs::show(&server.stream()), &mut rtmp);
}
