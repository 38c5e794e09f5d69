// Waiting, but not for ever.

import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";

export const PATIENCE = 30_000;

/** Until a condition holds; else fails with what was found in its place. */
export async function until(what, condition, found = () => "") {
  const end = Date.now() + PATIENCE;
  while (Date.now() < end) {
    if (await condition()) return;
    await pause(200);
  }
  assert.fail(`${PATIENCE} ms passed without ${what}: ${await found()}`);
}
