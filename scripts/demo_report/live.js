// The live section of the page: a slider over prompts, the network that answers, what it does, what was asked before.
"use strict";

{
  const root = document.getElementById("live");
  const find = (name) => root.querySelector(`[data-live="${name}"]`);
  const bytes = Uint8Array.from(atob(document.getElementById("live-file").textContent.trim()), (c) => c.charCodeAt(0));
  const generator = new Generator(readSafetensors(bytes));
  const { tensors, page } = generator;
  const slider = find("slider"), chart = root.querySelector("svg");
  const [lowest, highest] = [slider.dataset.low, slider.dataset.high].map(Number);
  const asked = () => lowest * (highest / lowest) ** (slider.value / slider.max);
  const nats = (value) => (value < 1 ? value.toFixed(3) : value.toFixed(2));
  const state = { seed: 0, drawn: null, startLoss: 0, isPending: false, sweep: 0 };

  // ----- pictures

  const [height, width] = page.image;
  function picture(parent, label) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    parent.append(canvas);
    return canvas.getContext("2d");
  }
  function paint(context, values, colour) {
    const image = context.createImageData(width, height);
    for (let k = 0; k < width * height; k++) image.data.set(colour(values[k]), 4 * k);
    context.putImageData(image, 0, 0);
  }
  const ink = (value) => [0, 0, 0, 255 * value];
  const signed = (scale) => (value) => [...(value < 0 ? [0, 114, 178] : [213, 94, 0]), 255 * Math.min(Math.abs(value) / scale, 1)];

  const [[firstLayer, , numUnits, numPixels]] = page.layers;
  const units = Object.fromEntries(
    ["start", "generated"].map((kind) => [
      kind,
      Array.from({ length: numUnits }, (_, u) => picture(find(kind), `unit ${u + 1}`)),
    ]),
  );
  function paintUnits(kind, params) {
    const weights = params.subarray(firstLayer, firstLayer + numUnits * numPixels);
    units[kind].forEach((context, u) => paint(context, weights.subarray(u * numPixels), signed(state.strength)));
  }

  const shown = Array.from(tensors["shown.targets"].data, (target, e) => {
    const box = document.createElement("div");
    find("digits").append(box);
    paint(picture(box, `a handwritten ${target}`), tensors["shown.inputs"].data.subarray(e * numPixels), ink);
    const answer = document.createElement("b"), bar = document.createElement("i"), note = document.createElement("span");
    box.append(answer, note, bar);
    return { target, box, answer, bar, note };
  });

  // ----- the identity line

  const plot = JSON.parse(chart.dataset.plot);
  function place(axis, value) {
    const { from, to, low, high, scale } = plot[axis], read = scale === "log" ? Math.log : Number;
    const share = (read(value) - read(low)) / (read(high) - read(low));
    return from + Math.min(Math.max(share, 0), 1) * (to - from);
  }
  const dots = document.createElementNS("http://www.w3.org/2000/svg", "g");
  chart.append(dots);
  function mark(loss, achieved) {
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    dot.setAttribute("cx", place("x", loss));
    dot.setAttribute("cy", place("y", achieved));
    dot.setAttribute("r", 4);
    dot.dataset.seed = state.seed;
    dots.append(dot);
    for (const other of dots.children) other.classList.toggle("past", other.dataset.seed !== String(state.seed));
    for (const other of dots.children) other.classList.toggle("last", other === dot);
    if (dots.childElementCount > 300) dots.firstElementChild.remove();
  }

  // ----- from a prompt to what is shown

  function answer() {
    const loss = asked(), began = performance.now();
    const params = generator.generate(state.drawn.start, loss, state.drawn.noise);
    const achieved = generator.evaluate(params);
    const milliseconds = performance.now() - began;
    paintUnits("generated", params);
    const answers = generator.answers(params, tensors["shown.inputs"].data);
    const isRight = shown.map(({ target, box, answer: text, bar, note }, e) => {
      const best = answers[e].indexOf(Math.max(...answers[e]));
      text.textContent = best;
      note.textContent = best === target ? "" : `is ${target}`;
      box.classList.toggle("mistaken", best !== target);
      bar.style.width = `${100 * answers[e][best]}%`;
      return best === target;
    });
    mark(loss, achieved.loss);
    find("asked").textContent = nats(loss);
    find("achieved").textContent = nats(achieved.loss);
    find("accuracy").textContent = `${(100 * achieved.accuracy).toFixed(1)}%`;
    find("right").textContent = isRight.filter(Boolean).length;
    find("time").textContent = `${Math.round(milliseconds)} ms`;
    slider.setAttribute("aria-valuetext", `${nats(loss)} nats`);
  }
  function say() {
    const [loss, achieved, accuracy] = ["asked", "achieved", "accuracy"].map((name) => find(name).textContent);
    find("spoken").textContent = `Asked for ${loss} nats, the network has ${achieved} and is right on ${accuracy} of validation digits.`;
  }
  function soon() {
    if (state.isPending) return;
    state.isPending = true;
    requestAnimationFrame(() => { state.isPending = false; answer(); });
  }

  function newStart() {
    state.seed += 1;
    state.drawn = generator.draw(state.seed);
    state.strength = 2 * tensors.bound.data[firstLayer] + 2 * tensors.std.data[firstLayer];
    find("seed").textContent = state.seed;
    find("before").textContent = nats(generator.evaluate(state.drawn.start).loss);
    paintUnits("start", state.drawn.start);
  }

  // Ask for losses from the highest to the lowest; a second press, or a touch of the slider, stops it.
  function sweep() {
    clearInterval(state.sweep);
    const isRunning = find("sweep").getAttribute("aria-pressed") === "true";
    find("sweep").setAttribute("aria-pressed", String(!isRunning));
    if (isRunning) return say();
    slider.value = slider.max;
    state.sweep = setInterval(() => {
      answer();
      if (Number(slider.value) === 0) return sweep();
      slider.value = Math.max(slider.value - slider.max / 40, 0);
    }, 60);
  }

  slider.addEventListener("input", soon);
  slider.addEventListener("change", () => { answer(); say(); });
  slider.addEventListener("pointerdown", () => { if (find("sweep").getAttribute("aria-pressed") === "true") sweep(); });
  find("new").addEventListener("click", () => { newStart(); answer(); say(); });
  find("sweep").addEventListener("click", sweep);
  slider.style.marginLeft = `calc(${(100 * plot.x.from) / chart.viewBox.baseVal.width}% - .6rem)`;
  slider.style.width = `calc(${(100 * (plot.x.to - plot.x.from)) / chart.viewBox.baseVal.width}% + 1.2rem)`;
  root.classList.add("ready");
  newStart();
  answer();
}
