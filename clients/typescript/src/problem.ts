import type { components } from "./schema.js";

type Body = components["schemas"]["Problem"];

/** A request that was refused: the problem document of the server (RFC 9457). */
export class Problem extends Error {
  override readonly name = "Problem";
  /** Stable name of the problem; for programs. */
  readonly code: string;
  readonly status: number;
  /** Names the request in the server's log. */
  readonly requestId: string;
  /** Everything that is wrong with the input. */
  readonly errors: NonNullable<Body["errors"]>;
  /** Seconds to wait before the next attempt, when the server says so. */
  readonly retryAfter: number | undefined;

  constructor(status: number, body: Partial<Body>, retryAfter?: number) {
    super(body.detail ?? `the server answered with status ${status}`);
    this.status = status;
    this.code = body.code ?? "unknown";
    this.requestId = body.request_id ?? "";
    this.errors = body.errors ?? [];
    this.retryAfter = retryAfter;
  }

  /** The same request may work in a moment, on this server or another one. */
  get passing(): boolean {
    return this.code === "idempotency_in_progress" || this.status === 429 || this.status === 502 || this.status === 503 || this.status === 504;
  }

  static async of(response: Response): Promise<Problem> {
    let body: Partial<Body> = {};
    try {
      body = (await response.json()) as Body;
    } catch {
      // Something between us and the server answered.
    }
    const after = Number(response.headers.get("Retry-After") ?? Number.NaN);
    return new Problem(response.status, body, Number.isFinite(after) ? after : undefined);
  }
}
