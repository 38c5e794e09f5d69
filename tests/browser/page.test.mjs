// The example webrtc, as somebody with a browser sees it.

import assert from "node:assert/strict";
import { connect } from "node:net";
import { after, before, test } from "node:test";

import { Server } from "./server.mjs";
import { PLACES, Viewer, browse } from "./viewer.mjs";

const TOKEN = "0123456789abcdef";
const SEED = ["--seed", "7"];

let browser;
before(async () => (browser = await browse()));
after(() => browser.close());

/** A server for the test, and its end whatever happens. */
async function served(context, args = SEED) {
  const server = await Server.start(args);
  context.after(() => server.kill());
  return server;
}

test("a prompt is typed and the picture follows", async (context) => {
  const server = await served(context);
  const viewer = await Viewer.open(browser, server.address, { colorScheme: "dark" });
  await viewer.moves();
  await viewer.shows("desert");
  assert.equal(await viewer.text("#prompt-now"), PLACES.desert.prompt);

  await viewer.ask(PLACES.snow.prompt);
  await viewer.shows("snow");
  await viewer.says("#prompt-now", PLACES.snow.prompt);
  await viewer.says("#latency", /^\d+\.\d\d s$/);
  await viewer.says("#fps", /^1[4-7]\.\d$/);
  await viewer.says("#trip", / ms$/);
  assert.equal(await viewer.text("#width"), "1");
  await viewer.screenshot("desktop-dark");

  await viewer.page.getByRole("button", { name: PLACES.desert.prompt }).first().click();
  await viewer.shows("desert");
  assert.deepEqual(viewer.errors, []);
  assert.equal(await server.interrupt(), 0, server.said);
  await viewer.close();
});

test("who joins late sees the same, on any screen", async (context) => {
  const server = await served(context);
  const first = await Viewer.open(browser, server.address, { colorScheme: "light" });
  await first.moves();
  await first.ask(PLACES.forest.prompt);
  await first.shows("forest");

  const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true };
  const second = await Viewer.open(browser, server.address, { ...phone, colorScheme: "dark" });
  await second.moves();
  await second.shows("forest");
  await second.says("#prompt-now", PLACES.forest.prompt);
  await first.says("#viewers", /^2$/);
  const width = await second.page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= 390, `a phone's page is ${width} wide`);

  await second.ask(PLACES.snow.prompt);
  await first.shows("snow");
  await first.says("#prompt-now", PLACES.snow.prompt);
  await first.screenshot("desktop-light");
  await second.screenshot("phone");
  await second.close();
  await first.says("#viewers", /^1$/);
  await first.close();
});

test("all of it goes by keyboard", async (context) => {
  const server = await served(context);
  const viewer = await Viewer.open(browser, server.address);
  await viewer.moves();
  const { keyboard } = viewer.page;
  await viewer.page.locator("input[value=in-flight]").focus();
  await keyboard.press("ArrowRight");
  await viewer.says("#policy-says", /Blocks that have begun/);
  await viewer.page.locator("#blocks").focus();
  await keyboard.press("ArrowRight");
  await keyboard.press("ArrowRight");
  await viewer.says("#blocks-says", /^2 blocks$/);
  await keyboard.press("/");
  await keyboard.type(PLACES.snow.prompt);
  await keyboard.press("Enter");
  await viewer.shows("snow");
  await keyboard.press("ArrowUp");
  await keyboard.press("ArrowUp");
  assert.equal(await viewer.page.inputValue("#prompt"), PLACES.desert.prompt);
  await keyboard.press("Enter");
  await viewer.shows("desert");
  await viewer.close();
});

test("a seed starts the picture again", async (context) => {
  const server = await served(context);
  const viewer = await Viewer.open(browser, server.address);
  await viewer.says("#seed-now", /^7$/);
  await viewer.moves();
  await viewer.page.fill("#seed", "11");
  await viewer.page.press("#seed", "Enter");
  await viewer.says("#seed-now", /^11$/);
  await viewer.moves();
  await viewer.shows("desert");
  await viewer.page.fill("#seed", "4294967296");
  await viewer.page.press("#seed", "Enter");
  await viewer.says("#told", /whole number/);
  await viewer.close();
});

test("what is refused is told", async (context) => {
  const server = await served(context);
  const viewer = await Viewer.open(browser, server.address);
  await viewer.moves();
  await viewer.page.evaluate(() => document.querySelector("#prompt").removeAttribute("maxlength"));
  await viewer.ask("a".repeat(1001));
  await viewer.says("#told", /Refused: .*1001 characters, expected at most 1000/);
  await viewer.page.evaluate(insist, PLACES.forest.prompt);
  await viewer.says("#told", /Refused: too many prompts/);
  await viewer.shows("forest");
  await viewer.close();
});

/** Asks eight times at once. */
function insist(text) {
  document.querySelector("#prompt").value = text;
  for (let times = 0; times < 8; times++) document.querySelector("#ask").requestSubmit();
}

test("where prompts need a token, others only watch", async (context) => {
  const server = await served(context, [...SEED, "--token", TOKEN]);
  const guest = await Viewer.open(browser, server.address);
  await guest.moves();
  assert.ok(await guest.page.isVisible("#unlock"));
  assert.ok(!(await guest.page.isVisible("#ask")));
  const refused = await guest.page.evaluate(wish, PLACES.snow.prompt);
  assert.match(refused, /prompts need the token/);
  await guest.page.fill("#token", "not the right one");
  await guest.page.press("#token", "Enter");
  await guest.says("#told", /not the token/);
  await guest.screenshot("guest");

  const host = await Viewer.open(browser, `${server.address}#token=${TOKEN}`);
  await host.moves();
  assert.ok(!host.page.url().includes(TOKEN), host.page.url());
  await host.ask(PLACES.snow.prompt);
  await host.shows("snow");
  await guest.shows("snow");
  await guest.page.fill("#token", TOKEN);
  await guest.page.press("#token", "Enter");
  await guest.page.waitForSelector("#ask:visible");
  await Promise.all([guest.close(), host.close()]);
});

/** Asks past the page, and gives back the reason of the refusal. */
function wish(text) {
  return new Promise((resolve) => {
    const socket = new WebSocket(`ws://${location.host}/session`);
    const prompt = { type: "prompt", id: 1, text, policy: "cut", blocks: 0, method: "linear" };
    socket.onopen = () => socket.send(JSON.stringify(prompt));
    socket.onmessage = ({ data }) => {
      const said = JSON.parse(data);
      if (said.type === "refused") resolve(said.reason);
      if (said.type === "refused") socket.close();
    };
  });
}

test("the page comes back by itself when the server does", async (context) => {
  const server = await served(context);
  const viewer = await Viewer.open(browser, server.address);
  await viewer.moves();
  await server.kill();
  await viewer.page.waitForSelector("#away:visible");
  await viewer.says("#link", /reconnecting/);
  await viewer.screenshot("away");
  await viewer.ask(PLACES.forest.prompt);
  await viewer.says("#told", /Not sent/);
  assert.ok(await viewer.page.isDisabled("#again button"));

  const again = await Server.start(["--prompt", PLACES.snow.prompt], server.port);
  context.after(() => again.kill());
  await viewer.page.waitForSelector("#away", { state: "hidden" });
  await viewer.moves();
  await viewer.shows("snow");
  await viewer.says("#prompt-now", PLACES.snow.prompt);
  await viewer.close();
});

test("a full house turns others away until someone leaves", async (context) => {
  const server = await served(context);
  const page = await (await browser.newContext()).newPage();
  await page.goto(server.address); // one of 16
  await page.evaluate(fill, 15);
  const viewer = await Viewer.open(browser, server.address);
  await viewer.says("#away", /16 pages are open already/);
  await page.close();
  await viewer.moves();
  await viewer.close();
});

/** So many sessions at once, as soon as each is open. */
function fill(count) {
  const open = () =>
    new Promise((resolve) => {
      const socket = new WebSocket(`ws://${location.host}/session`);
      socket.onmessage = resolve;
    });
  return Promise.all(Array.from({ length: count }, open)).then(() => {});
}

test("the door is shut to all that is not the page", async (context) => {
  const server = await served(context);
  const own = `http://127.0.0.1:${server.port}`;
  const get = (path, headers) => exchange(server.port, path, { Host: own.slice(7), ...headers });
  const page = await get("/");
  assert.match(page, /^HTTP\/1\.1 200 .*default-src 'none'.*nosniff|^HTTP\/1\.1 200 .*nosniff.*default-src 'none'/is);
  for (const path of ["/../Cargo.toml", "/%2e%2e/Cargo.toml", "/..%2fCargo.toml", "//etc/passwd", "/app.js/", "/main.rs"]) {
    assert.match(await get(path), /^HTTP\/1\.1 404 /, path);
  }
  assert.match(await get("/", { Host: "example.org" }), /^HTTP\/1\.1 403 /);
  const upgrade = {
    Connection: "Upgrade",
    Upgrade: "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
  };
  for (const origin of [{}, { Origin: "http://example.org" }, { Origin: "null" }]) {
    assert.match(await get("/session", { ...upgrade, ...origin }), /^HTTP\/1\.1 403 /, origin.Origin);
  }
  assert.match(await get("/session", { ...upgrade, Origin: own }), /^HTTP\/1\.1 101 /);
});

/** What a server answers, up to its headers' end; a client of our own, because others tidy paths and headers. */
function exchange(port, path, headers) {
  return new Promise((resolve, reject) => {
    const socket = connect(port, "127.0.0.1");
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
    let answer = "";
    socket.on("error", reject);
    socket.on("data", (data) => {
      answer += data;
      if (!answer.includes("\r\n\r\n")) return;
      socket.destroy();
      resolve(answer.split("\r\n\r\n")[0]);
    });
    socket.write(`GET ${path} HTTP/1.1\r\n${lines.join("")}\r\n`);
  });
}

test("messages out of bounds end the session, not the program", async (context) => {
  const server = await served(context);
  const viewer = await Viewer.open(browser, server.address);
  await viewer.moves();
  const said = (message) => viewer.page.evaluate(send, message);
  assert.match(await said("{"), /^refused/);
  assert.match(await said('{"type":"answer","sdp":"nonsense"}'), /^refused/);
  assert.match(await said('{"type":"prompt","id":1,"text":"a","policy":"now","blocks":0,"method":"linear"}'), /^refused.*in-flight/);
  assert.match(await said("x".repeat(40_000)), /^closed/);
  assert.match(await said([200, '{"type":"token","token":"any"}']), /^closed 1008 too many messages/);
  assert.match(await said([65, '{"type":"candidate","candidate":"nonsense"}']), /^closed 1008 too many candidates/);
  await viewer.moves();
  await viewer.close();
});

/** The answer to a message, or to [how many, of which]. */
function send(message) {
  return new Promise((resolve) => {
    const socket = new WebSocket(`ws://${location.host}/session`);
    const [count, text] = typeof message === "string" ? [1, message] : message;
    socket.onopen = () => Array(count).fill(text).forEach((message) => socket.send(message));
    socket.onclose = ({ code, reason }) => resolve(`closed ${code} ${reason}`);
    socket.onmessage = ({ data }) => {
      const said = JSON.parse(data);
      if (said.type === "refused") resolve(`refused ${said.reason}`);
    };
  });
}

test("what cannot work ends at once, with the reason", async () => {
  for (const [args, reason] of [
    [["--listen", "0.0.0.0:0"], /0\.0\.0\.0:0 can be reached from other machines, expected a token/],
    [["--listen", "127.0.0.1:0", "--token", "short"], /got a token of 5 bytes, expected at least 16/],
    [["--listen", "127.0.0.1:0", "--model", "no-such-model"], /no-such-model/],
    [["--listen", "127.0.0.1:0", "--devices", "cuda:77"], /cuda/],
  ]) {
    const server = new Server(args);
    assert.equal(await server.end(), 1, server.said);
    assert.match(server.said, reason);
  }
});
