// node load.mjs [VIEWERS] [SECONDS]: how the example does with so many pages on one machine.

import { setTimeout as pause } from "node:timers/promises";

import { Server } from "./server.mjs";
import { Viewer, browse } from "./viewer.mjs";

const [count, seconds] = [Number(process.argv[2] ?? 8), Number(process.argv[3] ?? 60)];

/** What the program tells of itself, last. */
function listen(page) {
  let state = {};
  page.on("websocket", (socket) =>
    socket.on("framereceived", ({ payload }) => {
      const said = JSON.parse(payload);
      if (said.type === "state") state = said;
    }),
  );
  return () => state;
}

const server = await Server.start(["--seed", "7"]);
const browser = await browse();
try {
  const viewers = [];
  for (let number = 0; number < count; number++) viewers.push(await Viewer.open(browser, server.address));
  const state = listen(viewers[0].page);
  await viewers[0].page.reload(); // so that its socket is listened to
  for (const viewer of viewers) await viewer.moves();
  const look = async () => Promise.all(viewers.map((viewer) => viewer.video()));
  const [before, made] = [await look(), state().frames];
  const start = performance.now();
  await pause(seconds * 1000);
  const [after, now] = [await look(), state()];
  const took = (performance.now() - start) / 1000;
  console.log(`${count} viewers, ${took.toFixed(1)} s`);
  console.log("viewer  decoded  a second  dropped  lost packets");
  after.forEach((video, at) => {
    const since = (name) => (video[name] ?? 0) - (before[at][name] ?? 0);
    const cells = [at + 1, since("framesDecoded"), (since("framesDecoded") / took).toFixed(1), since("framesDropped"), since("packetsLost")];
    console.log([6, 9, 10, 9, 14].map((width, cell) => String(cells[cell]).padStart(width)).join(""));
  });
  const figures = [`${((now.frames - made) / took).toFixed(1)} frames a second`, `pace ${now.pace.toFixed(2)}`, `${now.underruns} underruns`];
  console.log(`generator: ${figures.join(", ")}`);
} finally {
  await browser.close();
  await server.kill();
}
