//! An nginx with its RTMP module, for one test.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::script::{Running, shell, wait_until};

const PROGRAM: &str = "usr/sbin/nginx";
const MODULE: &str = "usr/lib/nginx/modules/ngx_rtmp_module.so";

/// Records and relays what is published, and serves its folder over HTTP.
#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    rtmp: u16,
    http: u16,
    /// Unless it is down.
    running: Option<Running>,
}

impl Server {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self { folder, rtmp: 0, http: 0, running: None };
        // Until it has them, others may take ports that were free.
        assert!((0..5).any(|_| server.starts_on_free_ports()), "{:?}", server.complained());
        server
    }

    fn starts_on_free_ports(&mut self) -> bool {
        (self.rtmp, self.http) = (free_tcp_port(), free_tcp_port());
        let text = configure(&installed().join(MODULE), self.folder(), self.rtmp, self.http);
        std::fs::write(self.folder().join("nginx.conf"), text).unwrap();
        self.starts()
    }

    /// Where it was, and until it listens.
    pub fn go_on(&mut self) {
        assert!(self.starts(), "{:?}", self.complained());
    }

    /// Whether it gets its ports: then it writes down its number, and else it ends.
    fn starts(&mut self) -> bool {
        let number = self.folder().join("pid");
        std::fs::remove_file(&number).ok(); // of one that was killed
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(installed().join(PROGRAM)).arg("-e");
        command
            .arg(self.folder().join("error.log"))
            .arg("-c")
            .arg(self.folder().join("nginx.conf"));
        let running = self.running.insert(Running::start(command));
        wait_until("nginx", || {
            let has_ended = running.has_ended();
            (has_ended || number.exists()).then_some(!has_ended)
        })
    }

    fn complained(&self) -> Option<String> {
        self.running.as_ref().map(Running::complained)
    }

    /// As a crash does it.
    pub fn kill(&mut self) {
        self.running = None;
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where to publish, and to watch.
    pub fn stream(&self) -> String {
        format!("rtmp://127.0.0.1:{}/live/pocket", self.rtmp)
    }

    /// One of each time that a stream was published, oldest first.
    pub fn recordings(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path());
        let mut all: Vec<_> =
            files.filter(|file| file.extension().is_some_and(|end| end == "flv")).collect();
        all.sort(); // their names have the time
        all
    }

    pub fn page(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.http)
    }
}

/// One process, which writes nowhere but in its folder.
fn configure(module: &Path, folder: &Path, rtmp: u16, http: u16) -> String {
    let (module, folder) = (module.display(), folder.display());
    let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
        .collect();
    format!(
        "load_module {module}; daemon off; master_process off; pid {folder}/pid; events {{}}
         rtmp {{ access_log off; server {{ listen 127.0.0.1:{rtmp}; application live {{
             live on; record all; record_unique on; record_path {folder};
         }} }} }}
         http {{ access_log off; {scratch} server {{
             listen 127.0.0.1:{http}; root {folder};
         }} }}"
    )
}

/// The root below which nginx is. Its package would start a server of the machine's own; unpacked
/// among the test's files it does not, and nobody needs to be root.
fn installed() -> PathBuf {
    let unpacked = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nginx");
    let has = |root: &&Path| root.join(PROGRAM).exists() && root.join(MODULE).exists();
    if let Some(root) = [Path::new("/"), &unpacked].iter().find(|root| has(root)) {
        return root.into();
    }
    std::fs::create_dir_all(&unpacked).unwrap();
    shell(&format!(
        "cd {} && {{ [ $(id -u) -ne 0 ] || apt-get -qq update; }} &&
         apt-get -qq download nginx libnginx-mod-rtmp &&
         for package in *.deb; do dpkg-deb -x $package . || exit; done",
        unpacked.display()
    ));
    unpacked
}

pub fn free_tcp_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

pub fn free_udp_port() -> u16 {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
