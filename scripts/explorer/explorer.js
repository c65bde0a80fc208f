// The explorer's page: which view is shown, what is chosen, and what each view asks of the server.

import { Plot, colourOf, css, inkPicture, shares, strongest, weights } from "./plots.js";

const find = (selector) => document.querySelector(selector);
const state = { view: "runs", sort: "run", descending: false, offset: 0, chosen: { a: null, b: null }, request: 0 };

// ----- asking the server

async function ask(name, parameters = {}, options = {}) {
  const response = await fetch(`api/${name}?${new URLSearchParams(parameters)}`, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Runs a view's work; what it throws is shown, and an answer that comes after a newer request is dropped.
async function attempt(work) {
  const mine = ++state.request;
  document.body.setAttribute("aria-busy", "true");
  try {
    const show = await work();
    if (mine !== state.request) return;
    find("#error").textContent = "";
    show?.();
  } catch (error) {
    if (mine === state.request) find("#error").textContent = error.message;
  } finally {
    if (mine === state.request) document.body.setAttribute("aria-busy", "false");
  }
}

const about = await ask("about");
const chosenRuns = () => ({ where: find("#where").value, colour: find("#colour").value });
const number = (value) => (value === null ? "–" : typeof value === "number" ? String(+value.toPrecision(4)) : value);

function make(tag, content = [], attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...[content].flat());
  return made;
}
function fill(select, names) {
  select.replaceChildren(...names.map((name) => make("option", name, { value: name })));
}

// ----- choosing two runs

function choose(which, run) {
  state.chosen[which] = state.chosen[which] === run ? null : run;
  show();
}
function chooseNext(run) {
  choose(state.chosen.a === null || state.chosen.b !== null ? "a" : "b", run);
}

// ----- views

const views = {
  async runs() {
    const { sort, descending, offset } = state;
    const { count, columns } = await ask("runs", { where: find("#where").value, sort, descending: descending ? 1 : "", offset });
    return () => {
      const names = Object.keys(columns);
      const head = names.map((name) => {
        const cell = make("th", make("button", name, { onclick: () => sortBy(name) }), { scope: "col" });
        if (name === sort) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
        if (name === sort) cell.firstChild.append(descending ? " ↓" : " ↑");
        return cell;
      });
      find("#runs thead").replaceChildren(make("tr", [make("th", "choose"), ...head]));
      find("#runs tbody").replaceChildren(...columns.run.map((run, i) => {
        const buttons = ["a", "b"].map((which) => {
          const button = make("button", which.toUpperCase(), { className: which, onclick: () => choose(which, run) });
          button.setAttribute("aria-pressed", String(state.chosen[which] === run));
          button.setAttribute("aria-label", `run ${run} as ${which.toUpperCase()}`);
          return button;
        });
        return make("tr", [make("td", buttons), ...names.map((name) => make("td", String(number(columns[name][i]))))]);
      }));
      showCount(count);
      find("#place").textContent = count ? `${offset + 1} to ${offset + columns.run.length}` : "none";
      find("#previous").disabled = offset === 0;
      find("#next").disabled = offset + about.page_size >= count;
    };
  },

  async trajectories() {
    const metric = find("#metric").value, { where, colour } = chosenRuns();
    const { count, steps, quantiles, lines, values } = await ask("trajectories", { metric, where, colour });
    return () => {
      showCount(count);
      const all = lines.flatMap((line) => line.values), plot = plots.lines;
      plot.begin([...steps, ...lines.flatMap((line) => line.steps)], [...all, ...quantiles.flat()], { steps: true, xLabel: "training step", yLabel: metric });
      if (quantiles.length) plot.band(steps, quantiles[0], quantiles.at(-1), "rgb(128 128 128 / .25)");
      const share = shares(values);
      lines.forEach((line, k) => {
        const text = `run ${line.run}, ${colour} ${number(values[k])}`;
        plot.line(line.steps, line.values, colourOf(share[k]), isChosen(line.run) ? 3 : 1, { run: line.run, text });
      });
      find("#view-trajectories figcaption").textContent =
        `${lines.length} runs, evenly chosen, from blue to orange by ${colour}; band: 5 to 95% of all. A click chooses a run.`;
    };
  },

  async map() {
    const { where, colour } = chosenRuns(), method = find("#method").value;
    const { count, runs, points, shares: parts, chosen, values } = await ask("map", { method, where, colour });
    return () => {
      showCount(count);
      const percent = (k) => (parts.length ? ` (${(100 * parts[k]).toFixed(1)}% of the variance)` : "");
      const plot = plots.points, xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
      plot.begin(xs, ys, { xLabel: `first axis${percent(0)}`, yLabel: `second axis${percent(1)}` });
      const share = shares(values.map((value, k) => (chosen[k] ? value : null)));
      runs.forEach((run, k) => {
        const text = `run ${run}, ${colour} ${number(values[k])}`;
        if (chosen[k]) plot.dot(xs[k], ys[k], colourOf(share[k]), 3.2, { run, text });
      });
      for (const [which, colour] of [["a", "--blue"], ["b", "--orange"]]) {
        const k = runs.indexOf(state.chosen[which]);
        if (k >= 0) plot.mark(xs[k], ys[k], which.toUpperCase(), css(colour));
      }
      find("#view-map figcaption").textContent =
        `Last networks of ${chosen.filter(Boolean).length} runs with their units matched, from blue to orange by ${colour}. A click chooses a run.`;
    };
  },

  async pair() {
    const { a, b } = state.chosen;
    if (a === null || b === null) return () => find("#pair").replaceChildren(make("p", "Choose two runs, A and B, in the table or on the map."));
    const answer = await ask("pair", { first: a, second: b });
    return () => find("#pair").replaceChildren(...pairParts(answer));
  },

  async history() {
    const run = state.chosen.a ?? state.chosen.b;
    if (run === null) return () => find("#history").replaceChildren(make("p", "Choose a run in the table or on the map."));
    const answer = await ask("history", { run });
    return () => {
      state.history = answer;
      const slider = find("#frame");
      slider.max = answer.steps.length - 1;
      slider.value = slider.max;
      showFrame();
    };
  },

  async generate() {
    return () => { if (!find("#prompt").childElementCount) buildPrompt(); };
  },
};
function showCount(count) {
  find("#count").textContent = `${count.toLocaleString("en")} of ${about.title}`;
}
const isChosen = (run) => run === state.chosen.a || run === state.chosen.b;

function pairParts({ runs, layers, tensors, confusion, examples, image, ...answers }) {
  const [a, b] = runs, parts = [];
  parts.push(make("h2", `Run ${a} (A) and run ${b} (B), its units matched to A`));
  for (const tensor of tensors) {
    const most = strongest(tensor.rows[0]), columns = make("div", [], { className: "columns" });
    ["A", "B", "B less A"].forEach((title, k) => columns.append(make("div", [make("span", title, { className: "soft" }), weights(tensor, tensor.rows[k], most)])));
    parts.push(make("h2", `${tensor.name} (${tensor.shape.join(" × ")})`), columns);
  }
  const table = tableOf(
    ["tensor", "shape", "norm of A", "norm of B", "apart as stored", "apart, matched"],
    layers.map(({ name, shape, norms, apart }) => [name, shape.join(" × "), ...norms.map(number), ...apart.map(number)]),
  );
  parts.push(make("h2", "Layers"), make("div", table, { className: "scroll" }));
  if (!confusion) return parts;
  const rows = confusion.map((row, k) => [`A says ${k}`, ...row.map(String)]);
  parts.push(make("h2", `Answers on ${answers.num_test} test examples`));
  parts.push(make("p", `A is right on ${answers.num_right[0]}, B on ${answers.num_right[1]}; they differ on ${answers.num_differ}.`));
  const matrix = tableOf(["", ...confusion.map((_, k) => `B says ${k}`)], rows);
  matrix.classList.add("confusion");
  const most = Math.max(...confusion.flatMap((row, i) => row.filter((_, j) => i !== j)), 1);
  matrix.querySelectorAll("tbody tr").forEach((row, i) => [...row.cells].slice(1).forEach((cell, j) => {
    const strength = i === j ? 0.12 : Math.min(confusion[i][j] / most, 1) * 0.85;
    cell.style.background = confusion[i][j] ? `color-mix(in srgb, var(--${i === j ? "blue" : "orange"}) ${100 * strength}%, transparent)` : "";
  }));
  parts.push(make("div", matrix, { className: "scroll" }));
  if (examples.length) parts.push(make("h2", "Examples on which they differ"));
  parts.push(make("div", examples.map(({ index, target, answers: [first, second], inputs }) => {
    const box = make("div");
    if (inputs) inkPicture(box, image, inputs, `test example ${index}, a ${target}`);
    box.append("is ", make("b", String(target)), make("br"), "A ", make("b", String(first)), " B ", make("b", String(second)));
    return box;
  }), { className: "examples" }));
  return parts;
}

function tableOf(head, rows) {
  const cells = (tag) => (row) => make("tr", row.map((cell) => make(tag, cell)));
  return make("table", [make("thead", cells("th")(head)), make("tbody", rows.map(cells("td")))]);
}

function showFrame() {
  const { run, steps, metrics, tensors } = state.history, at = Number(find("#frame").value);
  find("#step").textContent = `step ${steps[at]}`;
  const values = Object.entries(metrics).map(([name, series]) => `${name} ${number(series[at])}`).join(" · ");
  const pictures = tensors.flatMap((tensor) => [make("h2", tensor.name), weights(tensor, tensor.rows[at], strongest(tensor.rows.at(-1)))]);
  find("#history").replaceChildren(make("p", `Run ${run}: ${values}`), ...pictures);
}
function play() {
  clearInterval(state.playing);
  const slider = find("#frame"), isPlaying = find("#play").textContent === "Stop";
  find("#play").textContent = isPlaying ? "Play" : "Stop";
  if (isPlaying || !state.history) return;
  if (slider.value === slider.max) slider.value = 0;
  state.playing = setInterval(() => {
    showFrame();
    if (slider.value === slider.max) return play();
    slider.value = Number(slider.value) + 1;
  }, 150);
}

// ----- networks on request

const FROM_RUN = "initial network of run";

function buildPrompt() {
  const form = find("#prompt");
  if (!about.prompting) return form.replaceChildren(make("p", "There is no generator here: start again with pipeline=PATH."));
  const { ranges, starts, noise, examples } = about.prompting, main = Object.keys(ranges)[0];
  const sliders = Object.entries(ranges).map(([name, [low, high]]) => {
    const value = (share) => (low > 0 ? low * (high / low) ** share : low + share * (high - low));
    const used = make("input", [], { type: "checkbox", checked: name === main, name: `use ${name}`, onchange: generate });
    const slider = make("input", [], { type: "range", min: 0, max: 100, value: 30, id: `ask-${name}`, name });
    const output = make("output", "");
    slider.dataset.value = value(0.3);
    slider.oninput = () => { slider.dataset.value = value(slider.value / 100); output.textContent = number(Number(slider.dataset.value)); };
    slider.onchange = generate;
    slider.oninput();
    return make("div", [make("label", [used, ` ${name}`], { htmlFor: slider.id }), slider, output], { className: "prompt" });
  });
  const field = (name, label, value, attributes = {}) =>
    make("label", [`${label} `, make("input", [], { type: "number", name, value, onchange: generate, ...attributes })]);
  const start = make("select", [], { name: "from", onchange: generate });
  fill(start, [...(starts ? [FROM_RUN] : []), ...(noise ? ["noise"] : starts ? [] : ["the prompt alone"])]);
  form.replaceChildren(
    ...sliders,
    ...(examples ? [examplesField(examples)] : []),
    make("label", ["from ", start]),
    field("start", "run", state.chosen.a ?? about.columns.find(({ name }) => name === "run").range[1], { min: 0 }),
    field("num_samples", "samples", 4, { min: 1, max: 16 }),
    field("seed", "seed", 0, { min: 0 }),
    make("button", "Generate", { type: "submit" }),
  );
  form.onsubmit = (event) => { event.preventDefault(); generate(); };
  return generate();
}

function examplesField({ shape, num_classes }) {
  const title = `x.npz with arrays inputs (number, ${shape.join(", ")}) and targets, or x.csv with a column target; classes 0 to ${num_classes - 1}, -1 where there is none`;
  const file = make("input", [], { type: "file", accept: ".npz,.csv", title }), said = make("output");
  file.onchange = async () => {
    state.examples = null;
    said.textContent = "";
    await attempt(async () => {
      const [chosen] = file.files;
      if (!chosen) return;
      const { examples, count, num_labelled } = await ask("examples", { name: chosen.name }, { method: "POST", body: chosen });
      state.examples = examples;
      said.textContent = `${count} examples, ${num_labelled} with a label`;
    });
    if (state.examples || !file.files.length) await generate();
  };
  return make("div", [make("label", ["examples ", file]), said], { className: "prompt" });
}

function generate() {
  return attempt(async () => {
    const form = find("#prompt"), asked = {};
    for (const slider of form.querySelectorAll('input[type="range"]'))
      if (form.elements[`use ${slider.name}`].checked) asked[slider.name] = slider.dataset.value;
    for (const name of ["num_samples", "seed"]) asked[name] = form.elements[name].value;
    if (form.elements.from.value === FROM_RUN) asked.start = form.elements.start.value;
    if (state.examples) asked.examples = state.examples;
    const answer = await ask("generate", asked);
    return () => find("#samples").replaceChildren(...samples(asked, answer));
  });
}

function samples(asked, { samples: found, num_compared, tensors }) {
  const names = Object.keys(found[0].metrics), formats = about.prompting.formats;
  const rows = found.map(({ metrics, nearest, distance }, i) => [
    String(i), ...names.map((name) => number(metrics[name])), String(nearest), number(distance),
    make("span", formats.map((kind) => make("a", `${kind} `, { href: `api/download?${new URLSearchParams({ ...asked, sample: i, kind })}`, download: "" }))),
  ]);
  const table = tableOf(["sample", ...names, "nearest run", "distance", "download"], rows);
  const pictures = tensors.flatMap((tensor) => tensor.rows.map((one, i) => [make("h2", `Sample ${i}: ${tensor.name}`), weights(tensor, one)])).flat();
  return [
    make("div", table, { className: "scroll" }),
    make("p", `Distances are to the last networks of ${num_compared} runs, units matched. ${about.no_task && `Nothing is measured: ${about.no_task}.`}`, { className: "soft" }),
    ...pictures,
  ];
}

// ----- what people press

function show() {
  for (const section of document.querySelectorAll("main section")) section.hidden = section.id !== `view-${state.view}`;
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    tab.setAttribute("aria-selected", String(tab.dataset.view === state.view));
    tab.tabIndex = tab.dataset.view === state.view ? 0 : -1;
  }
  return attempt(views[state.view]);
}
function sortBy(name) {
  state.descending = state.sort === name && !state.descending;
  Object.assign(state, { sort: name, offset: 0 });
  show();
}
function turn(direction) {
  state.offset = Math.max(0, state.offset + direction * about.page_size);
  show();
}

document.title = `${about.title} · weightfoundry`;
find("#title").textContent = about.title;
find("#about").textContent = about.text;
for (const section of document.querySelectorAll("main section")) {
  const view = section.id.slice("view-".length);
  const tab = make("button", section.dataset.title, { role: "tab", onclick: () => { state.view = view; show(); } });
  tab.dataset.view = view;
  section.setAttribute("role", "tabpanel");
  section.setAttribute("aria-label", section.dataset.title);
  find("nav").append(tab);
}
find("nav").addEventListener("keydown", ({ key }) => {
  const tabs = [...find("nav").children], step = { ArrowLeft: -1, ArrowRight: 1 }[key];
  if (!step) return;
  const next = tabs[(tabs.findIndex((tab) => tab.dataset.view === state.view) + step + tabs.length) % tabs.length];
  next.click();
  next.focus();
});
const pick = ({ run }) => chooseNext(run);
const plots = { lines: new Plot(find("#lines"), pick), points: new Plot(find("#points"), pick) };
fill(find("#metric"), about.metrics);
fill(find("#method"), about.methods);
fill(find("#colour"), about.columns.map(({ name }) => name));
find("#colour").value = about.metrics.find((name) => name.startsWith("val")) ?? about.metrics[0] ?? "run";
find("#metric").value = find("#colour").value;
let typing;
find("#where").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => { state.offset = 0; show(); }, 250);
});
find("#filter").addEventListener("submit", (event) => { event.preventDefault(); show(); });
for (const select of ["#colour", "#metric", "#method"]) find(select).addEventListener("change", show);
find("#previous").addEventListener("click", () => turn(-1));
find("#next").addEventListener("click", () => turn(1));
find("#play").addEventListener("click", play);
find("#frame").addEventListener("input", showFrame);
addEventListener("resize", () => { if (["trajectories", "map"].includes(state.view)) show(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
await show();
document.body.dataset.ready = "yes";
