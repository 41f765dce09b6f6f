/* Tiles, tables and events. Every text goes in as text: labels and events come from strangers. */

import { ask } from "./link.js";

const NONE = "–";
const byId = (id) => document.getElementById(id);
const whole = (value) => (value === null || value === undefined ? NONE : value.toLocaleString("en", { maximumFractionDigits: 0 }));
const few = (value, digits = 1) => (value === null || value === undefined ? NONE : value.toLocaleString("en", { maximumFractionDigits: digits }));
const percent = (value) => (value === null || value === undefined ? NONE : `${(100 * value).toFixed(1)} %`);

export function element(tag, facts = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name === "text") made.textContent = value; else if (name.startsWith("on")) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function bar(share) {
  const inner = element("span");
  inner.style.width = `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`;
  return element("span", { class: "bar", "aria-hidden": "true" }, inner);
}

export function tiles(now, forgetting) {
  const rows = [
    ["Experts", whole(now.experts), ""],
    ["Accuracy, lately", percent(now.accuracy), ""],
    ["Forgetting", forgetting !== null && forgetting <= 0 ? "none" : percent(forgetting), ""],
    ["Novelty", few(now.novelty, 2), now.threshold === null ? "" : `of ${few(now.threshold, 2)}`],
    ["Samples learned", whole(now.samples), ""],
    ["Speed", few(now.samples_per_s), "samples/s"],
    ["Backlog", whole(now.backlog), "batches"],
    ["Staleness", few(now.staleness_s), "s"],
    ["Model", whole(now.model_version), "version"],
    ["Worker", now.worker, ""],
  ];
  const place = byId("tiles");
  if (place.childElementCount !== rows.length) {
    place.replaceChildren(...rows.map(([name]) => element("div", {}, element("dt", { text: name }), element("dd"))));
  }
  rows.forEach(([, value, unit], i) => {
    const shown = place.children[i].lastChild;
    if (shown.dataset.shown === value + unit) return;
    shown.dataset.shown = value + unit;
    shown.replaceChildren(value, ...(unit ? [element("small", { text: ` ${unit}` })] : []));
  });
  byId("problem").hidden = !now.problem;
  byId("problem").textContent = now.problem ? `Nothing is learned now: ${now.problem}` : "";
}

const CAUSES = { inputs: "new inputs", errors: "changed labels", asked: "a drift" };

function cause(expert) {
  if (expert.cause === null && expert.novelty === null) return "the first samples";
  const why = CAUSES[expert.cause] ?? "new inputs";
  return expert.novelty === null ? why : `${why}, novelty ${few(expert.novelty, 2)}`;
}

let drawn = "";
export function experts(listed, root) {
  const known = JSON.stringify(listed.map((one) => [one.id, one.samples, one.classes.length, one.state]));
  if (known === drawn) return;
  drawn = known;
  byId("experts").replaceChildren(...listed.toReversed().map((one) => element("tr", { "data-expert": one.id },
    element("th", { scope: "row", text: `${one.id}${one.state === "active" ? " (learning)" : ""}` }),
    element("td", { text: cause(one) }),
    element("td", { class: "n", text: whole(one.born_step) }), element("td", { class: "n", text: whole(one.samples) }),
    element("td", { class: "n", text: whole(one.classes.length) }), element("td", { class: "n", text: whole(one.parameters) }),
    element("td", { class: "share" }),
    element("td", {}, element("button", { type: "button", text: "Show", "aria-label": `Show samples of expert ${one.id}`, onclick: () => strips(one.id, root) })),
  )));
}

export function shares(answeredBy) {
  const asked = Object.keys(answeredBy).length > 0;
  for (const row of byId("experts").children) {
    const share = answeredBy[row.dataset.expert] ?? 0;
    row.querySelector(".share").replaceChildren(...(asked ? [bar(share), percent(share)] : [NONE]));
  }
}

export function classes(info) {
  byId("classes").replaceChildren(...info.classes.slice(0, 1000).map((label, k) => element("tr", {},
    element("th", { scope: "row", text: String(label) }),
    element("td", {}, ...(info.prequential_by_class[k] === null ? [NONE] : [bar(info.prequential_by_class[k]), percent(info.prequential_by_class[k])])),
    element("td", { class: "n", text: whole(info.replay_by_class[k]) }),
  )));
}

const UNSAID = new Set(["at", "position", "batch_id", "bytes", "parameters", "step"]);
function told(kind, facts) {
  if (kind === "expanded") return `expert ${facts.expert} was born: ${CAUSES[facts.cause] ?? "new inputs"}, novelty ${few(facts.novelty, 2)} of ${few(facts.threshold, 2)}`;
  const said = Object.entries(facts).filter(([name, value]) => !UNSAID.has(name) && value !== null && typeof value !== "object");
  return `${kind.replaceAll("_", " ")}: ${said.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ")}`;
}

const MOST_EVENTS = 100;
export function event(kind, facts) {
  const text = told(kind, facts), when = new Date(1000 * facts.at);
  const time = element("time", { datetime: when.toISOString(), text: when.toLocaleTimeString() });
  byId("events").prepend(element("li", { class: kind }, time, text));
  while (byId("events").childElementCount > MOST_EVENTS) byId("events").lastChild.remove();
  if (kind === "expanded") byId("news").textContent = text;
}

export function forget() {
  drawn = "";
  for (const id of ["tiles", "experts", "classes", "events", "strips"]) byId(id).replaceChildren();
}

const picture = (png, alt) => element("img", { src: `data:image/png;base64,${png}`, alt });
/* What a sample looks like: an image as PNG in base64, or the first of its numbers. */
function sample(looks, said) {
  const numbers = () => [looks].flat(Infinity).slice(0, 8).map((v) => few(v, 2)).join(" ");
  const shown = typeof looks === "string" ? picture(looks, said) : element("code", { text: numbers() });
  return element("figure", {}, shown, element("figcaption", { text: said }));
}

async function strips(expert, root) {
  const place = byId("strips");
  try {
    const told = await (await ask(`${root}/experts/${expert}/samples?n=12`)).json();
    const replay = (told.replay ?? []).map((one) => sample(one.png ?? one.values, one.label === null ? "no label" : String(one.label)));
    const dreamt = (told.drawn ?? []).map((one) => sample(one, "drawn"));
    place.replaceChildren(
      element("h3", { text: `Expert ${expert}: samples in the replay memory` }),
      replay.length ? element("div", { class: "strip" }, ...replay) : element("p", { class: "note", text: told.replay_reason ?? "it answers for none of them now" }),
      ...(dreamt.length ? [element("h3", { text: `Expert ${expert}: samples drawn from its VAE` }), element("div", { class: "strip" }, ...dreamt)] : []),
    );
  } catch (error) {
    place.replaceChildren(element("p", { class: "notice", text: `Samples of expert ${expert}: ${error.message}` }));
  }
}
