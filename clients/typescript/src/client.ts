import type { CallOptions, Method, PathsWith, Result } from "./call.js";
import { follow, type FollowOptions, type Open, type TurnEvent } from "./follow.js";
import { Problem } from "./problem.js";
import type { components } from "./schema.js";
import { Socket, type SocketOptions } from "./socket.js";
import { Backoff, wait } from "./wait.js";

type Schemas = components["schemas"];

/** What signing in gives. */
export interface Tokens {
  access: string;
  refresh?: string;
}

export interface ClientOptions {
  /** Where the server is: `https://chat.example.org`. */
  baseUrl: string;
  /** From an earlier sign-in, or an API key as `access`. */
  tokens?: Tokens;
  /** Hears of new tokens, so that they can be kept. */
  onTokens?: (tokens: Tokens | undefined) => void;
  /** Another fetch; default: the global one. */
  fetch?: typeof fetch;
  /** How often a request that may be repeated is sent at most; default 4. */
  attempts?: number;
}

/** The client of one account. */
export class Client {
  readonly baseUrl: string;
  readonly #fetch: typeof fetch;
  readonly #attempts: number;
  readonly #onTokens: ((tokens: Tokens | undefined) => void) | undefined;
  #tokens: Tokens | undefined;
  #refreshing: Promise<void> | undefined;

  constructor(options: ClientOptions) {
    this.baseUrl = options.baseUrl.replace(/\/+$/, "");
    this.#fetch = options.fetch ?? ((...args) => fetch(...args));
    this.#attempts = options.attempts ?? 4;
    this.#onTokens = options.onTokens;
    this.#tokens = options.tokens;
  }

  /** The tokens in use. */
  get tokens(): Tokens | undefined {
    return this.#tokens;
  }

  /** Makes an account and signs in to it. */
  async register(body: Schemas["Registration"]): Promise<Schemas["User"]> {
    return this.#signedIn(await this.call("post", "/auth/register", { body }));
  }

  /** Signs in. */
  async login(body: Schemas["Login"]): Promise<Schemas["User"]> {
    return this.#signedIn(await this.call("post", "/auth/login", { body }));
  }

  /** Ends the session. */
  async logout(): Promise<void> {
    await this.call("post", "/auth/logout", {});
    this.#keep(undefined);
  }

  /**
   * Calls any operation: `client.call("get", "/conversations/{id}", { path: { id } })`. Types are those of the OpenAPI
   * document. A refusal throws a {@link Problem}. What may be sent again is: reading, whatever has an `Idempotency-Key`, and
   * what the server did not take.
   */
  async call<M extends Method, P extends PathsWith<M>>(method: M, path: P, options: CallOptions<M, P>): Promise<Result<M, P>> {
    const o = options as LooseOptions;
    const response = await this.#request(method, path, o);
    if (response.status === 204) {
      return undefined as Result<M, P>;
    }
    return (await response.json()) as Result<M, P>;
  }

  /**
   * Goes through a list page by page: `for await (const c of client.list("/conversations", {}))`.
   */
  async *list<P extends PathsWith<"get">>(path: P, options: CallOptions<"get", P>): AsyncGenerator<Item<Result<"get", P>>, void, undefined> {
    let o = options as LooseOptions;
    for (;;) {
      const page = (await (await this.#request("get", path, o)).json()) as { data: Item<Result<"get", P>>[]; next_cursor: string | null };
      yield* page.data;
      if (page.next_cursor === null) {
        return;
      }
      o = { ...o, query: { ...o.query, cursor: page.next_cursor } };
    }
  }

  /**
   * Sends a message and tells of its answer as it is written. The message is stored once, however often the connection breaks;
   * the answer is the server's business and goes on without anybody reading.
   */
  async *ask(conversation: string, message: string | Omit<Schemas["SendBody"], "stream" | "reply">, options: FollowOptions = {}): AsyncGenerator<TurnEvent, void, undefined> {
    const body = { ...(typeof message === "string" ? { content: message } : message), stream: true };
    const key = crypto.randomUUID();
    let turn = "";
    const open: Open = (last, signal) =>
      turn === ""
        ? this.#open("post", "/conversations/{id}/messages", { path: { id: conversation }, body, signal, headers: { "Idempotency-Key": key } })
        : this.#events(conversation, turn, last, signal);
    for await (const e of follow(open, options)) {
      if (e.type === "turn.started") {
        turn = e.data.turn.id;
      }
      yield e;
    }
  }

  /** Tells of a turn, wherever it runs, from its start or after an event, to its end. */
  follow(conversation: string, turn: string, options: FollowOptions = {}): AsyncGenerator<TurnEvent, void, undefined> {
    return follow((last, signal) => this.#events(conversation, turn, last, signal), options);
  }

  /** Stops a turn, wherever it runs. What had arrived is kept. */
  stop(conversation: string, turn: string): Promise<Schemas["Turn"]> {
    return this.call("post", "/conversations/{id}/turns/{turn_id}/stop", { path: { id: conversation, turn_id: turn } });
  }

  /** Opens a WebSocket that stays joined to its rooms. */
  connect(options: SocketOptions = {}): Socket {
    return new Socket(`${this.baseUrl.replace(/^http/, "ws")}/ws`, () => this.#ticket(), options, () => this.#fresh());
  }

  /** A token that has just been given. */
  async #fresh(): Promise<string> {
    const refresh = this.#tokens?.refresh;
    if (refresh !== undefined) {
      await this.#renewedBy(refresh);
    }
    return this.#tokens?.access ?? "";
  }

  async #ticket(): Promise<string> {
    const answer = await this.#request("post", "/auth/ws-ticket", {});
    return ((await answer.json()) as { ticket: string }).ticket;
  }

  #events(conversation: string, turn: string, last: string | undefined, signal: AbortSignal): Promise<Response> {
    return this.#open("get", "/conversations/{id}/turns/{turn_id}/events", {
      path: { id: conversation, turn_id: turn },
      signal,
      headers: last === undefined ? {} : { "Last-Event-ID": last },
    });
  }

  /** Sends a request whose answer is a stream, once; who follows it repeats it. */
  async #open(method: Method, path: string, o: LooseOptions): Promise<Response> {
    const headers = { ...o.headers, Accept: "text/event-stream" };
    const used = this.#tokens?.access;
    let response = await this.#send(method, path, { ...o, headers });
    if (response.status === 401 && (await this.#renewed(response, used))) {
      response = await this.#send(method, path, { ...o, headers });
    }
    return response;
  }

  async #request(method: Method, path: string, o: LooseOptions): Promise<Response> {
    // Of anything else nobody knows whether it was done when no answer came.
    const repeatable = method === "get" || o.headers?.["Idempotency-Key"] !== undefined;
    const backoff = new Backoff(200, 5000);
    for (let attempt = 1; ; attempt++) {
      let problem: unknown;
      const used = this.#tokens?.access;
      try {
        const response = await this.#send(method, path, o);
        if (response.ok) {
          return response;
        }
        if (response.status === 401 && attempt === 1 && (await this.#renewed(response, used))) {
          continue;
        }
        problem = await Problem.of(response);
      } catch (e) {
        o.signal?.throwIfAborted();
        problem = e;
      }
      const again = problem instanceof Problem ? problem.status === 429 || (repeatable && problem.passing) : repeatable;
      if (!again || attempt >= this.#attempts) {
        throw problem;
      }
      const after = problem instanceof Problem ? problem.retryAfter : undefined;
      await wait(after === undefined ? backoff.next() : 1000 * after, o.signal);
    }
  }

  #send(method: Method, path: string, o: LooseOptions): Promise<Response> {
    const url = new URL(`${this.baseUrl}/api/v1${path.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(o.path?.[name] ?? ""))}`);
    for (const [name, value] of Object.entries(o.query ?? {})) {
      for (const one of Array.isArray(value) ? value : [value]) {
        if (one !== undefined && one !== null) {
          url.searchParams.append(name, String(one));
        }
      }
    }
    const headers = new Headers(o.headers);
    if (this.#tokens !== undefined && o.anonymous !== true) {
      headers.set("Authorization", `Bearer ${this.#tokens.access}`);
    }
    const init: RequestInit = { method: method.toUpperCase(), headers };
    if (o.body !== undefined) {
      headers.set("Content-Type", "application/json");
      init.body = JSON.stringify(o.body);
    }
    if (o.signal !== undefined) {
      init.signal = o.signal;
    }
    return this.#fetch(url, init);
  }

  /**
   * Gets new tokens for those that were used and refused. Requests that are refused at once share one refresh: a token works
   * once. Who hears of it when there are new ones already takes those.
   */
  async #renewed(refused: Response, used: string | undefined): Promise<boolean> {
    const before = this.#tokens;
    if (before?.refresh === undefined) {
      return false;
    }
    await refused.body?.cancel();
    if (before.access === used) {
      await this.#renewedBy(before.refresh);
    }
    return this.#tokens !== undefined;
  }

  #renewedBy(refresh: string): Promise<void> {
    this.#refreshing ??= this.#refresh(refresh).finally(() => {
      this.#refreshing = undefined;
    });
    return this.#refreshing;
  }

  async #refresh(token: string): Promise<void> {
    const response = await this.#send("post", "/auth/refresh", { body: { refresh_token: token }, anonymous: true });
    if (response.ok) {
      this.#signedIn((await response.json()) as Schemas["Grant"]);
    } else if (response.status === 401) {
      this.#keep(undefined); // the session is over
    } else {
      throw await Problem.of(response);
    }
  }

  #signedIn(grant: Schemas["Grant"]): Schemas["User"] {
    if (grant.access_token !== undefined) {
      this.#keep({ access: grant.access_token, ...(grant.refresh_token === undefined ? {} : { refresh: grant.refresh_token }) });
    }
    return grant.user;
  }

  #keep(tokens: Tokens | undefined): void {
    this.#tokens = tokens;
    this.#onTokens?.(tokens);
  }
}

/** Options as the implementation sees them; callers see those of {@link CallOptions}. */
interface LooseOptions {
  path?: Record<string, string>;
  query?: Record<string, unknown>;
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
  /** Without a token. */
  anonymous?: boolean;
}

type Item<R> = R extends { data: (infer I)[] } ? I : never;
