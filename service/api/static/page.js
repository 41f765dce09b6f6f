/* The page: one stream at a time, told by /live and /events, its past by /timeline. */

import { box } from "./ask.js";
import { charts } from "./charts.js";
import { ask, listen, Refused, useKey } from "./link.js";
import * as panels from "./panels.js";

const REFRESH_MS = 1000;
const byId = (id) => document.getElementById(id);
const draw = charts();
let now = about("", null);

/* What is known of the stream that is shown; each has its own, so that nothing late is mixed in. */
function about(root, input) {
  return { root, input, forgetting: null, etag: "", wanted: 0, drawn: 0, busy: false, leaving: new AbortController() };
}

function link(state, text) { byId("link").className = state; byId("link").textContent = text; }
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/* Read the past and the experts anew until what was wanted last is drawn; at most once a second. */
async function refresh(mine) {
  mine.wanted += 1;
  if (mine.busy) return;
  mine.busy = true;
  while (mine.drawn < mine.wanted && !mine.leaving.signal.aborted) {
    const wanted = mine.wanted;
    try { await read(mine); mine.drawn = wanted; } catch (error) {
      if (error instanceof Refused && [401, 403, 404].includes(error.status)) { link("off", error.message); break; }
    }
    await pause(REFRESH_MS);
  }
  mine.busy = false;
}

async function read(mine) {
  const { signal } = mine.leaving;
  const [past, info] = await Promise.all([
    ask(`${mine.root}/timeline`, { signal, headers: mine.etag ? { "If-None-Match": mine.etag } : {} }),
    ask(`${mine.root}/experts`, { signal }).then((answer) => answer.json()),
  ]);
  const told = past.status === 304 ? null : await past.json();
  if (signal.aborted) return;
  if (told) {
    mine.forgetting = told.forgetting;
    draw(told);
    mine.etag = past.headers.get("ETag") ?? "";
  }
  if (!info.classes) return;
  panels.experts(info.experts, mine.root);
  panels.classes(info);
}

function watch(mine) {
  const { signal } = mine.leaving;
  const lost = (refusal) => link("off", refusal ? refusal.message : "reconnecting");
  let version = -1;
  listen(`${mine.root}/live`, { signal, lost, hear: (_, told) => {
    link("on", "live");
    panels.tiles(told, mine.forgetting);
    if (told.model_version !== version) { version = told.model_version; refresh(mine); }
    panels.shares(told.answered_by);
  } });
  listen(`${mine.root}/events?after=0`, { signal, lost: () => {}, hear: (kind, told) => {
    if (kind === "gap") return;
    panels.event(kind, told);
    if (kind === "expanded") refresh(mine);
  } });
}

function choose(stream) {
  now.leaving.abort();
  now = about(stream.name === "default" ? "" : `/streams/${encodeURIComponent(stream.name)}`, stream.input);
  panels.forget();
  draw({ points: { samples: [], labelled: [], correct: [], experts: [], novelty: [] }, threshold: null });
  byId("ask-hint").textContent = stream.input ? `Samples are ${stream.input}; images are brought to that shape.` : "What a sample is will be known with the first batch.";
  watch(now);
}

/* Without the scope `read` only the box is of use: say so, and show nothing that would stay empty. */
function narrow(why) {
  byId("seen").hidden = true;
  byId("door-why").textContent = why;
  byId("door").hidden = false;
}

/* What a sample is, as far as a key may know that may only predict. */
async function learnInput() {
  try {
    const { inputs } = await (await ask("v2/models/default")).json();
    now = about("", `sample:${inputs[0].shape.slice(1).join("x")}`);
  } catch { now = about("", null); }
}

async function enter() {
  try {
    const { streams } = await (await ask("streams")).json();
    byId("door").hidden = true;
    byId("seen").hidden = false;
    const offered = streams.map((one) => { const option = document.createElement("option"); option.textContent = one.name; return option; });
    byId("stream").replaceChildren(...offered);
    byId("stream").onchange = () => choose(streams[byId("stream").selectedIndex]);
    choose(streams[0]);
  } catch (error) {
    if (!(error instanceof Refused)) { link("off", "reconnecting"); setTimeout(enter, 1000); return; }
    link("off", error.status === 401 ? "needs a key" : "may not read");
    if (error.status === 403) await learnInput();
    narrow(error.status === 401 ? byId("door-why").dataset.first : `${error.message}. Predictions can be asked for below.`);
  }
}

byId("door-why").dataset.first = byId("door-why").textContent;
byId("door").onsubmit = (event) => { event.preventDefault(); useKey(byId("key").value); byId("key").value = ""; enter(); };
box(() => now);
fetch("", { headers: { Accept: "application/json" } }).then((answer) => answer.json()).then((told) => { byId("version").textContent = told.version; }).catch(() => {});
enter();
