//! Scripts and servers as processes, none of which outlives its test.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// What waits longer has failed. Scripts find the plugin built and most packages there.
pub const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// Fixed, so that a prompt's frames are the same on every run of a script that is not live.
const SEED: &str = "7";

/// The right to run scripts: one test at a time has the two cores, the clock and the packages.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    static PREPARED: Once = Once::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    PREPARED.call_once(|| {
        shell("build; need avdec_h264 gstreamer1.0-libav");
        shell("command -v gst-discoverer-1.0 || install_packages gstreamer1.0-plugins-base-apps");
    });
    turn
}

/// Runs a line of shell that knows what the scripts share.
pub fn shell(line: &str) -> String {
    let mut shell = Command::new("sh");
    let output = shell.args(["-c", &format!(". \"$0\"; {line}")]).arg(path("plugin.sh")).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The program that starts a pipeline again, by its own arguments.
pub fn relay(line: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(env!("CARGO_BIN_EXE_blockcascade-relay"));
    command.args(line.split_whitespace());
    command
}

/// The same with other files for its standard streams, as a shell takes them.
pub fn redirected(command: &Command, files: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec \"$0\" \"$@\" {files}")]).arg(command.get_program());
    shell.args(command.get_args()).env("SEED", SEED);
    shell
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines").join(name)
}

/// A script with arguments, on a machine without a display.
pub fn script(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    // Whatever ends this test program ends the script.
    command.args(["--pdeathsig", "KILL"]).arg(path(name)).args(arguments).env("SEED", SEED);
    command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY").env_remove("MODEL");
    command.env_remove("BITRATE").env_remove("PRESET");
    command
}

/// A process group, killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    /// Holds what is said on stdout and stderr.
    folder: TempDir,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name| File::create(folder.path().join(name)).unwrap();
        command.stdin(Stdio::piped()).stdout(file("out")).stderr(file("err")).process_group(0);
        Self { child: command.spawn().unwrap(), name: format!("{command:?}"), folder }
    }

    /// What it said on stdout until now.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("out")).unwrap()
    }

    pub fn complained(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("err")).unwrap()
    }

    /// The rest of the first whole line that starts so.
    pub fn line_after(&mut self, start: &str) -> String {
        wait_until(&format!("{start} of {}", self.name), || {
            let ended = self.child.try_wait().unwrap();
            let said = self.said();
            let mut lines = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            let rest = lines.find_map(|line| line.strip_prefix(start)).map(String::from);
            assert!(rest.is_some() || ended.is_none(), "{self:?}: {}", self.complained());
            rest
        })
    }

    pub fn write_line(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Ctrl-C: everything that the terminal runs gets it.
    pub fn interrupt(&self) {
        self.signal("INT");
    }

    fn signal(&self, name: &str) {
        let group = format!("-{}", self.child.id());
        Command::new("kill").args(["-s", name, "--", &group]).stderr(Stdio::null()).status().ok();
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn ended(&mut self) -> ExitStatus {
        wait_until(&format!("the end of {}", self.name), || self.child.try_wait().unwrap())
    }

    /// Waits for a good end.
    pub fn succeeded(&mut self) {
        let status = self.ended();
        let (said, complained) = (self.said(), self.complained());
        assert!(status.success(), "{}: {status}\n{said}\n{complained}", self.name);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal("KILL");
        self.child.wait().ok();
    }
}

/// Runs a command to its good end, with nobody who types.
pub fn run(command: Command) -> Running {
    let mut running = Running::start(command);
    drop(running.child.stdin.take());
    running.succeeded();
    running
}

/// Asks again and again, until there is an answer.
pub fn wait_until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        thread::sleep(POLL);
    }
}
