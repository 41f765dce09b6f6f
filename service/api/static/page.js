/* The page: one stream at a time, told by /live and /events, its past by /timeline. */

import { box } from "./ask.js";
import { charts } from "./charts.js";
import { ask, listen, Refused, useKey } from "./link.js";
import * as panels from "./panels.js";

const REFRESH_MS = 1000;
const byId = (id) => document.getElementById(id);
const draw = charts();
const now = { root: "", input: null, forgetting: null, etag: "", version: -1, fetched: 0, due: 0 };
let leaving = new AbortController();

function link(state, text) { byId("link").className = state; byId("link").textContent = text; }

/* Read the past and the experts anew, at most once a second, and the newest model at the end. */
async function refresh(signal) {
  if (now.due) return;
  now.due = 1;
  await new Promise((resolve) => setTimeout(resolve, Math.max(0, now.fetched + REFRESH_MS - Date.now())));
  now.due = 0;
  now.fetched = Date.now();
  try {
    const [past, info] = await Promise.all([
      ask(`${now.root}/timeline`, { signal, headers: now.etag ? { "If-None-Match": now.etag } : {} }),
      ask(`${now.root}/experts`, { signal }).then((answer) => answer.json()),
    ]);
    if (past.status !== 304) {
      now.etag = past.headers.get("ETag") ?? "";
      const told = await past.json();
      now.forgetting = told.forgetting;
      draw(told);
    }
    if (!info.classes || signal.aborted) return;
    panels.experts(info.experts, now.root);
    panels.classes(info);
  } catch (error) {
    if (!signal.aborted && error instanceof Refused) link("off", error.message);
  }
}

function watch() {
  const { signal } = leaving;
  const lost = (refusal) => link("off", refusal ? refusal.message : "reconnecting");
  listen(`${now.root}/live`, { signal, lost, hear: (_, told) => {
    link("on", "live");
    panels.tiles(told, now.forgetting);
    if (told.model_version !== now.version) { now.version = told.model_version; refresh(signal); }
    panels.shares(told.answered_by);
  } });
  listen(`${now.root}/events?after=0`, { signal, lost: () => {}, hear: (kind, told) => {
    if (kind === "gap") return;
    panels.event(kind, told);
    if (kind === "expanded") refresh(signal);
  } });
}

function choose(stream) {
  leaving.abort();
  leaving = new AbortController();
  Object.assign(now, { root: stream.name === "default" ? "" : `/streams/${encodeURIComponent(stream.name)}`, input: stream.input, forgetting: null, etag: "", version: -1, fetched: 0 });
  panels.forget();
  draw({ points: { samples: [], labelled: [], correct: [], experts: [], novelty: [] }, threshold: null });
  byId("ask-hint").textContent = stream.input ? `Samples are ${stream.input}; images are brought to that shape.` : "What a sample is will be known with the first batch.";
  watch();
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
    Object.assign(now, { root: "", input: `sample:${inputs[0].shape.slice(1).join("x")}` });
  } catch { now.input = null; }
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
