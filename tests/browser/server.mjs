// The example as a process.

import { spawn } from "node:child_process";

import { until } from "./until.mjs";

const PROGRAM = process.env.WEBRTC ?? "target/release/examples/webrtc";

export class Server {
  /** Starts it at a port that is free, unless one is named, and waits until it listens. */
  static async start(args = [], port = 0) {
    const server = new Server(["--listen", `127.0.0.1:${port}`, ...args]);
    try {
      await until("an address", () => server.listens(), () => server.said);
    } catch (error) {
      await server.kill();
      throw error;
    }
    return server;
  }

  constructor(args) {
    this.said = "";
    this.process = spawn(PROGRAM, args);
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream.on("data", (text) => (this.said += text));
    }
  }

  listens() {
    const found = this.said.match(/^open (http:\/\/127\.0\.0\.1:(\d+)\/)$/m);
    if (found) [, this.address, this.port] = found;
    return found || this.hasEnded();
  }

  hasEnded() {
    return this.process.exitCode !== null || this.process.signalCode !== null;
  }

  /** As Ctrl-C does it; the exit code. */
  async interrupt() {
    this.process.kill("SIGINT");
    return this.end();
  }

  async kill() {
    this.process.kill("SIGKILL");
    return this.end();
  }

  /** Waits for it; the exit code. */
  async end() {
    await until("an end", () => this.hasEnded(), () => this.said);
    return this.process.exitCode;
  }
}
