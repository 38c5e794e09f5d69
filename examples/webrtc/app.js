// The page: a picture by WebRTC, and a WebSocket on which prompts go out and answers come in.

const $ = (id) => document.getElementById(id);

const PAUSES = [500, 1000, 2000, 3000, 5000]; // before trying again, in ms
const STILL = 8000; // no new frame for so long: the line is dead
const POLICIES = {
  "in-flight": "Every block that still has a step ahead turns to the new prompt. Quick, and smooth.",
  "next-block": "Blocks that have begun end as they are. A cut between two blocks.",
  recache: "In flight, and what is remembered is computed anew under the new prompt. It costs a moment.",
  cut: "Everything is dropped, and the picture begins anew.",
};
const IDEAS = {
  pocket: [
    "a blue cube in the snow",
    "a red ball in the desert",
    "a star in the forest",
    "a red ball over the sea",
    "a ring in the city at night",
  ],
};

const picture = $("picture");

/** What is known of the stream, whatever line it came by. */
const show = { asked: new Map(), nextId: 1, shown: [], due: null, history: [], ideas: [], at: -1, draft: "", trusted: true };

// ---- The line: one WebSocket and one peer connection, made anew whenever either fails.

let line = null;
let failures = 0;
let retry = 0;

function connect() {
  const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/session`);
  line = { socket, peer: null, waiting: [], decoded: 0, moved: performance.now() };
  const mine = line;
  socket.onmessage = ({ data }) => mine === line && hear(JSON.parse(data));
  socket.onclose = ({ reason }) => mine === line && lose(reason);
}

function lose(reason) {
  const { socket, peer } = line;
  line = null;
  if (document.body.dataset.link === "live") keepStill();
  socket.close();
  peer?.close();
  const pause = PAUSES[Math.min(failures++, PAUSES.length - 1)];
  for (const id of show.asked.keys()) forget(id);
  away(reason || (failures > 1 ? "No answer. Still trying." : "The picture is gone. Trying again."));
  retry = setTimeout(connect, pause);
}

/** The picture as it was last: a connection takes its own along. */
function keepStill() {
  [$("still").width, $("still").height] = [picture.videoWidth, picture.videoHeight];
  $("still").getContext("2d").drawImage(picture, 0, 0);
}

function say(message) {
  if (line?.socket.readyState !== WebSocket.OPEN) return false;
  line.socket.send(JSON.stringify(message));
  return true;
}

function away(text) {
  document.body.dataset.link = "away";
  $("link").textContent = "reconnecting";
  $("away").textContent = text;
  $("away").hidden = false;
  for (const id of ["fps", "trip", "jitter", "viewers"]) $(id).textContent = "–";
  allow();
}

function live() {
  if (document.body.dataset.link === "live") return;
  document.body.dataset.link = "live";
  failures = 0;
  $("link").textContent = "live";
  $("away").hidden = true;
  allow();
}

const hearing = {
  hello({ model, width, history, guarded, longest_prompt: longest }) {
    $("model").textContent = `model ${model}`;
    $("width").textContent = width;
    $("prompt").maxLength = longest;
    show.trusted = !guarded;
    show.history = history;
    show.ideas = IDEAS[model] ?? [];
    listHistory();
    if (history.length > 0) onAir(history[0]);
    const token = sessionStorage.getItem("token");
    if (guarded && token) say({ type: "token", token });
    allow();
  },

  permission({ granted }) {
    show.trusted = granted;
    if (!granted) {
      sessionStorage.removeItem("token");
      tell("That is not the token.");
    }
    allow();
    if (granted) $("prompt").focus();
  },

  async offer({ sdp }) {
    const mine = line;
    const peer = new RTCPeerConnection();
    mine.peer = peer;
    peer.ontrack = ({ track, receiver }) => {
      receiver.jitterBufferTarget = 0; // as live as it can be
      picture.srcObject = mine.stream = new MediaStream([track]);
      picture.play().catch(() => {}); // where it may not, it starts with the first touch
    };
    peer.onicecandidate = ({ candidate }) =>
      candidate?.candidate && mine === line && say({ type: "candidate", candidate: candidate.candidate });
    peer.onconnectionstatechange = () =>
      peer.connectionState === "failed" && mine === line && lose("The picture does not come through. Trying again.");
    await peer.setRemoteDescription({ type: "offer", sdp });
    await peer.setLocalDescription();
    if (mine !== line) return;
    say({ type: "answer", sdp: peer.localDescription.sdp });
    for (const candidate of mine.waiting.splice(0)) peer.addIceCandidate(candidate).catch(() => {});
    mine.waiting = null;
  },

  candidate({ candidate, line: sdpMLineIndex }) {
    const one = { candidate, sdpMLineIndex };
    if (line.peer && !line.waiting) line.peer.addIceCandidate(one).catch(() => {});
    else line.waiting?.push(one);
  },

  asked({ id, text }) {
    if (show.asked.has(id)) next(text);
  },

  refused({ id, reason }) {
    if (id !== null) forget(id);
    tell(`Refused: ${reason}`);
  },

  dropped({ id }) {
    forget(id);
  },

  applied(applied) {
    show.due = { ...applied, since: performance.now() };
    settle();
  },

  state({ state, prompt, seed, pace, made, viewers }) {
    $("seed-now").textContent = seed ?? "–";
    $("pace").textContent = pace ? `${pace.toFixed(1)}×` : "–";
    $("pace").title = `${made.toFixed(1)} frames made a second`;
    $("viewers").textContent = viewers;
    if (state === "loading") $("link").textContent = "loading the model";
    else if (document.body.dataset.link === "live") $("link").textContent = "live";
    settle();
    if (prompt !== null && !show.due && show.asked.size === 0) onAir(prompt);
  },

  trouble({ reason }) {
    tell(reason);
  },
};

const hear = (message) => hearing[message.type]?.(message);

// ---- Prompts

function ask(text) {
  if (!text.trim()) return tell("A prompt needs some words.");
  const how = new FormData($("how"));
  const id = show.nextId++;
  const sent = say({
    type: "prompt",
    id,
    text,
    policy: how.get("policy"),
    blocks: Number(how.get("blocks")),
    method: how.get("method"),
  });
  if (!sent) return tell("Not sent: there is no connection now.");
  tell("");
  show.asked.set(id, performance.now());
  show.at = -1;
}

/** The answer has come; the picture may be on its way still. */
function settle() {
  const { due, shown } = show;
  if (!due) return;
  // Timestamps go round, and their fractions are cut off.
  const frame = shown.find(({ rtp }) => ((rtp - due.rtp) | 0) >= -1);
  if (!frame && performance.now() - due.since < 1000) return;
  show.due = null;
  const asked = due.id === null ? undefined : show.asked.get(due.id);
  const latency = asked !== undefined && frame ? frame.now - asked : due.latency;
  $("latency").textContent = `${(latency / 1000).toFixed(2)} s`;
  for (const id of [...show.asked.keys()]) if (due.id !== null && id <= due.id) show.asked.delete(id);
  if (show.asked.size === 0) next("");
  onAir(due.text);
}

function onAir(text) {
  if ($("prompt-now").textContent !== text) {
    $("prompt-now").textContent = text || "no prompt";
    picture.setAttribute("aria-label", `Live picture: ${text}`);
  }
  show.history = [text, ...show.history.filter((known) => known !== text)].slice(0, 20);
  listHistory();
}

function next(text) {
  $("prompt-next").textContent = text;
  $("prompt-next").hidden = !text;
}

function forget(id) {
  show.asked.delete(id);
  if (show.asked.size === 0) next("");
}

function tell(text) {
  $("told").textContent = text;
}

function allow() {
  const able = show.trusted && document.body.dataset.link === "live";
  $("unlock").hidden = show.trusted;
  for (const id of ["ask", "how", "again"]) $(id).hidden = !show.trusted;
  $("again").querySelector("button").disabled = !able;
  for (const button of document.querySelectorAll("#history button, #ideas button")) button.disabled = !able;
}

function listHistory() {
  const texts = show.history;
  const now = [...$("history").querySelectorAll("button")].map((button) => button.textContent);
  if (now.length > 0 && now.length === texts.length && now.every((text, at) => text === texts[at])) return;
  $("history").replaceChildren(...texts.map((text, at) => {
    const item = document.createElement("li");
    if (at === 0) item.setAttribute("aria-current", "true");
    item.append(button(text));
    return item;
  }));
  listIdeas(show.ideas.filter((idea) => !texts.includes(idea)));
  allow();
}

function listIdeas(texts) {
  $("ideas").hidden = texts.length === 0;
  $("ideas").lastElementChild.replaceChildren(...texts.map((text) => {
    const item = document.createElement("li");
    item.append(button(text));
    return item;
  }));
}

function button(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.onclick = () => ask(text);
  return button;
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  ask($("prompt").value);
  $("prompt").select();
};

/** Earlier prompts by the arrow keys, as in a shell. */
$("prompt").onkeydown = (event) => {
  const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  if (show.at === -1) show.draft = $("prompt").value;
  show.at = Math.max(-1, Math.min(show.at + step, show.history.length - 1));
  $("prompt").value = show.at === -1 ? show.draft : show.history[show.at];
};

$("unlock").onsubmit = (event) => {
  event.preventDefault();
  const token = $("token").value;
  sessionStorage.setItem("token", token);
  tell("");
  say({ type: "token", token });
  $("token").value = "";
};

$("again").onsubmit = (event) => {
  event.preventDefault();
  const typed = $("seed").value.trim();
  const seed = typed === "" ? null : Number(typed);
  if (seed !== null && !(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32)) {
    return tell("A seed is a whole number from 0 to 4294967295, or nothing.");
  }
  tell(say({ type: "restart", seed }) ? "" : "Not sent: there is no connection now.");
};

$("how").onsubmit = (event) => event.preventDefault();
$("how").oninput = () => {
  const how = new FormData($("how"));
  const blocks = Number(how.get("blocks"));
  $("policy-says").textContent = POLICIES[how.get("policy")];
  $("blocks-says").textContent = blocks < 2 ? "at once" : `${blocks} blocks`;
};
$("how").oninput();

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=text], input[type=password]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") $("prompt").focus();
  else if (event.key === "f" || event.key === "F") fullScreen();
  else return;
  event.preventDefault();
});

const fullScreen = () =>
  document.fullscreenElement ? document.exitFullscreen() : picture.parentElement.requestFullscreen?.();
$("full").onclick = fullScreen;
document.addEventListener("pointerdown", () => picture.paused && picture.play().catch(() => {}));

// ---- Frames, as they are shown

function watchFrames() {
  picture.requestVideoFrameCallback((now, { rtpTimestamp: rtp, width, height }) => {
    if (width) document.querySelector(".stage").style.setProperty("--ratio", `${width} / ${height}`);
    if (line?.stream && line.stream === picture.srcObject) live(); // and not what is left of another one
    if (rtp !== undefined) show.shown.push({ now, rtp });
    if (show.shown.length > 64) show.shown.shift();
    settle();
    glow(now);
    watchFrames();
  });
}
if (picture.requestVideoFrameCallback) watchFrames();
else picture.ontimeupdate = () => line?.stream && live();

let glowed = 0;

/** The picture's light on the wall, four times a second. */
function glow(now) {
  if (now - glowed < 250) return;
  glowed = now;
  const { width, height } = $("glow");
  $("glow").getContext("2d").drawImage(picture, 0, 0, width, height);
}

// ---- Figures, once a second

let before = null;

async function measure() {
  const mine = line;
  if (!mine?.peer) return;
  const report = [...(await mine.peer.getStats()).values()];
  if (mine !== line) return;
  const video = report.find(({ type, kind }) => type === "inbound-rtp" && kind === "video");
  const pair = report.find(({ type, state, nominated }) => type === "candidate-pair" && nominated && state === "succeeded");
  const now = performance.now();
  const decoded = video?.framesDecoded ?? 0;
  if (before?.line === mine) {
    $("fps").textContent = ((decoded - before.decoded) / (now - before.now) * 1000).toFixed(1);
  }
  before = { line: mine, decoded, now };
  if (video?.jitter !== undefined) $("jitter").textContent = `${(video.jitter * 1000).toFixed(1)} ms`;
  if (pair?.currentRoundTripTime !== undefined) $("trip").textContent = `${(pair.currentRoundTripTime * 1000).toFixed(1)} ms`;
  if (decoded !== mine.decoded) [mine.decoded, mine.moved] = [decoded, now];
}

setInterval(() => {
  measure();
  if (line && document.visibilityState === "visible" && performance.now() - line.moved > STILL) {
    lose("The picture stands still. Trying again.");
  }
}, 1000);
document.addEventListener("visibilitychange", () => {
  if (line) line.moved = performance.now();
});
addEventListener("online", () => {
  if (line) return;
  clearTimeout(retry);
  connect();
});

// ---- Start: the token may come with the address, where no server sees it

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}
connect();
