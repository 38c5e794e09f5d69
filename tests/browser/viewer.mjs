// A page in a browser, and what is to be seen there.

import { mkdirSync } from "node:fs";

import { chromium } from "playwright-core";

import { until } from "./until.mjs";

const SCREENSHOTS = process.env.SCREENSHOTS ?? "target/screenshots";

/** Places that the model shows reliably: median red, green and blue of the lower half that its world draws. */
export const PLACES = {
  desert: { prompt: "a red ball in the desert", ground: [230, 168, 107] },
  snow: { prompt: "a blue cube in the snow", ground: [221, 231, 246] },
  forest: { prompt: "a star in the forest", ground: [77, 122, 56] },
};
/** How far each channel may be off; two places differ by 60 somewhere. */
const TOLERANCE = 25;

export const browse = () =>
  chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox", // CI is root in a container
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--autoplay-policy=no-user-gesture-required",
      "--disable-backgrounding-occluded-windows",
      "--disable-renderer-backgrounding",
    ],
  });

export class Viewer {
  static async open(browser, address, options = {}) {
    const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
    const page = await context.newPage();
    const viewer = new Viewer(page);
    page.on("pageerror", (error) => viewer.errors.push(String(error)));
    page.on("console", (line) => line.type() === "error" && viewer.errors.push(line.text()));
    await page.addInitScript(keepPeer);
    await page.goto(address);
    return viewer;
  }

  constructor(page) {
    this.page = page;
    this.errors = [];
  }

  close = () => this.page.context().close();

  text = (selector) => this.page.locator(selector).textContent();

  /** Frames that the browser decoded of the present connection. */
  decoded = async () => (await this.video()).framesDecoded ?? 0;

  video = () =>
    this.page.evaluate(async () => {
      const report = (await globalThis.peer?.getStats()) ?? new Map();
      return [...report.values()].find(({ type, kind }) => type === "inbound-rtp" && kind === "video") ?? {};
    });

  /** Median red, green and blue of the lower half of what is shown now: no object covers half of it. */
  ground = () =>
    this.page.evaluate(() => {
      const canvas = new OffscreenCanvas(96, 56);
      const paint = canvas.getContext("2d");
      paint.drawImage(document.querySelector("video"), 0, 0, 96, 56);
      const { data } = paint.getImageData(0, 28, 96, 28);
      const values = (c) => data.filter((_, at) => at % 4 === c).sort();
      return [0, 1, 2].map((c) => values(c)[data.length / 8]);
    });

  async shows(place) {
    let seen;
    await until(`${place} on the picture`, async () => {
      seen = await this.ground();
      return seen.every((value, c) => Math.abs(value - PLACES[place].ground[c]) < TOLERANCE);
    }, async () => `its ground is ${seen.map(Math.round)}, expected ${PLACES[place].ground}; ${await this.state()}`);
  }

  async moves() {
    const before = await this.decoded();
    await until("more frames", async () => (await this.decoded()) >= before + 16);
  }

  says = (selector, expected) =>
    until(`${selector}: ${expected}`, async () => (await this.text(selector)).match(expected), () => this.text(selector));

  /** What the page says of itself. */
  state = async () => (await Promise.all(["#link", "#prompt-now", "#told"].map(this.text))).join(", ");

  async ask(text) {
    await this.page.fill("#prompt", text);
    await this.page.press("#prompt", "Enter");
  }

  async screenshot(name) {
    mkdirSync(SCREENSHOTS, { recursive: true });
    await this.page.screenshot({ path: `${SCREENSHOTS}/${name}.png` });
  }
}

/** So that a test can ask the page's own connection. */
function keepPeer() {
  globalThis.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...args) {
      super(...args);
      globalThis.peer = this;
    }
  };
}
