/* The box: an image or numbers go in, the answer and what it rests on come out. */

import { ask } from "./link.js";
import { bar, element } from "./panels.js";

const byId = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(1)} %`;

/* The numbers of a text, or an error that says which part is none. */
export function numbers(text) {
  const parts = text.split(/[\s,;[\]]+/).filter(Boolean), values = parts.map(Number), bad = values.findIndex((v) => !Number.isFinite(v));
  if (bad >= 0) throw new Error(`expected numbers, got "${parts[bad].slice(0, 20)}"`);
  if (!values.length) throw new Error("expected an image or numbers");
  return values;
}

/* Values in the shape of a stream's declared input, such as image:28x28x1, series:128x9 or vector:8. */
export function shaped(values, input) {
  const shape = (input?.split(":")[1] ?? "").split("x").map(Number).filter(Boolean);
  const expected = shape.reduce((a, b) => a * b, 1);
  if (shape.length && values.length !== expected) throw new Error(`expected ${expected} numbers for ${input}, got ${values.length}`);
  let nested = values;
  for (const size of shape.slice(1).reverse()) {
    nested = Array.from({ length: nested.length / size }, (_, i) => nested.slice(i * size, (i + 1) * size));
  }
  return nested;
}

async function predict(root, body, type) {
  const send = (path) => ask(`${root}/predict${path}`, { method: "POST", body, headers: { "Content-Type": type } });
  try { return await (await send("?explain=true")).json(); } catch (error) {
    if (error.status !== 403 && error.status !== 422) throw error;
    return (await send("")).json();  // without the scope `read` there is an answer, but no explanation
  }
}

function rows(title, pairs) {
  return [element("h3", { text: title }), element("table", {}, element("tbody", {}, ...pairs.map(([name, share]) =>
    element("tr", {}, element("th", { scope: "row", text: String(name) }), element("td", {}, bar(share), percent(share))))))];
}

/* A heat map as a picture: the values of a grid, dark where they are 0. */
function heat(grid) {
  const canvas = element("canvas", { class: "pixels", role: "img", "aria-label": "where the answer comes from; bright counts more" });
  canvas.height = grid.length; canvas.width = grid[0].length;
  const paint = canvas.getContext("2d");
  grid.forEach((row, y) => row.forEach((value, x) => {
    paint.fillStyle = `hsl(212 70% ${12 + 73 * value}%)`;
    paint.fillRect(x, y, 1, 1);
  }));
  return element("figure", {}, canvas, element("figcaption", { text: "what counted: bright" }));
}

function explained(one) {
  const weights = Object.entries(one.weights ?? {}).filter(([, w]) => w > 0).map(([id, w]) => [`expert ${id}`, w]);
  const parts = Object.entries(one.parts ?? {}).filter(([, w]) => w > 0);
  const nearest = (one.nearest ?? []).map((near) => element("li", { text: `${near.label ?? "no label"}, distance ${near.distance.toFixed(2)}, ${near.sample_id}` }));
  return [
    ...(weights.length ? rows("Weights of the experts", weights) : []), ...(parts.length ? rows("Weights of the parts", parts) : []),
    ...(nearest.length ? [element("h3", { text: "Nearest samples in the replay memory" }), element("ol", {}, ...nearest)] : []),
  ];
}

function show(answer, image) {
  const one = answer.explanations?.[0], pictures = [];
  if (image) {
    const shown = element("img", { class: "pixels", src: URL.createObjectURL(image), alt: "what was asked" });
    shown.onload = () => URL.revokeObjectURL(shown.src);
    pictures.push(element("figure", {}, shown, element("figcaption", { text: "what was asked" })));
  }
  if (one?.heat) pictures.push(heat(one.heat.rows));
  const label = answer.labels[0];
  byId("answer").replaceChildren(
    element("h3", { text: label === null ? "No class is known yet" : `Answer: ${label}` }),
    element("p", { class: "note", text: `by expert ${answer.experts[0]}, novelty ${answer.novelty[0] ?? "unknown"} nats a value, model ${answer.model_version}` }),
    ...(pictures.length ? [element("div", { class: "pictures" }, ...pictures)] : []),
    ...rows("Probabilities", answer.classes[0].map((name, i) => [name, answer.probabilities[0][i]])),
    ...(one ? explained(one) : []),
  );
}

export function box(current) {
  const drop = byId("drop"), file = byId("file");
  async function answer(body, type, image) {
    try { show(await predict(current().root, body, type), image); } catch (error) {
      byId("answer").replaceChildren(element("p", { class: "notice", text: error.message }));
    }
  }
  const sent = (image) => {
    if (image) answer(image, image.type, image);
  };
  file.onchange = () => sent(file.files[0]);
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => { event.preventDefault(); drop.classList.remove("over"); sent(event.dataTransfer.files[0]); };
  document.addEventListener("paste", (event) => sent([...event.clipboardData.files].find((one) => one.type.startsWith("image/"))));
  byId("ask").onsubmit = (event) => {
    event.preventDefault();
    try {
      answer(JSON.stringify({ x: [shaped(numbers(byId("vector").value), current().input)] }), "application/json", null);
    } catch (error) {
      byId("answer").replaceChildren(element("p", { class: "notice", text: error.message }));
    }
  };
}
