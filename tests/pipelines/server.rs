//! An nginx with its RTMP module, for one test.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
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
    _running: Running,
}

impl Server {
    pub fn start() -> Self {
        let root = installed();
        let folder = tempfile::tempdir().unwrap();
        let (rtmp, http) = (free_tcp_port(), free_tcp_port());
        let configuration = folder.path().join("nginx.conf");
        let text = configure(&root.join(MODULE), folder.path(), rtmp, http);
        std::fs::write(&configuration, text).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(root.join(PROGRAM)).arg("-e");
        command.arg(folder.path().join("error.log")).arg("-c").arg(configuration);
        let running = Running::start(command);
        for port in [rtmp, http] {
            wait_until("nginx", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
        }
        Self { folder, rtmp, http, _running: running }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where to publish, and to watch.
    pub fn stream(&self) -> String {
        format!("rtmp://127.0.0.1:{}/live/pocket", self.rtmp)
    }

    pub fn recording(&self) -> PathBuf {
        self.folder().join("pocket.flv")
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
             live on; record all; record_path {folder};
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
