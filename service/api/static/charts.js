/* The three charts of a stream's life; uPlot draws, this file says what. */

const look = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const whole = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: 0 }));
const rounded = (value) => (value === null || value === undefined ? "none" : value.toLocaleString("en", { maximumFractionDigits: 2 }));

/* Running totals: where on the axis a bucket ends. */
export function reached(counts) { let sum = 0; return counts.map((n) => (sum += n)); }

/* Accuracy faded over about so many labelled samples; null before the first label. */
export function faded(correct, labelled, memory = 1000) {
  let right = 0, all = 0;
  return labelled.map((n, i) => {
    const keep = Math.exp(-n / memory);
    right = right * keep + correct[i];
    all = all * keep + n;
    return all > 0 ? right / all : null;
  });
}

/* Where experts were born: the buckets in which their number rose. */
export function births(experts) { return experts.flatMap((n, i) => (i > 0 && n > experts[i - 1] ? [i] : [])); }

function marks(places) {
  return (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = look("--violet");
    ctx.setLineDash([4, 4]);
    for (const place of places()) {
      const x = Math.round(plot.valToPos(place, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
    }
    ctx.restore();
  };
}

export class Chart {
  /* lines: [{label, colour, dash, step}]; y: {label, range, show}. */
  constructor(place, lines, y) {
    this.place = place; this.lines = lines; this.y = y;
    this.places = []; this.data = [[], ...lines.map(() => [])];
    this.build();
    new ResizeObserver(() => this.plot.setSize(this.size())).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.build());
  }

  size() { return { width: Math.max(240, this.place.clientWidth), height: 170 }; }

  build() {
    this.plot?.destroy();
    const soft = look("--soft"), grid = { stroke: look("--grid"), width: 1 };
    const axis = { stroke: soft, grid, ticks: grid, font: "12px system-ui", labelFont: "12px system-ui", labelSize: 18, labelGap: 0 };
    const series = this.lines.map((line) => ({
      label: line.label, stroke: look(line.colour), width: 2, dash: line.dash, spanGaps: true, points: { show: false },
      paths: line.step ? uPlot.paths.stepped({ align: 1 }) : undefined, value: (_, v) => (v === null || v === undefined ? "–" : this.y.show(v)),
    }));
    this.plot = new uPlot({
      ...this.size(), series: [{ label: "Sample", value: (_, v) => whole(v) }, ...series],
      scales: { x: { time: false }, y: { range: this.y.range } },
      axes: [
        { ...axis, label: "samples since the start", size: 38, values: (_, ticks) => ticks.map(whole) },
        { ...axis, label: this.y.label, size: 56, values: (_, ticks) => ticks.map(this.y.show) },
      ],
      hooks: { draw: [marks(() => this.places)] }, cursor: { y: false },
    }, this.data, this.place);
  }

  show(data, places, said) {
    this.data = data; this.places = places;
    this.place.setAttribute("aria-label", said);
    this.plot.setData(data);
    setTimeout(() => {  // behind uPlot's own commit, which clears it
      const newest = this.data[0].length - 1;
      if (newest >= 0 && this.plot.cursor.idx == null) this.plot.setLegend({ idx: newest });
    });
  }
}

const room = (least) => (_, low, high) => [Math.min(0, low ?? 0), Math.max(least, (high ?? 0) * 1.1)];
const percent = (value) => `${whole(100 * value)} %`;

/* The charts of a page, fed with GET /timeline. */
export function charts() {
  const byId = (id) => document.getElementById(id);
  const novelty = new Chart(byId("novelty"),
    [{ label: "Evidence", colour: "--blue" }, { label: "Threshold", colour: "--red", dash: [6, 4] }],
    { label: "novelty", range: room(1), show: rounded });
  const accuracy = new Chart(byId("accuracy"), [{ label: "Accuracy", colour: "--green" }],
    { label: "accuracy", range: () => [0, 1.02], show: percent });
  const growth = new Chart(byId("growth"), [{ label: "Experts", colour: "--violet", step: true }],
    { label: "experts", range: (_, __, high) => [0, (high ?? 0) + 1], show: (v) => (Number.isInteger(v) ? whole(v) : "") });
  return ({ points, threshold }) => {
    const x = reached(points.samples), right = faded(points.correct, points.labelled);
    const places = births(points.experts).map((i) => x[i]), last = x.length - 1;
    const end = last < 0 ? "No samples yet." : `${whole(x[last])} samples so far.`;
    novelty.show([x, points.novelty, x.map(() => threshold)], places,
      `Novelty over samples. ${end} Newest novelty ${rounded(points.novelty[last])}, threshold ${rounded(threshold)}, ${places.length} births.`);
    accuracy.show([x, right], places, `Accuracy over samples. ${end} Newest ${last < 0 || right[last] === null ? "unknown" : percent(right[last])}.`);
    growth.show([x, points.experts], [], `Experts over samples. ${end} ${points.experts[last] ?? 0} experts.`);
  };
}
