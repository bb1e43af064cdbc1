/** Waits, unless the signal says otherwise. */
export function wait(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Pauses between attempts: they double up to a limit, and chance spreads those of many clients. */
export class Backoff {
  #next: number;

  constructor(
    private readonly first: number,
    private readonly most: number,
  ) {
    this.#next = first;
  }

  next(): number {
    const pause = this.#next;
    this.#next = Math.min(this.most, 2 * pause);
    return pause / 2 + (Math.random() * pause) / 2;
  }

  reset(): void {
    this.#next = this.first;
  }
}
