/* The way to the service: one key in memory, plain requests, and events that come back by themselves. */

let key = "";

export function useKey(text) { key = text.trim(); }

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? problem.title ?? `the service answered ${status}`);
    this.status = status;
    this.code = problem.code ?? "";
  }
}

function headers(more) { return key ? { ...more, Authorization: `Bearer ${key}` } : more; }

export async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers(options.headers ?? {}), cache: "no-store" });
  if (!answer.ok && answer.status !== 304) throw new Refused(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

/* Yield the messages of an event stream: {id, event, data}. */
async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", message = { data: "" };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") { if (message.data || message.id) yield message; message = { data: "" }; continue; }
      const at = line.indexOf(":"), field = line.slice(0, at), text = line.slice(at + 1).trimStart();
      if (field === "data") message.data += text; else if (field) message[field] = text;
    }
  }
}

/* Listen until the signal; after each loss begin again, behind the last id, a little later each time. */
export async function listen(path, { signal, hear, lost }) {
  let last = "", pause = 500;
  while (!signal.aborted) {
    try {
      const answer = await ask(path, { signal, headers: last ? { "Last-Event-ID": last } : {} });
      for await (const message of messages(answer.body)) {
        pause = 500;
        last = message.id ?? last;
        if (message.data) hear(message.event ?? "message", JSON.parse(message.data), message.id);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && [401, 403, 404].includes(error.status)) { lost(error); return; }
    }
    if (signal.aborted) return;
    lost(null);
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, 5000);
  }
}
