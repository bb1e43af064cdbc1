/** One Server-Sent Event. */
export interface ServerEvent {
  id: string;
  type: string;
  data: string;
}

/** Reads Server-Sent Events until the stream ends. Half an event at the end of a broken stream counts as none. */
export async function* serverEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent, void, undefined> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let rest = "";
  let event: ServerEvent = { id: "", type: "message", data: "" };
  let some = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) {
        return;
      }
      rest += value;
      const lines = rest.split("\n");
      rest = lines.pop() ?? "";
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (some) {
            yield event;
          }
          event = { id: "", type: "message", data: "" };
          some = false;
          continue;
        }
        const colon = line.indexOf(":");
        const name = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
        if (name === "id") {
          event.id = text;
        } else if (name === "event") {
          event.type = text;
          some = true;
        } else if (name === "data") {
          event.data += (event.data === "" ? "" : "\n") + text;
          some = true;
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined); // it may be broken already
  }
}
