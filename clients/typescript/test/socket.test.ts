// What a socket makes of what a server says, with a server that a test plays.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Problem, SocketClosed, type Frame } from "../src/index.js";
import { Socket, type SocketOptions, type WebSocketLike } from "../src/socket.js";

type Sent = { type: string; id?: string; data: Record<string, unknown> };

/** The other end of one connection. */
class Line implements WebSocketLike {
  readyState = 1;
  readonly sent: Sent[] = [];
  readonly #listeners = new Map<string, ((event: never) => void)[]>();

  constructor(readonly url: string) {}

  addEventListener(type: string, listener: (event: never) => void): void {
    this.#listeners.set(type, [...(this.#listeners.get(type) ?? []), listener]);
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text) as Sent);
  }

  close(code = 1000): void {
    this.end(code);
  }

  end(code: number): void {
    if (this.readyState !== 3) {
      this.readyState = 3;
      this.#tell("close", { code, reason: "" });
    }
  }

  says(type: string, data: Record<string, unknown>, id?: string): void {
    this.#tell("message", { data: JSON.stringify(id === undefined ? { type, data } : { type, data, id }) });
  }

  connected(): void {
    this.says("connected", { user_id: "usr_1", name: "Ada", session_id: "ses_1", expires_at: new Date(Date.now() + 600_000).toISOString() });
  }

  event(room: string, seq: number, type = "message.created", subject = `msg_${seq}`): void {
    this.says("event", { id: `evt_${seq}`, seq, room_id: room, type, subject, actor: { name: "Ada" }, created_at: "", data: {} });
  }

  #tell(type: string, event: unknown): void {
    for (const l of this.#listeners.get(type) ?? []) {
      l(event as never);
    }
  }
}

/** A server that hands its connections to the test. */
function server(options: SocketOptions = {}, ticket: (n: number) => Promise<string> = (n) => Promise.resolve(`t${n}`)) {
  const lines: Line[] = [];
  const waiting: ((line: Line) => void)[] = [];
  let tickets = 0;
  class Ours extends Line {
    constructor(url: string) {
      super(url);
      const next = waiting.shift();
      if (next === undefined) {
        lines.push(this);
      } else {
        next(this);
      }
    }
  }
  const socket = new Socket("ws://x/ws", () => ticket(++tickets), { WebSocket: Ours, ...options });
  return {
    socket,
    next: () => new Promise<Line>((resolve) => {
      const line = lines.shift();
      if (line === undefined) {
        waiting.push(resolve);
      } else {
        setImmediate(() => resolve(line)); // when its listeners are there
      }
    }).then((line) => new Promise<Line>((resolve) => setImmediate(() => resolve(line)))),
  };
}

async function take(socket: Socket, n: number): Promise<Frame[]> {
  const frames: Frame[] = [];
  for await (const f of socket) {
    if (f.type !== "connected" && f.type !== "room_joined") {
      frames.push(f);
    }
    if (frames.length === n) {
      break;
    }
  }
  return frames;
}

const seqs = (frames: Frame[]) => frames.map((f) => (f.type === "event" || f.type === "resync" ? f.data.seq : f.type));

test("rooms are joined again from where they were, and each event is told once", async () => {
  const { socket, next } = server();
  socket.join("conv_1");
  socket.join("conv_2", 40);
  const one = await next();
  assert.equal(one.url, "ws://x/ws?ticket=t1");
  one.connected();
  assert.deepEqual(one.sent, [
    { type: "join_room", data: { room_id: "conv_1" } },
    { type: "join_room", data: { room_id: "conv_2", after_seq: 40 } },
  ]);
  one.says("room_joined", { room_id: "conv_1", members: [], seq: 7 });
  one.event("conv_1", 8);
  one.event("conv_2", 41);
  one.event("conv_2", 42);
  one.end(1006);

  const two = await next();
  assert.equal(two.url, "ws://x/ws?ticket=t2", "a ticket works once");
  two.connected();
  assert.deepEqual(two.sent.map((f) => f.data["after_seq"]), [8, 42]);
  two.event("conv_1", 8);
  two.event("conv_1", 9);
  two.event("conv_2", 9); // the same event in another room: told, and known
  two.says("resync", { room_id: "conv_2", seq: 100 });
  two.event("conv_2", 101);
  assert.deepEqual(seqs(await take(socket, 6)), [8, 41, 42, 9, 100, 101]);
  two.says("room_left", { room_id: "conv_1", reason: "removed" });
  two.end(4508);

  const three = await next();
  three.connected();
  assert.deepEqual(three.sent, [{ type: "join_room", data: { room_id: "conv_2", after_seq: 101 } }]);
  socket.close();
  assert.equal(three.readyState, 3);
});

test("pieces of an answer are told once", async () => {
  const { socket, next } = server();
  const line = await next();
  line.connected();
  const delta = (offset: number, text: string) => line.says("message.delta", { room_id: "conv_1", turn_id: "turn_1", message_id: "msg_1", offset, text });
  delta(0, "a harbour");
  delta(0, "a harbour");
  delta(2, "harbour at night");
  delta(18, "!");
  line.says("typing", { room_id: "conv_1", user_id: "usr_2", is_typing: true });
  const frames = await take(socket, 4);
  assert.equal(frames.map((f) => (f.type === "message.delta" ? f.data.text : f.type)).join("|"), "a harbour| at night|!|typing");
  socket.close();
});

test("requests get their replies, or hear that nobody knows", async () => {
  const { socket, next } = server();
  await assert.rejects(socket.request("ping", {}), SocketClosed);
  const line = await next();
  line.connected();
  const [sent, refused, lost] = [socket.request("send_message", { room_id: "conv_1", content: "hi" }), socket.request("stop_turn", {}), socket.request("ping", {})];
  line.says("message_sent", { turn: "turn_1" }, "1");
  line.says("error", { code: "not_found", detail: "there is no such turn" }, "2");
  assert.deepEqual(await sent, { turn: "turn_1" });
  await assert.rejects(refused, (e) => e instanceof Problem && e.code === "not_found");
  line.end(4503);
  await assert.rejects(lost, (e) => e instanceof SocketClosed && e.code === 4503);
  socket.close();
});

test("a server that wants something changed first is not asked again", async () => {
  const { socket, next } = server();
  const line = await next();
  line.connected();
  line.says("error", { code: "throttled", detail: "slow down", reconnect: false });
  line.end(4429);
  const told: string[] = [];
  await assert.rejects(
    async () => {
      for await (const f of socket) {
        told.push(f.type);
      }
    },
    (e) => e instanceof SocketClosed && e.code === 4429,
  );
  assert.deepEqual(told, ["connected", "error"]);
});

test("a session that is over ends the socket, a server that is away does not", async () => {
  const { socket, next } = server({}, (n) => {
    if (n === 1) {
      return Promise.reject(new TypeError("fetch failed"));
    }
    return n === 2 ? Promise.resolve("t2") : Promise.reject(new Problem(401, { code: "session_ended" }));
  });
  const line = await next();
  line.connected();
  line.end(4401);
  await assert.rejects(take(socket, 100), (e) => e instanceof Problem && e.code === "session_ended");
});

test("who reads too slowly leaves, and resumes when there is room", async () => {
  const { socket, next } = server({ buffer: 10 });
  socket.join("conv_1", 0);
  const one = await next();
  one.connected();
  for (let seq = 1; one.readyState === 1; seq++) {
    one.event("conv_1", seq);
  }
  const early = await take(socket, 5);
  const two = next();
  const rest = take(socket, 10);
  const line = await two;
  line.connected();
  const after = Number(line.sent[0]?.data["after_seq"]);
  for (let seq = after + 1; seq <= 15; seq++) {
    line.event("conv_1", seq);
  }
  assert.deepEqual(seqs([...early, ...(await rest)]), Array.from({ length: 15 }, (_, i) => i + 1));
  socket.close();
});
