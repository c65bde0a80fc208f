// The second live section: points of two classes to drag, and the border of the network that is made of them at once.
"use strict";

{
  const root = document.getElementById("border");
  const find = (name) => root.querySelector(`[data-border="${name}"]`);
  const bytes = Uint8Array.from(atob(document.getElementById("border-file").textContent.trim()), (c) => c.charCodeAt(0));
  const generator = new TabularGenerator(readSafetensors(bytes));
  const board = find("points"), field = find("field").getContext("2d");
  const size = field.canvas.width, names = ["blue", "orange"], colours = [[0, 114, 178], [213, 94, 0]];
  const grid = new Float32Array(2 * size * size).map((_, k) => (k % 2 ? Math.floor(k / 2 / size) : Math.floor(k / 2) % size) / size + 0.5 / size);
  const state = { points: [], seed: 0, isPending: false, dragged: null };

  // ----- patterns of points in the unit square

  const turn = Math.PI * 2;
  const patterns = {
    moons(label, u, noise) {
      const [across, along] = [Math.cos((u * turn) / 2), Math.sin((u * turn) / 2)].map((value) => 0.25 * value);
      return label ? [0.63 - across + 0.02 * noise[0], 0.4 + along + 0.02 * noise[1]] : [0.37 + across + 0.02 * noise[0], 0.6 - along + 0.02 * noise[1]];
    },
    ring(label, u, noise) {
      const radius = label ? 0.1 * Math.abs(noise[0]) : 0.36 + 0.025 * noise[0];
      return [0.5 + radius * Math.cos(u * turn), 0.5 + radius * Math.sin(u * turn)];
    },
    squares(label, u, noise) {
      const right = u < 0.5 ? 0 : 1, low = right ^ label;
      return [0.3 + 0.4 * right + 0.07 * noise[0], 0.3 + 0.4 * low + 0.07 * noise[1]];
    },
    clouds: (label, u, noise) => [0.36 + 0.28 * label + 0.12 * noise[0], 0.5 + 0.12 * noise[1]],
  };
  function draw(pattern) {
    const uniform = mulberry32(++state.seed);
    const gaussian = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(turn * uniform());
    state.points = Array.from({ length: 40 }, (_, i) => {
      const [x, y] = patterns[pattern](i % 2, uniform(), [gaussian(), gaussian()]);
      return { x: inside(x), y: inside(y), label: i % 2 };
    });
  }
  const inside = (value) => Math.min(Math.max(value, 0.02), 0.98);

  // ----- from points to what is shown

  function answer() {
    const labels = state.points.map(({ label }) => label), began = performance.now();
    if (new Set(labels).size < 2) return (find("said").textContent = "Add a point of the other class.");
    const network = generator.generate(Float32Array.from(state.points.flatMap(({ x, y }) => [x, y])), labels, 2);
    const milliseconds = performance.now() - began;
    const probability = (logits, k) => sigmoid(logits[2 * k + 1] - logits[2 * k]);
    const logits = logitsOf(network, grid), image = field.createImageData(size, size);
    for (let k = 0; k < size * size; k++) {
      const p = probability(logits, k), colour = colours[p > 0.5 ? 1 : 0];
      image.data.set([...colour, 255 * (0.12 + 0.5 * Math.abs(2 * p - 1))], 4 * k);
    }
    field.putImageData(image, 0, 0);
    const own = logitsOf(network, Float32Array.from(state.points.flatMap(({ x, y }) => [x, y])));
    const right = labels.filter((label, k) => (probability(own, k) > 0.5 ? 1 : 0) === label).length;
    find("units").textContent = network.inBias.length;
    find("time").textContent = `${milliseconds.toFixed(0)} ms`;
    find("right").textContent = `${right} of ${labels.length}`;
    find("said").textContent = "";
  }
  function soon() {
    if (state.isPending) return;
    state.isPending = true;
    requestAnimationFrame(() => { state.isPending = false; answer(); });
  }
  function show() {
    board.replaceChildren(...state.points.map((point, i) => {
      const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      for (const [name, value] of Object.entries({ r: 1.9, tabindex: 0, role: "button", class: names[point.label] })) dot.setAttribute(name, value);
      dot.addEventListener("pointerdown", (event) => { event.stopPropagation(); state.dragged = { point, dot }; board.setPointerCapture(event.pointerId); });
      dot.addEventListener("keydown", (event) => press(event, point, dot, i));
      place(point, dot);
      return dot;
    }));
    answer();
  }
  function place(point, dot) {
    dot.setAttribute("cx", 100 * point.x);
    dot.setAttribute("cy", 100 * point.y);
    dot.setAttribute("aria-label", `${names[point.label]} point at ${Math.round(100 * point.x)}, ${Math.round(100 - 100 * point.y)}`);
  }
  function move(point, dot, x, y) {
    Object.assign(point, { x: inside(x), y: inside(y) });
    place(point, dot);
    soon();
  }
  function press(event, point, dot, i) {
    const step = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, -0.02], ArrowDown: [0, 0.02] }[event.key];
    if (step) move(point, dot, point.x + step[0], point.y + step[1]);
    else if (event.key === "Delete" || event.key === "Backspace") {
      state.points.splice(i, 1);
      show();
      board.children[Math.min(i, state.points.length - 1)]?.focus();
    } else return;
    event.preventDefault();
  }
  function at(event) {
    const box = board.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  board.addEventListener("pointerdown", (event) => {
    const [x, y] = at(event), label = root.querySelector('[name="class"]:checked').value === "orange" ? 1 : 0;
    if (state.points.length >= 120) return;
    state.points.push({ x: inside(x), y: inside(y), label });
    show();
  });
  board.addEventListener("pointermove", (event) => { if (state.dragged) move(state.dragged.point, state.dragged.dot, ...at(event)); });
  for (const name of ["pointerup", "pointercancel"]) board.addEventListener(name, () => (state.dragged = null));
  const renew = () => { draw(find("pattern").value); show(); };
  find("again").addEventListener("click", renew);
  find("pattern").addEventListener("change", renew);
  root.classList.add("ready");
  renew();
}
