// Rooms on real servers: MEMORYD_URLS are the addresses of nodes that share their databases.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Client, type Frame, type RoomEvent } from "../src/index.js";
import type { WebSocketLike } from "../src/socket.js";
import { random } from "./random.js";

const nodes = (process.env["MEMORYD_URLS"] ?? "").split(",");
const base = nodes[0] ?? "";
type Made = new (url: string) => WebSocketLike;
const native = (globalThis as unknown as { WebSocket: Made }).WebSocket;

async function signedIn(): Promise<Client> {
  const client = new Client({ baseUrl: base });
  await client.register({ email: `ada-${crypto.randomUUID()}@example.org`, password: "correct horse battery staple", name: "Ada" });
  return client;
}

/** What somebody in a room hears, up to the end of a turn. */
async function hear(frames: AsyncIterable<Frame>, joined?: () => void): Promise<{ text: string; events: RoomEvent[] }> {
  let text = "";
  const events: RoomEvent[] = [];
  for await (const f of frames) {
    if (f.type === "room_joined") {
      joined?.();
    } else if (f.type === "message.delta") {
      assert.equal(f.data.offset, text.length);
      text += f.data.text;
    } else if (f.type === "event") {
      events.push(f.data);
      if (f.data.type === "turn.completed") {
        break;
      }
    }
  }
  return { text, events };
}

/** The ids of the events of a conversation, oldest first, up to the end of its turn. */
async function log(client: Client, id: string): Promise<string[]> {
  const page = await client.call("get", "/events", { query: { limit: 200 } });
  const events = page.data.filter((e) => e.subject === id || e.data["conversation_id"] === id);
  return events.slice(0, 1 + events.findIndex((e) => e.type === "turn.completed")).map((e) => e.id);
}

test("an answer is heard in its room on every node", async () => {
  const client = await signedIn();
  const { id } = await client.call("post", "/conversations", { body: { title: "x" } });
  const sockets = nodes.map((baseUrl) => new Client({ baseUrl, tokens: client.tokens! }).connect());
  const heard = await Promise.all(
    sockets.map(async (s) => {
      s.join(id);
      let done: Promise<{ text: string; events: RoomEvent[] }> | undefined;
      await new Promise<void>((resolve) => {
        done = hear(s, resolve);
      });
      return { done };
    }),
  );
  let answer = "";
  for await (const e of client.ask(id, "Tell me a saga")) {
    answer += e.type === "message.delta" ? e.data.text : "";
  }
  for (const { done } of heard) {
    const { text, events } = await done!;
    assert.equal(text, answer);
    const seqs = events.map((e) => e.seq);
    assert.deepEqual(seqs, [...new Set(seqs)].sort((a, b) => a - b));
  }
  for (const s of sockets) {
    s.close();
  }
});

test("sockets that break over all nodes hear everything once", async () => {
  const client = await signedIn();
  const { id } = await client.call("post", "/conversations", { body: { title: "x" } });
  const dice = random(4711);
  let breaks = 0;
  /** A connection to whichever node, that breaks after a few frames. */
  class Rough implements WebSocketLike {
    readonly #ws: WebSocketLike;
    constructor(url: string) {
      const at = new URL(url);
      at.host = new URL(nodes[Math.floor(dice() * nodes.length)] ?? base).host;
      const ws = new native(at.href);
      this.#ws = ws;
      let left = 3 + Math.floor(dice() * 10);
      ws.addEventListener("message", (() => {
        if (--left === 0) {
          breaks++;
          ws.close(1000);
        }
      }) as (e: never) => void);
    }
    get readyState() {
      return this.#ws.readyState;
    }
    send(text: string) {
      this.#ws.send(text);
    }
    close(code?: number) {
      this.#ws.close(code === undefined || code === 1000 || code >= 3000 ? code : 1000);
    }
    addEventListener(type: "open" | "message" | "close" | "error", l: (e: never) => void) {
      this.#ws.addEventListener(type, l);
    }
  }
  const socket = client.connect({ WebSocket: Rough, pause: 10 });
  let done: Promise<{ text: string; events: RoomEvent[] }> | undefined;
  await new Promise<void>((resolve) => {
    socket.join(id);
    done = hear(socket, resolve);
  });
  let answer = "";
  for await (const e of client.ask(id, "Tell me a saga")) {
    answer += e.type === "message.delta" ? e.data.text : "";
  }
  const { text, events } = await done!;
  assert.equal(text, answer);
  const ids = events.map((e) => e.id);
  assert.equal(new Set(ids).size, ids.length);
  assert.deepEqual(ids, (await log(client, id)).slice(-ids.length));
  assert.ok(breaks > 3, `only ${breaks} breaks`);
  socket.close();
});
