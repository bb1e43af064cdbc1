import { Problem } from "./problem.js";
import type { components } from "./schema.js";
import { serverEvents } from "./sse.js";
import { Backoff, wait } from "./wait.js";

type Schemas = components["schemas"];

/** What is told of a turn, in this order: the start, that it waits (if its answer comes later), pieces of text, the message, the end. */
export type TurnEvent =
  | { type: "turn.started"; id: string; data: Schemas["StartedEvent"] }
  | { type: "turn.waiting"; id: string; data: Schemas["TurnEvent"] }
  | { type: "message.delta"; id: string; data: Schemas["DeltaEvent"] }
  | { type: "message.completed"; id: string; data: Schemas["MessageEvent"] }
  | {
      type: "turn.completed" | "turn.failed" | "turn.stopped" | "turn.interrupted";
      id: string;
      data: Schemas["TurnEvent"];
    };

export interface FollowOptions {
  /** The id of the last event that is known already. */
  lastEventId?: string;
  signal?: AbortSignal;
  /** How often in a row it may fail to get any further; default 10. */
  attempts?: number;
  /** Milliseconds before it asks again when it got no further; they double, up to 25 times as much. Default 200. */
  pause?: number;
}

/** A stream that could not be taken up again. `cause` is the last failure. */
export class StreamBroken extends Error {
  override readonly name = "StreamBroken";
}

const ends = new Set(["turn.completed", "turn.failed", "turn.stopped", "turn.interrupted"]);

/** How a stream is opened: at first, and after each event that was told. */
export type Open = (lastEventId: string | undefined, signal: AbortSignal) => Promise<Response>;

/**
 * Tells each event of a turn once and in order, up to its end, over as many connections as it takes. The server says
 * exactly what follows the last event, whichever server that is, so nothing is missing and nothing comes twice.
 */
export async function* follow(open: Open, options: FollowOptions): AsyncGenerator<TurnEvent, void, undefined> {
  const { signal, attempts = 10, pause: first = 200 } = options;
  const backoff = new Backoff(first, 25 * first);
  let last = options.lastEventId;
  let failures = 0;
  for (;;) {
    signal?.throwIfAborted();
    const over = new AbortController();
    let cause: unknown;
    let pause: number | undefined;
    try {
      const response = await open(last, signal === undefined ? over.signal : AbortSignal.any([signal, over.signal]));
      if (response.status === 204) {
        return; // there is nothing after that event
      }
      if (!response.ok || response.body === null) {
        throw await Problem.of(response);
      }
      for await (const e of serverEvents(response.body)) {
        if (e.id === "") {
          continue; // a ping
        }
        failures = 0;
        backoff.reset();
        last = e.id;
        yield { type: e.type, id: e.id, data: JSON.parse(e.data) } as TurnEvent;
        if (ends.has(e.type)) {
          return;
        }
      }
      cause = new Error("the stream ended before the turn did");
      pause = failures === 0 ? 0 : undefined; // a server that stops says goodbye like this
    } catch (e) {
      signal?.throwIfAborted();
      if (e instanceof Problem && !e.passing) {
        throw e;
      }
      cause = e;
      if (e instanceof Problem && e.retryAfter !== undefined) {
        pause = 1000 * e.retryAfter;
      }
    } finally {
      over.abort(); // who stops reading hangs up
    }
    if (++failures > attempts) {
      throw new StreamBroken(`the turn could not be followed after event ${last ?? "0"}`, { cause });
    }
    await wait(pause ?? backoff.next(), signal);
  }
}
