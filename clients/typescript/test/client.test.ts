// Against real servers: MEMORYD_URLS are the addresses of nodes that share their databases.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Client, Problem, StreamBroken, type Schemas, type TurnEvent } from "../src/index.js";
import { random } from "./random.js";

const nodes = (process.env["MEMORYD_URLS"] ?? "").split(",");
const base = nodes[0] ?? "";
const password = "correct horse battery staple of the client";

async function signedIn(name: string, options: { fetch?: typeof fetch } = {}): Promise<Client> {
  const client = new Client({ baseUrl: base, ...options });
  const user = await client.register({ email: `${name}-${crypto.randomUUID()}@example.org`, password, name });
  assert.equal(user.name, name);
  return client;
}

/** Holds what is told of a turn against what may be told. */
class Transcript {
  text = "";
  starts = 0;
  message: Schemas["Message"] | undefined;
  end: TurnEvent | undefined;

  take(e: TurnEvent): void {
    assert.equal(this.end, undefined, "nothing follows the end");
    switch (e.type) {
      case "turn.started":
        this.starts++;
        assert.equal(this.text, "");
        break;
      case "message.delta":
        assert.equal(e.data.offset, this.text.length);
        this.text += e.data.text;
        break;
      case "message.completed":
        this.message = e.data.message;
        break;
      default:
        this.end = e;
    }
  }

  exactly(end: TurnEvent["type"]): void {
    assert.equal(this.starts, 1);
    assert.equal(this.end?.type, end);
    assert.equal(this.message?.content, this.text);
    assert.ok(this.text.length > 0);
  }
}

test("calls are typed, and refusals are problems", async () => {
  const client = await signedIn("ada");
  const made = await client.call("post", "/conversations", { body: { title: "Harbour", tags: ["sea"] } });
  const read = await client.call("get", "/conversations/{id}", { path: { id: made.id } });
  assert.equal(read.title, "Harbour");
  await client.call("delete", "/conversations/{id}", { path: { id: made.id } });
  await assert.rejects(client.call("get", "/conversations/{id}", { path: { id: made.id } }), (e) => {
    assert.ok(e instanceof Problem);
    assert.deepEqual([e.status, e.code, e.passing], [404, "not_found", false]);
    assert.notEqual(e.requestId, "");
    return true;
  });
  await assert.rejects(client.call("post", "/conversations", { body: { importance_level: 11 } }), (e) => {
    assert.ok(e instanceof Problem && e.code === "invalid_input" && e.errors.length === 1);
    return true;
  });
});

test("lists come page by page", async () => {
  const client = await signedIn("bob");
  for (const title of ["one", "two", "three"]) {
    await client.call("post", "/conversations", { body: { title } });
  }
  const titles: string[] = [];
  for await (const c of client.list("/conversations", { query: { limit: 2, sort: "created_at" } })) {
    titles.push(c.title);
  }
  assert.deepEqual(titles, ["three", "two", "one"]);
});

test("a token that was refused is renewed once, whoever finds out", async () => {
  let refreshes = 0;
  const client = await signedIn("eve", {
    fetch: (url, init) => {
      refreshes += String(url).endsWith("/auth/refresh") ? 1 : 0;
      return fetch(url, init);
    },
  });
  const refresh = client.tokens?.refresh ?? "";
  let kept: unknown;
  let asked = 0;
  let told = () => {};
  const renewed = new Promise<void>((resolve) => (told = resolve));
  const stale = new Client({
    baseUrl: base,
    tokens: { access: "stale", refresh },
    onTokens: (t) => {
      kept = t;
      told();
    },
    fetch: async (url, init) => {
      const renewal = String(url).endsWith("/auth/refresh");
      refreshes += renewal ? 1 : 0;
      const late = !renewal && ++asked === 1; // it hears of the refusal when the others have new tokens
      const answer = await fetch(url, init);
      if (late) {
        await renewed;
      }
      return answer;
    },
  });
  const seen = await Promise.all([1, 2, 3, 4, 5].map(() => stale.call("get", "/auth/profile", {})));
  assert.deepEqual(new Set(seen.map((u) => u.name)), new Set(["eve"]));
  assert.equal(refreshes, 1);
  assert.deepEqual(kept, stale.tokens);
  await stale.logout();
  assert.equal(stale.tokens, undefined);
  await assert.rejects(client.call("get", "/auth/profile", {}), (e) => e instanceof Problem && e.status === 401);
});

test("an answer is told as it is written", async () => {
  const client = await signedIn("fay");
  const { id } = await client.call("post", "/conversations", { body: { title: "x" } });
  const t = new Transcript();
  for await (const e of client.ask(id, "Hello?")) {
    t.take(e);
  }
  t.exactly("turn.completed");
});

test("two hundred broken connections over all nodes lose nothing and repeat nothing", async () => {
  const dice = random(4711);
  let cuts = 0;
  // Every stream goes to another node, and breaks after a few chunks, or before the first.
  const rough: typeof fetch = async (url, init) => {
    const at = new URL(String(url));
    const node = new URL(nodes[Math.floor(dice() * nodes.length)] ?? base);
    at.host = node.host;
    const response = await fetch(at, init);
    if (response.body === null || !(response.headers.get("Content-Type") ?? "").startsWith("text/event-stream")) {
      return response;
    }
    let left = Math.floor(dice() * 4);
    const cut = new TransformStream<Uint8Array, Uint8Array>({
      transform(chunk, c) {
        if (left-- > 0) {
          c.enqueue(chunk);
          return;
        }
        cuts++;
        c.enqueue(chunk.slice(0, Math.floor(dice() * chunk.length)));
        if (dice() < 0.5) {
          c.error(new TypeError("the connection broke"));
        } else {
          c.terminate();
        }
      },
    });
    return new Response(response.body.pipeThrough(cut), { status: response.status, headers: response.headers });
  };
  const client = await signedIn("gil", { fetch: rough });
  const { id } = await client.call("post", "/conversations", { body: { title: "x" } });
  const t = new Transcript();
  const options = { attempts: 1000, pause: 1 };
  for await (const e of client.ask(id, "Tell me a saga", options)) {
    t.take(e);
  }
  t.exactly("turn.completed");
  // It was stored once, however often it was sent.
  const page = await client.call("get", "/conversations/{id}/messages", { path: { id } });
  assert.deepEqual(page.data.map((m) => m.role), ["assistant", "user"]);
  const turn = t.end?.type === "turn.completed" ? t.end.data.turn.id : "";
  while (cuts < 200) {
    const again = new Transcript();
    for await (const e of client.follow(id, turn, options)) {
      again.take(e);
    }
    again.exactly("turn.completed");
    assert.equal(again.text, t.text);
  }
});

test("a turn is stopped from another node, and whoever stops reading hangs up", async () => {
  const client = await signedIn("hal");
  const elsewhere = new Client({ baseUrl: nodes.at(-1) ?? base, ...(client.tokens === undefined ? {} : { tokens: client.tokens }) });
  const { id } = await client.call("post", "/conversations", { body: { title: "x" } });
  let turn = "";
  for await (const e of client.ask(id, "Tell me an epic")) {
    if (e.type === "turn.started") {
      turn = e.data.turn.id;
    } else if (e.type === "message.delta" && e.data.offset > 20) {
      break;
    }
  }
  const ended = await elsewhere.stop(id, turn);
  assert.equal(ended.state, "stopped");
  const t = new Transcript();
  for await (const e of client.follow(id, turn)) {
    t.take(e);
  }
  t.exactly("turn.stopped");
  const aborted = AbortSignal.abort(new Error("enough"));
  await assert.rejects(client.follow(id, turn, { signal: aborted }).next(), /enough/);
});

test("a server that is not there ends in an error that says so", async () => {
  const client = new Client({ baseUrl: "http://127.0.0.1:1", attempts: 2 });
  await assert.rejects(client.call("get", "/health", {}), TypeError);
  await assert.rejects(client.follow("conv_x", "turn_x", { attempts: 1 }).next(), StreamBroken);
});
