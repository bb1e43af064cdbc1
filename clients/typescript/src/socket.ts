import { Problem } from "./problem.js";
import { Backoff, wait } from "./wait.js";

/** An event of the log, as a room hears of it. */
export interface RoomEvent {
  id: string;
  /** Its position in the log of the room's database. */
  seq: number;
  room_id: string;
  type: string;
  subject: string;
  actor: { id: string | null; name: string };
  created_at: string;
  data: Record<string, unknown>;
}

/** What a socket tells. */
export type Frame =
  | { type: "connected"; data: { user_id: string; name: string; session_id: string; expires_at: string } }
  | { type: "event"; data: RoomEvent }
  | { type: "message.delta"; data: { room_id: string; turn_id: string; message_id: string; offset: number; text: string } }
  | { type: "typing"; data: { room_id: string; user_id: string; name?: string; is_typing: boolean } }
  | { type: "presence"; data: { room_id: string; user_id: string; name?: string; state: string } }
  | { type: "room_joined"; data: { room_id: string; members: { user_id: string; name: string }[]; seq: number } }
  | { type: "room_left"; data: { room_id: string; reason: string } }
  /** What was missed is too old to be told: read the room again, then go on from `seq`. */
  | { type: "resync"; data: { room_id: string; seq: number } }
  | { type: "job"; data: Record<string, unknown> }
  | { type: "error"; data: { code: string; detail: string; reconnect?: boolean; retry_after?: number } };

export interface SocketOptions {
  /** A WebSocket class where there is no global one: Node before version 22. */
  WebSocket?: new (url: string) => WebSocketLike;
  /** Frames that wait for whoever reads; with more, the socket leaves and resumes later. Default 1000. */
  buffer?: number;
  /** Milliseconds before it comes back after the first break; they double up to ten seconds. Default 250. */
  pause?: number;
  signal?: AbortSignal;
}

/** The part of a WebSocket that is used. */
export interface WebSocketLike {
  readonly readyState: number;
  send(text: string): void;
  close(code?: number, reason?: string): void;
  addEventListener(type: "open" | "message" | "close" | "error", listener: (event: never) => void): void;
}

/** Why a socket is closed for good, or a request got no reply. */
export class SocketClosed extends Error {
  override readonly name = "SocketClosed";

  constructor(
    /** The close code; 1006 when the connection broke. */
    readonly code: number,
    reason: string,
    options?: ErrorOptions,
  ) {
    super(reason === "" ? `the connection ended with code ${code}` : reason, options);
  }
}

interface Room {
  /** The last event that was told, or where the room was joined. */
  seq: number | undefined;
}

interface Pending {
  resolve: (data: unknown) => void;
  reject: (error: unknown) => void;
}

const frameKinds = new Set<string>(["connected", "event", "message.delta", "typing", "presence", "room_joined", "room_left", "resync", "job", "error"]);

/** How many events are remembered, since one may come through two rooms. */
const remembered = 1000;

/**
 * A WebSocket that stays: it reconnects with a fresh ticket, joins its rooms again from where it was, and tells each event
 * once. Read it with `for await`; it ends when it is closed, and throws when the server does not want it back.
 */
export class Socket implements AsyncIterable<Frame> {
  readonly #url: string;
  readonly #ticket: () => Promise<string>;
  readonly #renew: (() => Promise<string>) | undefined;
  readonly #options: SocketOptions;
  readonly #rooms = new Map<string, Room>();
  readonly #pending = new Map<string, Pending>();
  readonly #texts = new Map<string, number>();
  readonly #seen = new Set<string>();
  readonly #buffer: number;
  #queue: Frame[] = [];
  #wake: (() => void) | undefined;
  #room: (() => void) | undefined;
  #now: WebSocketLike | undefined;
  #ready = false;
  #ids = 0;
  #closed = false;
  #failure: unknown;

  /** Use {@link Client.connect}. */
  constructor(url: string, ticket: () => Promise<string>, options: SocketOptions, renew?: () => Promise<string>) {
    this.#url = url;
    this.#ticket = ticket;
    this.#renew = renew;
    this.#options = options;
    this.#buffer = options.buffer ?? 1000;
    options.signal?.addEventListener("abort", () => this.close(), { once: true });
    void this.#run();
  }

  /** Joins a room now and after every reconnect; with `afterSeq`, what happened since comes first. */
  join(room: string, afterSeq?: number): void {
    this.#rooms.set(room, { seq: afterSeq });
    if (this.#ready) {
      this.#join(room);
    }
  }

  /** Leaves a room. */
  leave(room: string): void {
    this.#rooms.delete(room);
    if (this.#ready) {
      this.#say("leave_room", { room_id: room });
    }
  }

  /** Tells the others in a room that somebody types, or no longer does. Nobody minds if it is lost. */
  typing(room: string, isTyping: boolean): void {
    if (this.#ready) {
      this.#say("typing", { room_id: room, is_typing: isTyping });
    }
  }

  /**
   * Sends a frame and waits for its reply: `send_message`, `stop_turn`. When the connection breaks before that, it throws, and
   * nobody knows whether it was done; what must happen once goes over HTTP with an `Idempotency-Key`.
   */
  request(type: "send_message" | "stop_turn" | "ping", data: Record<string, unknown>): Promise<unknown> {
    if (!this.#ready) {
      return Promise.reject(new SocketClosed(1006, "the socket is not connected at the moment"));
    }
    const id = String(++this.#ids);
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject });
      this.#say(type, data, id);
    });
  }

  /** Ends the socket. */
  close(): void {
    this.#end(undefined);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Frame, void, undefined> {
    for (;;) {
      const frame = this.#queue.shift();
      if (frame !== undefined) {
        if (this.#queue.length <= this.#buffer / 2) {
          this.#room?.();
        }
        yield frame;
        continue;
      }
      if (this.#closed) {
        if (this.#failure !== undefined) {
          throw this.#failure;
        }
        return;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  #end(failure: unknown): void {
    if (this.#closed) {
      return;
    }
    this.#closed = true;
    this.#failure = failure;
    this.#now?.close(1000);
    this.#lose(new SocketClosed(1000, "the socket was closed"));
    this.#wake?.();
    this.#room?.();
  }

  #lose(error: SocketClosed): void {
    this.#ready = false;
    for (const p of this.#pending.values()) {
      p.reject(error);
    }
    this.#pending.clear();
  }

  async #run(): Promise<void> {
    const backoff = new Backoff(this.#options.pause ?? 250, 10_000);
    while (!this.#closed) {
      while (this.#queue.length > this.#buffer / 2 && !this.#closed) {
        await new Promise<void>((resolve) => {
          this.#room = resolve;
        });
      }
      let pause = 0;
      try {
        const ended = await this.#once(await this.#ticket(), () => backoff.reset());
        // From 4400 to 4499 something has to change first. A token that expired is: the next ticket is asked for with a new one.
        if (ended.code >= 4400 && ended.code < 4500 && ended.code !== 4401) {
          this.#end(ended);
          return;
        }
      } catch (e) {
        if (e instanceof Problem && !e.passing) {
          this.#end(e);
          return;
        }
        pause = e instanceof Problem ? 1000 * (e.retryAfter ?? 0) : 0;
      }
      if (!this.#closed) {
        await wait(Math.max(pause, backoff.next()));
      }
    }
  }

  /** One connection: from its ticket until it ends. */
  #once(ticket: string, connected: () => void): Promise<SocketClosed> {
    const make = this.#options.WebSocket ?? (globalThis as { WebSocket?: new (url: string) => WebSocketLike }).WebSocket;
    if (make === undefined) {
      throw new Problem(0, { code: "no_websocket", detail: "there is no WebSocket here: give one in the options" });
    }
    const ws = new make(`${this.#url}?ticket=${encodeURIComponent(ticket)}`);
    this.#now = ws;
    let renewal: ReturnType<typeof setTimeout> | undefined;
    return new Promise((resolve) => {
      const over = (code: number, reason: string) => {
        clearTimeout(renewal);
        const error = new SocketClosed(code, reason);
        this.#lose(error);
        resolve(error);
      };
      ws.addEventListener("error", () => undefined); // close follows
      ws.addEventListener("close", ((e: { code: number; reason: string }) => over(e.code, e.reason)) as (event: never) => void);
      ws.addEventListener("message", ((e: { data: string }) => {
        const frame = JSON.parse(e.data) as { type: string; id?: string; data: Record<string, unknown> };
        if (frame.type === "connected") {
          clearTimeout(renewal);
          renewal = this.#renewLater(String(frame.data["expires_at"] ?? ""));
          if (!this.#ready) {
            connected();
            this.#ready = true;
            for (const room of this.#rooms.keys()) {
              this.#join(room);
            }
          }
        }
        this.#take(frame);
        if (this.#queue.length > this.#buffer) {
          ws.close(4000, "reading too slowly"); // and resume when there is room
        }
      }) as (event: never) => void);
      if (this.#closed) {
        ws.close(1000);
      }
    });
  }

  /** Shows a new token before the old one expires, so that the connection may stay. */
  #renewLater(expiresAt: string): ReturnType<typeof setTimeout> | undefined {
    const left = Date.parse(expiresAt) - Date.now();
    if (this.#renew === undefined || Number.isNaN(left)) {
      return undefined;
    }
    const renew = this.#renew;
    return setTimeout(
      () => {
        renew().then(
          (token) => this.#ready && this.#say("auth", { token }),
          () => undefined, // then the server ends the connection, and the next ticket tells why
        );
      },
      Math.max(0, left - Math.min(30_000, left / 2)),
    );
  }

  #join(room: string): void {
    const seq = this.#rooms.get(room)?.seq;
    this.#say("join_room", seq === undefined ? { room_id: room } : { room_id: room, after_seq: seq });
  }

  #say(type: string, data: Record<string, unknown>, id?: string): void {
    if (this.#now?.readyState === 1) {
      this.#now.send(JSON.stringify(id === undefined ? { type, data } : { type, data, id }));
    }
  }

  /** Takes a frame: replies go to who asked, what was told before goes nowhere, the rest to who reads. */
  #take(frame: { type: string; id?: string; data: Record<string, unknown> }): void {
    const asked = frame.id === undefined ? undefined : this.#pending.get(frame.id);
    if (frame.id !== undefined && asked !== undefined) {
      this.#pending.delete(frame.id);
      if (frame.type === "error") {
        asked.reject(new Problem(0, frame.data));
      } else {
        asked.resolve(frame.data);
      }
      return;
    }
    if (!frameKinds.has(frame.type)) {
      return; // a newer server's
    }
    const f = frame as Frame;
    switch (f.type) {
      case "room_joined":
        this.#seqOf(f.data.room_id, (known) => known ?? f.data.seq);
        break;
      case "resync":
        this.#seqOf(f.data.room_id, () => f.data.seq);
        break;
      case "room_left":
        this.#rooms.delete(f.data.room_id);
        break;
      case "event": {
        const { id, seq, room_id, type, subject } = f.data;
        const known = this.#rooms.get(room_id)?.seq;
        if (known !== undefined && seq <= known) {
          return;
        }
        this.#seqOf(room_id, () => seq);
        if (type === "message.completed") {
          this.#texts.delete(subject);
        }
        if (this.#seen.has(id)) {
          return;
        }
        this.#seen.add(id);
        if (this.#seen.size > remembered) {
          this.#seen.delete(this.#seen.values().next().value as string);
        }
        break;
      }
      case "message.delta": {
        const end = f.data.offset + f.data.text.length;
        const have = this.#texts.get(f.data.message_id) ?? f.data.offset;
        if (end <= have) {
          return;
        }
        this.#texts.set(f.data.message_id, end);
        if (f.data.offset < have) {
          this.#push({ type: f.type, data: { ...f.data, offset: have, text: f.data.text.slice(have - f.data.offset) } });
          return;
        }
        break;
      }
    }
    this.#push(f);
  }

  #seqOf(room: string, next: (known: number | undefined) => number): void {
    const r = this.#rooms.get(room);
    if (r !== undefined) {
      r.seq = next(r.seq);
    }
  }

  #push(frame: Frame): void {
    this.#queue.push(frame);
    this.#wake?.();
  }
}
