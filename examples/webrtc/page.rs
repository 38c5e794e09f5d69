//! The page's files, which are part of the program, and the door to its WebSocket.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::air::Air;
use crate::door::{Door, PLACES, SILENCE};
use crate::message::LONGEST;
use crate::token::Token;
use crate::{origin, session};

/// Most pages that are open at once.
pub const MAX_VIEWERS: usize = 16;
/// Path, type and text: nothing else is served.
const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("style.css")),
    ("/app.js", "text/javascript; charset=utf-8", include_str!("app.js")),
];
/// With every answer: nothing of others on the page, and the page in nothing of others.
const HEADERS: [(header::HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-cache"),
];

/// What all pages share.
#[derive(Debug)]
pub struct Site {
    pub air: Arc<Air>,
    pub token: Option<Token>,
    /// Where the page is served.
    pub address: IpAddr,
    seats: Arc<Semaphore>,
    sessions: AtomicU64,
}

impl Site {
    pub fn new(air: Arc<Air>, token: Option<Token>, address: IpAddr) -> Arc<Self> {
        let seats = Arc::new(Semaphore::new(MAX_VIEWERS));
        Arc::new(Self { air, token, address, seats, sessions: AtomicU64::new(1) })
    }

    /// Whether prompts need a token.
    pub fn is_guarded(&self) -> bool {
        self.token.is_some()
    }

    /// A place for one more, given back when it is dropped.
    pub fn seat(&self) -> Option<OwnedSemaphorePermit> {
        self.seats.clone().try_acquire_owned().ok()
    }

    pub fn viewers(&self) -> usize {
        MAX_VIEWERS - self.seats.available_permits()
    }

    /// A number that no other session has.
    pub fn number(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }
}

/// Until the end is told.
pub async fn serve(
    listener: TcpListener,
    site: Arc<Site>,
    ending: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let door = Door::new(listener, PLACES, SILENCE);
    axum::serve(door, router(site)).with_graceful_shutdown(ending).await
}

fn router(site: Arc<Site>) -> Router {
    let mut router = Router::new().route("/session", get(open));
    for (path, kind, text) in FILES {
        router = router.route(path, get(([(header::CONTENT_TYPE, kind)], text)));
    }
    let check = middleware::from_fn_with_state(site.clone(), check_host);
    router.layer(check).layer(middleware::map_response(with_headers)).with_state(site)
}

/// With a token, whoever finds the page may look; without one, it is for this machine.
async fn check_host(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    match origin::check_host(request.headers()) {
        Err(foreign) if !site.is_guarded() => {
            (StatusCode::FORBIDDEN, foreign.to_string()).into_response()
        }
        _ => next.run(request).await,
    }
}

async fn with_headers(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn open(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if let Err(foreign) = origin::check_page(&headers) {
        return (StatusCode::FORBIDDEN, foreign.to_string()).into_response();
    }
    let upgrade = upgrade.max_message_size(LONGEST).max_frame_size(LONGEST);
    upgrade.on_upgrade(|socket| session::run(socket, site))
}
