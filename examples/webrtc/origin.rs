//! Which pages may speak to this program. A browser sends any page's requests to any address; only
//! its headers `Host` and `Origin` tell whose they are.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, header};

/// Why a request is not answered.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Foreign {
    #[error("got no {0} header, expected one")]
    Missing(HeaderName),
    #[error("got the host {0}, expected this machine: without a token no other name is answered")]
    Host(String),
    #[error("got a page of {origin}, expected one of {host}")]
    Page { origin: String, host: String },
}

/// A name that somebody else's domain server cannot point at this machine.
pub fn check_host(headers: &HeaderMap) -> Result<(), Foreign> {
    let host = text(headers, header::HOST)?;
    let is_own = is_this_machine(name(host));
    is_own.then_some(()).ok_or_else(|| Foreign::Host(host.into()))
}

/// The page that asks was served under the name that it asks at.
pub fn check_page(headers: &HeaderMap) -> Result<(), Foreign> {
    let (host, origin) = (text(headers, header::HOST)?, text(headers, header::ORIGIN)?);
    let authority = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
    let is_same = authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host));
    is_same.then_some(()).ok_or_else(|| Foreign::Page { origin: origin.into(), host: host.into() })
}

fn text(headers: &HeaderMap, name: HeaderName) -> Result<&str, Foreign> {
    let text = headers.get(&name).and_then(|value| value.to_str().ok());
    text.ok_or(Foreign::Missing(name))
}

/// Without the port.
fn name(host: &str) -> &str {
    if let Some(address) = host.strip_prefix('[') {
        return address.split(']').next().unwrap_or_default();
    }
    host.split(':').next().unwrap_or_default()
}

fn is_this_machine(name: &str) -> bool {
    let is_loopback = |address: IpAddr| address.is_loopback();
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, origin: &str) -> HeaderMap {
        let all = [(header::HOST, host), (header::ORIGIN, origin)];
        let given = all.into_iter().filter(|(_, value)| !value.is_empty());
        given.map(|(name, value)| (name, value.parse().unwrap())).collect()
    }

    #[test]
    fn this_machine_is_known_by_all_its_names() {
        for host in ["localhost:8080", "LOCALHOST", "127.0.0.1:1", "127.3.2.1", "[::1]:8080"] {
            assert_eq!(check_host(&headers(host, "")), Ok(()), "{host}");
        }
        for host in ["example.org", "127.0.0.1.example.org:8080", "10.0.0.1", "[::2]", "", ":80"] {
            assert!(check_host(&headers(host, "")).is_err(), "{host}");
        }
    }

    #[test]
    fn only_the_own_page_may_ask() {
        for (host, origin) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("live.example.org", "https://live.example.org"),
        ] {
            assert_eq!(check_page(&headers(host, origin)), Ok(()), "{origin}");
        }
        for origin in [
            "",
            "null",
            "127.0.0.1:8080",
            "http://127.0.0.1",
            "http://127.0.0.1:8081",
            "http://127.0.0.1:8080.example.org",
            "http://example.org",
            "file://127.0.0.1:8080",
        ] {
            assert!(check_page(&headers("127.0.0.1:8080", origin)).is_err(), "{origin}");
        }
    }
}
