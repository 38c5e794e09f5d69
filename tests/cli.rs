//! The command-line tool from outside: what it writes, what it says, how it ends.
#![allow(clippy::unwrap_used)] // also in helpers: a test that cannot go on has failed

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Small enough for many runs.
const SIZE: [&str; 2] = ["--size", "64x48"];
/// No test may hang: what waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an interrupted program may take to end on a busy machine.
const TO_END: Duration = Duration::from_secs(10);

/// A folder to work in, and runs of the tool inside it.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The tool, without the user's cache of models.
    fn tool(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockcascade"));
        command.args(args).current_dir(self.0.path()).env("HF_HOME", self.path("empty"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.tool(args).output().unwrap()
    }

    /// Runs `generate` with a small picture; it must succeed.
    fn generate(&self, output: &str, args: &[&str]) {
        let args = [&["generate", "a red ball", "-o", output], &SIZE[..], args].concat();
        let done = self.run(&args);
        assert!(done.status.success(), "{args:?}: {}", stderr(&done));
    }

    fn json(&self, args: &[&str]) -> Value {
        let done = self.run(args);
        assert!(done.status.success(), "{args:?}: {}", stderr(&done));
        serde_json::from_slice(&done.stdout).unwrap()
    }
}

fn stderr(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// A video read back: header and frames.
#[derive(Debug, PartialEq)]
struct Video {
    size: (usize, usize),
    rate: (usize, usize),
    header: String,
    /// Planes one after the other.
    frames: Vec<Vec<u8>>,
}

impl Video {
    /// Fails on a frame that is cut short.
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let mut decoder = y4m::decode(bytes.as_slice()).unwrap();
        let mut frames = Vec::new();
        loop {
            match decoder.read_frame() {
                Ok(frame) => {
                    let planes = [frame.get_y_plane(), frame.get_u_plane(), frame.get_v_plane()];
                    frames.push(planes.concat());
                }
                Err(y4m::Error::EOF) => break,
                Err(error) => panic!("frame {}: {error}", frames.len()),
            }
        }
        let header = bytes.split(|&byte| byte == b'\n').next().unwrap();
        let rate = decoder.get_framerate();
        // `read_frame` says EOF of a frame cut short, too: the length tells them apart.
        let frame = "FRAME\n".len() + decoder.get_width() * decoder.get_height() * 3 / 2;
        assert_eq!(bytes.len(), header.len() + 1 + frames.len() * frame, "cut short");
        Self {
            size: (decoder.get_width(), decoder.get_height()),
            rate: (rate.num, rate.den),
            header: String::from_utf8_lossy(header).into_owned(),
            frames,
        }
    }
}

/// Width, height and RGB of a picture.
fn read_png(path: &Path) -> (u32, u32, Vec<u8>) {
    let file = std::io::BufReader::new(File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut rgb).unwrap();
    assert_eq!(info.color_type, png::ColorType::Rgb);
    (info.width, info.height, rgb)
}

#[test]
fn a_video_has_the_size_rate_and_length_asked_for() {
    let scratch = Scratch::new();
    scratch.generate("a.y4m", &["--frames", "10"]);
    let video = Video::read(&scratch.path("a.y4m"));
    assert_eq!((video.size, video.rate, video.frames.len()), ((64, 48), (16, 1), 10));
    assert!(video.header.contains("C420jpeg") && video.header.contains("COLORRANGE=LIMITED"));
    for (args, frames) in [(["--blocks", "2"], 21), (["--seconds", "0.5"], 8)] {
        scratch.generate("b.y4m", &[&args[..], &["--force"]].concat());
        assert_eq!(Video::read(&scratch.path("b.y4m")).frames.len(), frames, "{args:?}");
    }
}

#[test]
fn the_seed_decides_the_frames() {
    let scratch = Scratch::new();
    let made = [("a.y4m", "7"), ("b.y4m", "7"), ("c.y4m", "8")].map(|(name, seed)| {
        scratch.generate(name, &["--frames", "3", "--seed", seed]);
        Video::read(&scratch.path(name))
    });
    assert_eq!(made[0], made[1]);
    assert_ne!(made[0].frames, made[2].frames);
}

#[test]
fn another_prompt_changes_the_frames_from_its_block_on() {
    let scratch = Scratch::new();
    scratch.generate("a.y4m", &["--frames", "12"]);
    scratch.generate("b.y4m", &["--frames", "12", "--prompt-at", "1: night falls"]);
    let [a, b] = ["a.y4m", "b.y4m"].map(|name| Video::read(&scratch.path(name)).frames);
    assert_eq!(a[..9], b[..9]);
    assert_ne!(a[9..], b[9..]);
}

#[test]
fn pictures_are_the_video_before_it_loses_colour() {
    let scratch = Scratch::new();
    scratch.generate("pictures", &["--frames", "3"]);
    scratch.generate("again-%02d.png", &["--frames", "3"]);
    scratch.generate("video.y4m", &["--frames", "3"]);
    let video = Video::read(&scratch.path("video.y4m"));
    for (i, planes) in video.frames.iter().enumerate() {
        let (width, height, rgb) = read_png(&scratch.path(&format!("pictures/frame-{i:05}.png")));
        assert_eq!((width, height), (64, 48));
        assert_eq!(rgb, read_png(&scratch.path(&format!("again-{i:02}.png"))).2);
        for (rgb, &y) in rgb.chunks_exact(3).zip(planes) {
            let luma = luma_of(rgb);
            assert!((luma - f64::from(y)).abs() <= 1.0, "{rgb:?} is {luma}, got {y}");
        }
    }
    assert_eq!(fs::read_dir(scratch.path("pictures")).unwrap().count(), 3);
}

/// BT.601, limited range.
fn luma_of(rgb: &[u8]) -> f64 {
    let [r, g, b] = [0, 1, 2].map(|i| f64::from(rgb[i]) / 255.0);
    16.0 + 219.0 * (0.299 * r + 0.587 * g + 0.114 * b)
}

#[test]
fn standard_output_gets_the_same_bytes_as_a_file() {
    let scratch = Scratch::new();
    scratch.generate("a.y4m", &["--frames", "2"]);
    let args = ["generate", "a red ball", "-o", "-", "--frames", "2"];
    let done = scratch.run(&[&args[..], &SIZE].concat());
    assert_eq!(done.stdout, fs::read(scratch.path("a.y4m")).unwrap());
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let scratch = Scratch::new();
    let args = [&["generate", "x", "-o", "-", "--blocks", "500"], &SIZE[..]].concat();
    let mut tool = scratch.tool(&args);
    let mut child = tool.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(wait(&mut child, PATIENCE).success());
}

#[test]
fn what_is_there_is_overwritten_only_by_force() {
    let scratch = Scratch::new();
    fs::write(scratch.path("a.y4m"), "mine").unwrap();
    fs::write(scratch.path("frame-00000.png"), "mine").unwrap();
    for output in ["a.y4m", "."] {
        let done = scratch.run(&["generate", "x", "--frames", "1", "-o", output]);
        assert_eq!(done.status.code(), Some(1));
        assert!(stderr(&done).contains("exists already; --force"), "{}", stderr(&done));
    }
    assert_eq!(fs::read(scratch.path("a.y4m")).unwrap(), b"mine");
    scratch.generate("a.y4m", &["--frames", "1", "--force"]);
    scratch.generate(".", &["--frames", "1", "--force"]);
    assert_eq!(Video::read(&scratch.path("a.y4m")).frames.len(), 1);
    assert_eq!(read_png(&scratch.path("frame-00000.png")).0, 64);
}

/// Loading fails when the output is open already.
#[test]
fn a_video_stays_until_there_is_a_frame_of_another() {
    let scratch = Scratch::new();
    let old = vec![7; 100_000];
    fs::write(scratch.path("old.y4m"), &old).unwrap();
    fs::write(scratch.path("junk.safetensors"), "junk").unwrap();
    for output in ["old.y4m", "new.y4m"] {
        let args = ["generate", "x", "--force", "--weights-dit", "junk.safetensors", "-o", output];
        let done = scratch.run(&args);
        assert_eq!(done.status.code(), Some(1));
        assert!(stderr(&done).contains("junk.safetensors"), "{}", stderr(&done));
    }
    assert_eq!(fs::read(scratch.path("old.y4m")).unwrap(), old);
    assert!(!scratch.path("new.y4m").exists());
    scratch.generate("old.y4m", &["--frames", "1", "--force", "--random-weights"]);
    assert_eq!(Video::read(&scratch.path("old.y4m")).frames.len(), 1);
}

/// A file may have so many blocks of 512 bytes, as if the disk were full then.
#[cfg(unix)]
fn with_room_for(blocks: usize, scratch: &Scratch, output: &str) -> Output {
    let limit = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let args = ["generate", "x", "--random-weights", "--frames", "9", "--force", "-o", output];
    let mut shell = Command::new("sh");
    shell.args(["-c", &limit, env!("CARGO_BIN_EXE_blockcascade")]).args(args).args(SIZE);
    shell.current_dir(scratch.0.path()).output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_whole_frames() {
    let scratch = Scratch::new();
    let done = with_room_for(20, &scratch, "a.y4m");
    assert!(done.status.code() == Some(1) && stderr(&done).contains("too large"), "{done:?}");
    assert_eq!(Video::read(&scratch.path("a.y4m")).frames.len(), 2);
    let done = with_room_for(20, &scratch, "pictures");
    assert!(done.status.success(), "{done:?}");
    let done = with_room_for(1, &scratch, "pictures");
    assert!(done.status.code() == Some(1) && stderr(&done).contains("too large"), "{done:?}");
    assert!(!scratch.path("pictures/frame-00000.png").exists());
    assert_eq!(read_png(&scratch.path("pictures/frame-00001.png")).0, 64);
}

/// What is no file is neither emptied nor cut nor removed.
#[cfg(target_os = "linux")]
#[test]
fn a_device_is_only_written_to() {
    let scratch = Scratch::new();
    for (output, code, expected) in [("full", 1, "No space left"), ("null", 0, "frames: 9")] {
        for name in [format!("{output}.y4m"), format!("{output}-%d.png")] {
            let link = scratch.path(&name.replace("%d", "0"));
            std::os::unix::fs::symlink(format!("/dev/{output}"), &link).unwrap();
            let done = with_room_for(100, &scratch, &name);
            assert_eq!(done.status.code(), Some(code), "{name}: {done:?}");
            assert!(stderr(&done).contains(expected), "{name}: {done:?}");
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink(), "{name}");
        }
    }
}

#[test]
fn random_weights_and_files_exclude_each_other() {
    let files = ["dit", "lora", "text-encoder", "tokenizer", "decoder"];
    let flags = files.map(|file| format!("--weights-{file}"));
    for flag in flags.iter().map(String::as_str).chain(["--folder"]) {
        for command in [&["bench"][..], &["generate", "x", "-o", "a.y4m"]] {
            let done = Scratch::new().run(&[command, &["--random-weights", flag, "a"]].concat());
            assert_eq!(done.status.code(), Some(2), "{flag}: {}", stderr(&done));
            let message = stderr(&done);
            assert!(message.contains(flag) && message.contains("cannot be used"), "{message}");
        }
    }
}

/// Arguments after the prompt, the exit code, and what the message must hold.
const BAD: [(&[&str], i32, &[&str]); 21] = [
    (&["--model", "nope"], 1, &["nope", "pocket", "self-forcing-1.3b"]),
    (&["--model", "nope.toml"], 1, &["nope.toml", "No such file"]),
    (&["--model", "self-forcing-1.3b"], 1, &["self_forcing_dmd.pt", "Wan2.1_VAE.pth", "fetch"]),
    (&["--size", "100x100"], 1, &["size", "100x100", "multiples of 16"]),
    (&["--size", "0x0"], 1, &["size", "0x0", "multiples of 16"]),
    (&["--size", "large"], 2, &["size", "large", "WIDTHxHEIGHT"]),
    (&["--width", "0"], 1, &["width", "got 0", "1 to 5"]),
    (&["--width", "6"], 1, &["width", "got 6", "1 to 5"]),
    (&["--steps", ""], 1, &["steps", "[]", "falling"]),
    (&["--steps", "500,500"], 1, &["steps", "[500, 500]", "falling"]),
    (&["--steps", "1001"], 1, &["steps", "1001", "1000"]),
    (&["--blocks", "0"], 1, &["blocks", "got 0", "at least 1"]),
    (&["--seconds", "nan"], 1, &["seconds", "NaN", "at least one frame"]),
    (&["--decoder", "tiny"], 1, &["decoder", "got tiny", "pocket has files for full;"]),
    (&["--weights-dit", "none.pt"], 1, &["none.pt", "No such file"]),
    (&["--device", "gpu"], 2, &["device", "gpu", "cuda:N"]),
    (&["--devices", "cpu,cpu"], 1, &["devices", "got 2", "at most 1"]),
    (&["--prompt-at", "9:x", "--blocks", "2"], 1, &["prompt-at", "block 9", "0 to 1"]),
    (&["-o", "out.mp4"], 1, &["output", "out.mp4", ".y4m"]),
    (&["-o", "a-%0999999d.png"], 1, &["output", "a-%0999999d.png", "frame-%05d.png"]),
    (&["-o", "nowhere/out.y4m"], 1, &["nowhere/out.y4m", "No such file"]),
];

#[test]
fn bad_input_is_answered_with_the_field_the_value_and_what_is_accepted() {
    for (args, code, expected) in BAD {
        let scratch = Scratch::new();
        let output: &[&str] = if args[0] == "-o" { &[] } else { &["-o", "out.y4m"] };
        let done = scratch.run(&[&["generate", "x"], output, args].concat());
        let message = stderr(&done);
        assert_eq!(done.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.starts_with("error: "), "{args:?}: {message}");
        assert!(code != 1 || message.lines().count() == 1, "{args:?}: {message}");
        for word in expected {
            assert!(message.contains(word), "{args:?}: no {word:?} in {message}");
        }
        assert_eq!(fs::read_dir(scratch.0.path()).unwrap().count(), 0, "{args:?} left a file");
    }
}

#[test]
fn files_that_are_not_there_are_named() {
    let scratch = Scratch::new();
    let files = ["dit", "text-encoder", "tokenizer", "decoder"];
    let flags = files.map(|file| [format!("--weights-{file}"), format!("{file}.bin")]).concat();
    let mut args = vec!["generate", "x", "-o", "a.y4m", "--model", "self-forcing-1.3b"];
    args.extend(flags.iter().map(String::as_str));
    let done = scratch.run(&args);
    assert_eq!(done.status.code(), Some(1));
    assert!(stderr(&done).contains("tokenizer.bin"), "{}", stderr(&done));
    assert!(!scratch.path("a.y4m").exists());
}

#[test]
fn models_are_listed_with_what_is_on_disk() {
    let scratch = Scratch::new();
    fs::write(scratch.path("Wan2.1_VAE.pth"), "cut short").unwrap();
    let args = ["models", "--folder", ".", "--json"];
    let models = scratch.json(&args);
    let named = |name: &str| {
        let models = models.as_array().unwrap();
        models.iter().find(|model| model["name"] == name).unwrap().clone()
    };
    let pocket = named("pocket");
    assert_eq!((&pocket["download"], pocket["files"].as_array().unwrap().len()), (&0.into(), 4));
    for file in pocket["files"].as_array().unwrap() {
        assert_eq!((&file["embedded"], &file["found"]), (&true.into(), &Value::Null), "{file}");
    }
    let longlive = named("longlive-1.3b");
    assert_eq!(longlive["licence"]["spdx"], "CC-BY-NC-SA-4.0");
    // Those of the published files.
    assert_eq!(longlive["memory"]["transformer"]["parameters"], 1_418_996_800u64);
    assert_eq!(longlive["memory"]["text_encoder"]["parameters"], 5_680_910_336u64);
    let files = longlive["files"].as_array().unwrap();
    let vae = files.iter().find(|file| file["role"] == "vae").unwrap();
    assert_eq!((&vae["embedded"], &vae["found"]), (&false.into(), &Value::Null));
    assert_eq!(vae["wrong_size"][0][1], 9);
    let text = scratch.run(&args[..3]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("wrong size, 9 bytes") && text.contains("embedded ("), "{text}");
}

#[test]
fn a_checkpoint_is_inspected() {
    let scratch = Scratch::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let inspect =
        |file: &str| scratch.json(&["inspect", "--json", root.join(file).to_str().unwrap()]);
    for (file, network) in [
        ("dit", "transformer of pocket"),
        ("text_encoder", "text encoder of pocket"),
        ("vae", "auto-encoder of pocket"),
    ] {
        let report = inspect(&format!("models/pocket/{file}.safetensors"));
        assert_eq!(report["fits"]["network"], network);
    }
    let vae = inspect("tests/fixtures/vae/model.safetensors");
    assert_eq!(vae["container"], "safetensors");
    assert_eq!(vae["dtypes"]["F32"]["tensors"], 194);
    assert_eq!(vae["fits"]["closest"], "auto-encoder of pocket");
    let dit = inspect("tests/fixtures/dit_two_step_wide/model.safetensors");
    assert_eq!(dit["fits"]["closest"], "transformer of pocket");
    assert!(dit["fits"]["reason"].as_str().unwrap().contains("blocks.3."));
}

#[test]
fn a_lora_is_recognized() {
    let scratch = Scratch::new();
    let data = [0u8; 4 * 4 * 128];
    let tensor = |shape: [usize; 2]| {
        let shape = shape.to_vec();
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &data).unwrap()
    };
    let layer = "base_model.model.blocks.5.self_attn.q";
    // As many bytes in each shape.
    let cases = [
        ([4, 128], [128, 4], "lora_B.weight", Value::from("transformer of pocket")),
        ([8, 64], [64, 8], "lora_B.weight", Value::Null), // of another width
        ([4, 128], [64, 8], "lora_B.weight", Value::Null), // of two ranks
        ([4, 128], [128, 4], "diff", Value::Null),        // its other half is none
    ];
    for (down, up, end, expected) in cases {
        let pair = [
            (format!("{layer}.lora_A.weight"), tensor(down)),
            (format!("{layer}.{end}"), tensor(up)),
        ];
        safetensors::serialize_to_file(pair, None, &scratch.path("lora.safetensors")).unwrap();
        let report = scratch.json(&["inspect", "--json", "lora.safetensors"]);
        assert_eq!(report["fits"]["lora_for"], expected, "{down:?} {up:?} {end}");
        assert_eq!(report["fits"]["pairs"], 1);
    }
}

#[test]
fn a_lora_with_more_than_pairs_is_not_called_fit() {
    let scratch = Scratch::new();
    let data = [0u8; 4 * 4 * 128];
    let tensor = |shape: &[usize]| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &data)
            .unwrap()
    };
    let layer = "blocks.5.self_attn.q";
    let tensors = [
        (format!("{layer}.lora_A.weight"), tensor(&[4, 128])),
        (format!("{layer}.lora_B.weight"), tensor(&[128, 4])),
        (format!("{layer}.diff_b"), tensor(&[512])),
    ];
    safetensors::serialize_to_file(tensors, None, &scratch.path("lora.safetensors")).unwrap();
    let done = scratch.run(&["inspect", "lora.safetensors"]);
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(text.contains("more than pairs, as blocks.5.self_attn.q.diff_b, layers: 1"), "{text}");
}

/// Files of the cache that Hugging Face tools share have hashes for names.
#[cfg(target_os = "linux")]
#[test]
fn what_a_file_is_does_not_depend_on_its_name() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = Scratch::new();
    let name = std::ffi::OsStr::from_bytes(b"\xff.safetensors");
    fs::copy("tests/fixtures/checkpoint/lora.pt", scratch.0.path().join(name)).unwrap();
    let report = scratch.tool(&["inspect", "--json"]).arg(name).output().unwrap();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["container"], "PyTorch");
}

/// Every way to use five GPUs has a row or a reason, in the table as in JSON.
#[test]
fn ways_to_use_gpus_are_compared() {
    let scratch = Scratch::new();
    let args = ["plan", "--model", "self-forcing-1.3b", "--gpus", "5", "--decoder", "tiny"];
    let done = scratch.run(&args);
    assert!(done.status.success(), "{}", stderr(&done));
    let text = String::from_utf8(done.stdout).unwrap();
    let answer = scratch.json(&[&args[..], &["--json"]].concat());
    let strategies = answer["strategies"].as_array().unwrap();
    let row = |name: &str| strategies.iter().find(|row| row["strategy"] == name).unwrap();
    for name in ["sequential", "cascade 5", "cascade 5, constant", "stage-matched", "ulysses 4"] {
        let [fps, tick] = ["frames_per_second", "tick"].map(|key| row(name)[key].as_f64().unwrap());
        let row = text.lines().find(|line| line.starts_with(&format!("{name}  "))).unwrap();
        assert!(row.contains(&format!("{fps:.1}")), "{fps}: {row}");
        assert!(row.contains(&format!("{:.1}", tick * 1e3)), "{tick}: {row}");
    }
    let reason = row("ulysses 5")["impossible"].as_str().unwrap();
    assert_eq!(reason, "12 heads cannot be shared equally by 5 GPUs");
    let best = ["most frames: cascade", "soonest answer: ulysses", "enough for 16 frames/s: "];
    for line in best.into_iter().chain([reason, "by this program, soonest answer: cascade"]) {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    assert!(!text.contains("by this program, most frames"), "it is said already: {text}");
}

/// Arithmetic asks for no file.
#[test]
fn any_decoder_can_be_planned_with() {
    let scratch = Scratch::new();
    let decoded = ["full", "light", "tiny", "light-tiny"].map(|decoder| {
        let answer = scratch.json(&["plan", "--model", "pocket", "--decoder", decoder, "--json"]);
        answer["strategies"][0]["prompt_seen"].as_f64().unwrap()
    });
    assert!(decoded[0] < decoded[2] && decoded[2] < decoded[1], "{decoded:?}");
    assert_eq!(decoded[2], decoded[3]);
}

/// Ticks and bytes by the timetable: at width 2 blocks start three ticks apart, and in two of three
/// ticks each of two blocks of 3 frames of 4 tokens gives the other its keys and values.
#[test]
fn how_fast_a_model_is_here_is_measured() {
    let scratch = Scratch::new();
    let args = ["bench", "--random-weights", "--size", "32x32", "--blocks", "2"];
    let args = [&args[..], &["--devices", "cpu,cpu", "--widths", "1,2"]].concat();
    let rows = scratch.json(&[&args[..], &["--json"]].concat());
    let numbers = |key: &str| -> Vec<u64> {
        rows.as_array().unwrap().iter().map(|row| row[key].as_u64().unwrap()).collect()
    };
    let (layers, dim, tokens) = (6, 128, 3 * 4);
    let kv = 2 * tokens * dim * size_of::<f32>() as u64;
    assert_eq!(numbers("width"), [1, 2]);
    assert_eq!(numbers("ticks_per_block"), [5, 3]);
    assert_eq!(numbers("exchanged_bytes_per_block"), [0, 2 * 2 * layers * kv]);
    for row in rows.as_array().unwrap() {
        for key in
            ["denoised_frames_per_second", "decoded_frames_per_second", "first_frame_seconds"]
        {
            assert!(row[key].as_f64().unwrap() > 0.0, "{key} in {row}");
        }
        for policy in ["in-flight", "next-block", "recache", "cut"] {
            assert!(row["prompts"][policy]["seconds"].as_f64().unwrap() > 0.0, "{policy} in {row}");
        }
    }
    let text = scratch.run(&args);
    let text = String::from_utf8(text.stdout).unwrap();
    for word in ["denoised/s", "cpu,cpu", "(1.00x)", "recache", "in-flight to cut: milliseconds"] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
}

#[test]
fn what_cannot_be_measured_is_named() {
    for (args, code, expected) in [
        (["--widths", "6"], 1, "1 to 5"),
        (["--widths", "two"], 2, "whole number"),
        (["--blocks", "0"], 2, "1..=10000"),
        (["--devices", "abacus"], 2, "cuda:N"),
        (["--model", "self-forcing-1.3b"], 1, "fetch"),
        (["--widths=5", "--history=stage-matched"], 1, "1 to 4"),
    ] {
        let done = Scratch::new().run(&[&["bench"], &args[..]].concat());
        assert_eq!(done.status.code(), Some(code), "{args:?}: {}", stderr(&done));
        assert!(stderr(&done).contains(expected), "{args:?}: {}", stderr(&done));
    }
}

/// Arguments, the exit code, and what the message must hold.
const BAD_PLANS: [(&[&str], i32, &[&str]); 7] = [
    (&["--gpus", "0"], 1, &["gpus", "got 0", "1 to 64"]),
    (&["--gpu", "abacus"], 2, &["abacus", "h100", "h200"]),
    (&["--model", "nope"], 1, &["nope", "krea-realtime-14b"]),
    (&["--size", "100x100"], 1, &["size", "100x100", "multiples of 16"]),
    (&["--window", "9999"], 1, &["window", "got 9999", "0 to 1024"]),
    (&["--steps", "500,500"], 1, &["steps", "[500, 500]", "falling"]),
    (&["--link", "0"], 1, &["link", "got 0", "above 0"]),
];

#[test]
fn a_bad_plan_is_answered_with_the_value_and_what_is_accepted() {
    let scratch = Scratch::new();
    for (args, code, expected) in BAD_PLANS {
        let done = scratch.run(&[&["plan"], args].concat());
        let message = stderr(&done);
        assert_eq!(done.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.starts_with("error: ") && done.stdout.is_empty(), "{args:?}: {message}");
        assert!(code != 1 || message.lines().count() == 1, "{args:?}: {message}");
        for word in expected {
            assert!(message.contains(word), "{args:?}: no {word:?} in {message}");
        }
    }
}

#[test]
fn nothing_is_fetched_for_a_model_that_is_embedded() {
    for args in [&["fetch", "pocket"][..], &["fetch", "pocket", "--role", "dit"]] {
        let done = Scratch::new().run(args);
        assert!(done.status.success() && done.stdout.is_empty());
        assert!(stderr(&done).contains("nothing to fetch"), "{}", stderr(&done));
    }
    let done = Scratch::new().run(&["fetch", "pocket", "--role", "taehv"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(stderr(&done).contains("got taehv, pocket has dit, vae"), "{}", stderr(&done));
}

#[test]
fn pocket_runs_without_files_and_without_an_environment() {
    let scratch = Scratch::new();
    let args = [&["generate", "a red ball", "-o", "a.y4m", "--frames", "9"], &SIZE[..]].concat();
    let done = scratch.tool(&args).env_clear().output().unwrap();
    assert!(done.status.success() && !stderr(&done).contains("random"), "{}", stderr(&done));
    scratch.generate("random.y4m", &["--frames", "9", "--random-weights"]);
    scratch.generate("tiny.y4m", &["--frames", "9", "--random-weights", "--decoder", "tiny"]);
    let [embedded, random, tiny] =
        ["a.y4m", "random.y4m", "tiny.y4m"].map(|name| Video::read(&scratch.path(name)).frames);
    assert!(embedded.len() == 9 && embedded != random && random != tiny);
}

/// The end of a process, which must come in time.
fn wait(child: &mut Child, patience: Duration) -> std::process::ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > patience {
            child.kill().unwrap();
            panic!("still running after {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_stream_ends_soon_and_is_whole() {
    let scratch = Scratch::new();
    let path = scratch.path("long.y4m");
    let mut tool = scratch.tool(&["generate", "x", "--blocks", "100000", "-o", "long.y4m"]);
    let mut child = tool.stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    // The first frames.
    while fs::metadata(&path).map_or(0, |meta| meta.len()) < 100_000 {
        assert!(start.elapsed() < PATIENCE, "no frame after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(&child, "INT");
    assert_eq!(wait(&mut child, TO_END).code(), Some(130));
    assert!(!Video::read(&path).frames.is_empty());
}

/// As nohup has it ignore the end of a terminal.
#[cfg(target_os = "linux")]
#[test]
fn what_is_to_be_ignored_is() {
    let scratch = Scratch::new();
    let tool = env!("CARGO_BIN_EXE_blockcascade");
    let line = format!("trap '' HUP; exec '{tool}' generate x --blocks 100000 -o long.y4m");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).current_dir(scratch.0.path()).stderr(Stdio::null());
    let mut run = Running(shell.spawn().unwrap());
    let size = || fs::metadata(scratch.path("long.y4m")).map_or(0, |meta| meta.len());
    until(|| size() > 0);
    signal(&run.0, "HUP");
    let before = size();
    until(|| size() > before + 500_000); // two blocks more
    signal(&run.0, "TERM");
    assert_eq!(wait(&mut run.0, TO_END).code(), Some(130));
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let command = format!("kill -{name} {}", child.id());
    assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
}

/// A run of the tool that does not outlive its test.
#[cfg(target_os = "linux")]
struct Running(Child);

#[cfg(target_os = "linux")]
impl Drop for Running {
    fn drop(&mut self) {
        let _over_already = self.0.kill();
    }
}

/// Processor time that a process has taken.
#[cfg(target_os = "linux")]
fn worked(child: &Child) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

/// Waits until `reached`, and fails when it takes too long.
#[cfg(target_os = "linux")]
fn until(mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < PATIENCE, "not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Attention among the tokens of so large a picture takes much more of a processor than a program
/// may take to end.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_does_not_wait_for_a_layer() {
    let scratch = Scratch::new();
    let args = ["generate", "x", "--size", "2048x2048", "--steps", "1000", "-o", "large.y4m"];
    let mut run = Running(scratch.tool(&args).stderr(Stdio::null()).spawn().unwrap());
    until(|| worked(&run.0) > Duration::from_secs(2));
    let before = worked(&run.0);
    signal(&run.0, "TERM");
    until(|| {
        let more = worked(&run.0).saturating_sub(before);
        assert!(more < Duration::from_secs(4), "{more:?} more");
        run.0.try_wait().unwrap().is_some()
    });
    assert_eq!(wait(&mut run.0, TO_END).code(), Some(130));
    assert!(!scratch.path("large.y4m").exists(), "a file without a frame is left");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))] // numbers of system calls
#[test]
fn a_second_interrupt_ends_what_waits_for_its_reader() {
    let scratch = Scratch::new();
    let args = [&["generate", "x", "-o", "-", "--blocks", "500"], &SIZE[..]].concat();
    let mut tool = scratch.tool(&args);
    let mut run = Running(tool.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    // `write` to standard output, which nobody reads.
    let call = format!("/proc/{}/syscall", run.0.id());
    until(|| fs::read_to_string(&call).unwrap().starts_with("1 0x1 "));
    signal(&run.0, "INT");
    signal(&run.0, "TERM"); // two of a kind at once would count as one
    assert_eq!(wait(&mut run.0, TO_END).code(), Some(130));
}
