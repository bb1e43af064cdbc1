import assert from "node:assert/strict";
import { test } from "node:test";
import { serverEvents, type ServerEvent } from "../src/sse.js";

async function read(text: string, size: number): Promise<ServerEvent[]> {
  const bytes = new TextEncoder().encode(text);
  const stream = new ReadableStream<Uint8Array>({
    start(c) {
      for (let i = 0; i < bytes.length; i += size) {
        c.enqueue(bytes.slice(i, i + size));
      }
      c.close();
    },
  });
  const out: ServerEvent[] = [];
  for await (const e of serverEvents(stream)) {
    out.push(e);
  }
  return out;
}

test("events are read however they are cut", async () => {
  const text = "retry: 2000\n\n: a comment\n\nid: 3\nevent: message.delta\ndata: {\"text\":\"é🙂\"}\n\nevent:ping\r\ndata:{}\r\n\r\ndata: a\ndata: b\n\nid: 4\ndata: half";
  const want: ServerEvent[] = [
    { id: "3", type: "message.delta", data: '{"text":"é🙂"}' },
    { id: "", type: "ping", data: "{}" },
    { id: "", type: "message", data: "a\nb" },
  ];
  for (const size of [1, 2, 3, 7, 1000]) {
    assert.deepEqual(await read(text, size), want);
  }
});
