//! A page's WebSocket: negotiation, prompts and their answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use nonzero_ext::nonzero;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Interval, interval, timeout};

use crate::message::{self, Applied, LONGEST_PROMPT, Reply, Request, Wish};
use crate::news::{Asker, News};
use crate::page::{MAX_VIEWERS, Site};
use crate::viewer::{Said, Viewer};

/// How often a page is asked whether it is there, and after how long it is not.
const PING: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(20);
/// How long a page may take to receive.
const SEND: Duration = Duration::from_secs(5);
/// How long a page may go on talking that was told why it is over.
const FAREWELL: Duration = Duration::from_secs(1);
/// Replies of its pipeline that a page may be behind.
const BEHIND: usize = 64;
/// A wrong token is answered late, and not often.
const WRONG_TOKEN: Duration = Duration::from_secs(1);
const WRONG_TOKENS: u32 = 3;
/// Candidates of one page: before an answer, they are kept.
const CANDIDATES: u32 = 64;

/// What a page may do how often, and how often at once.
const MESSAGES: Quota = Quota::per_second(nonzero!(20u32)).allow_burst(nonzero!(100u32));
const PROMPTS: Quota = Quota::per_second(nonzero!(1u32)).allow_burst(nonzero!(5u32));
const RESTARTS: Quota = Quota::per_minute(nonzero!(12u32)).allow_burst(nonzero!(2u32));

/// Why a session is over: what the page is told, where it still listens.
#[derive(Debug)]
struct End(u16, String);

impl End {
    fn gone() -> Self {
        Self(close_code::NORMAL, String::new())
    }
}

/// From an open page to its end.
pub async fn run(mut socket: WebSocket, site: Arc<Site>) {
    let end = match site.seat() {
        Some(_seat) => match Session::open(site).await {
            Ok(mut session) => session.talk(&mut socket).await,
            Err(error) => End(close_code::ERROR, format!("{error:#}")),
        },
        None => End(close_code::AGAIN, format!("{MAX_VIEWERS} pages are open already")),
    };
    let mut reason = end.1;
    reason.truncate(reason.floor_char_boundary(120)); // a close frame's bound
    let close = Message::Close(Some(CloseFrame { code: end.0, reason: reason.into() }));
    if let Ok(Ok(())) = timeout(SEND, socket.send(close)).await {
        // Until it has heard: what is left unread would reset the line, and the reason be lost.
        let heard = async { while matches!(socket.recv().await, Some(Ok(_))) {} };
        let _ = timeout(FAREWELL, heard).await;
    }
}

struct Session {
    site: Arc<Site>,
    number: u64,
    viewer: Viewer,
    said: mpsc::Receiver<Said>,
    news: broadcast::Receiver<News>,
    pings: Interval,
    heard: Instant,
    /// Whether it may change what is shown.
    is_trusted: bool,
    wrong_tokens: u32,
    candidates: u32,
    messages: DefaultDirectRateLimiter,
    prompts: DefaultDirectRateLimiter,
    restarts: DefaultDirectRateLimiter,
}

impl Session {
    async fn open(site: Arc<Site>) -> anyhow::Result<Self> {
        let (said, replies) = mpsc::channel(BEHIND);
        let (air, address) = (site.air.clone(), site.address);
        let news = air.news();
        let viewer = tokio::task::spawn_blocking(move || Viewer::new(&air, address, said));
        Ok(Self {
            number: site.number(),
            viewer: viewer.await??,
            said: replies,
            news,
            pings: interval(PING),
            heard: Instant::now(),
            is_trusted: !site.is_guarded(),
            wrong_tokens: 0,
            candidates: 0,
            messages: RateLimiter::direct(MESSAGES),
            prompts: RateLimiter::direct(PROMPTS),
            restarts: RateLimiter::direct(RESTARTS),
            site,
        })
    }

    async fn talk(&mut self, socket: &mut WebSocket) -> End {
        let mut next = Ok(Some(text(&self.hello())));
        loop {
            match next {
                Ok(Some(message)) => match timeout(SEND, socket.send(message)).await {
                    Ok(Ok(())) => {}
                    _ => return End::gone(),
                },
                Ok(None) => {}
                Err(end) => return end,
            }
            next = tokio::select! {
                message = socket.recv() => self.hear(message.and_then(Result::ok)).await,
                said = self.said.recv() => self.say(said),
                news = self.news.recv() => self.inform(news),
                _ = self.pings.tick() => self.ping(),
            };
        }
    }

    fn hello(&self) -> Reply {
        let air = &self.site.air;
        Reply::Hello {
            model: air.model(),
            width: air.width(),
            history: air.history(),
            guarded: self.site.is_guarded(),
            longest_prompt: LONGEST_PROMPT,
        }
    }

    fn ping(&self) -> Result<Option<Message>, End> {
        if self.heard.elapsed() > SILENCE {
            return Err(End::gone());
        }
        Ok(Some(Message::Ping(Default::default())))
    }

    fn say(&self, said: Option<Said>) -> Result<Option<Message>, End> {
        match said {
            Some(Ok(reply)) => Ok(Some(text(&reply))),
            Some(Err(reason)) => Err(End(close_code::ERROR, reason)),
            None => Err(End::gone()),
        }
    }

    /// What happened on air, as far as it is this page's business.
    fn inform(
        &self,
        news: Result<News, broadcast::error::RecvError>,
    ) -> Result<Option<Message>, End> {
        let reply = match news {
            Ok(News::Applied { asker, text, block, latency, pts }) => {
                let own = asker.filter(|asker| asker.viewer == self.number);
                let latency = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
                let (id, rtp) = (own.map(|asker| asker.id), self.viewer.rtp_time(pts));
                Reply::Applied(Applied { id, text, block, latency, rtp })
            }
            Ok(News::Dropped(asker)) if asker.viewer == self.number => {
                Reply::Dropped { id: asker.id }
            }
            Ok(News::State(state)) => Reply::State(state),
            Ok(News::Trouble(reason)) => Reply::Trouble { reason },
            Ok(News::Dropped(_)) | Err(broadcast::error::RecvError::Lagged(_)) => return Ok(None),
            Ok(News::End) | Err(broadcast::error::RecvError::Closed) => {
                return Err(End(close_code::AWAY, "the program has ended".into()));
            }
        };
        Ok(Some(text(&reply)))
    }
}

/// What the page says.
impl Session {
    async fn hear(&mut self, message: Option<Message>) -> Result<Option<Message>, End> {
        self.heard = Instant::now();
        if self.messages.check().is_err() {
            return Err(End(close_code::POLICY, "too many messages".into()));
        }
        match message {
            None | Some(Message::Close(_)) => Err(End::gone()),
            Some(Message::Ping(_) | Message::Pong(_)) => Ok(None),
            Some(Message::Binary(_)) => {
                Err(End(close_code::UNSUPPORTED, "expected text, got bytes".into()))
            }
            Some(Message::Text(said)) => {
                let reply = match message::parse(&said) {
                    Ok(request) => self.obey(request).await?,
                    Err(reason) => Some(refused(None, reason)),
                };
                Ok(reply.as_ref().map(text))
            }
        }
    }

    async fn obey(&mut self, request: Request) -> Result<Option<Reply>, End> {
        match request {
            Request::Token { token } => return self.check(&token).await.map(Some),
            Request::Answer { sdp } => {
                return Ok(self.viewer.answer(&sdp).err().map(|reason| refused(None, reason)));
            }
            Request::Candidate { candidate } => self.reach(&candidate)?,
            Request::Prompt(wish) => return Ok(Some(self.ask(&wish))),
            Request::Restart { seed } => return Ok(self.restart(seed)),
        }
        Ok(None)
    }

    fn reach(&mut self, candidate: &str) -> Result<(), End> {
        self.candidates += 1;
        if self.candidates > CANDIDATES {
            return Err(End(close_code::POLICY, "too many candidates".into()));
        }
        self.viewer.candidate(candidate);
        Ok(())
    }

    async fn check(&mut self, token: &str) -> Result<Reply, End> {
        self.is_trusted = self.site.token.as_ref().is_none_or(|own| own.is(token));
        if !self.is_trusted {
            tokio::time::sleep(WRONG_TOKEN).await;
            self.wrong_tokens += 1;
            if self.wrong_tokens == WRONG_TOKENS {
                return Err(End(close_code::POLICY, "too many wrong tokens".into()));
            }
        }
        Ok(Reply::Permission { granted: self.is_trusted })
    }

    fn ask(&mut self, wish: &Wish) -> Reply {
        let id = wish.id;
        if !self.is_trusted {
            return refused(Some(id), "prompts need the token here".into());
        }
        if self.prompts.check().is_err() {
            return refused(Some(id), "too many prompts, expected one a second".into());
        }
        if !self.site.air.ask(Asker { viewer: self.number, id }, wish) {
            return refused(Some(id), "the generator takes no prompt now".into());
        }
        Reply::Asked { id, text: wish.text.clone() }
    }

    fn restart(&mut self, seed: Option<u32>) -> Option<Reply> {
        if !self.is_trusted {
            return Some(refused(None, "a restart needs the token here".into()));
        }
        if self.restarts.check().is_err() {
            return Some(refused(None, "too many restarts, expected one in 5 seconds".into()));
        }
        self.site.air.restart(seed);
        None
    }
}

fn refused(id: Option<u32>, reason: String) -> Reply {
    Reply::Refused { id, reason }
}

fn text(reply: &Reply) -> Message {
    // Replies are plain structures, which JSON can always hold.
    Message::Text(serde_json::to_string(reply).unwrap_or_default().into())
}
