// Numbers of curves under the pointer: charts that have `data-plot` and a readout with the curves behind them.
"use strict";

for (const readout of document.querySelectorAll("[data-curves]")) {
  const chart = document.querySelector(`svg[data-name="${readout.dataset.curves}"]`);
  const { x: steps, curves } = JSON.parse(readout.querySelector("script").textContent);
  const plot = JSON.parse(chart.dataset.plot), cells = [...readout.querySelectorAll("b")];
  const place = ({ from, to, low, high, scale }, value) => {
    const read = scale === "log" ? Math.log : Number;
    return from + ((read(value) - read(low)) / (read(high) - read(low))) * (to - from);
  };
  const make = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return chart.appendChild(made);
  };
  const line = make("line", { y1: plot.y.from, y2: plot.y.to, class: "cursor" });
  const dots = curves.map(({ colour }) => make("circle", { r: 4, style: `fill: var(--${colour})`, class: "cursor" }));
  let at = steps.length - 1;

  function show(index) {
    at = Math.min(Math.max(index, 0), steps.length - 1);
    const px = place(plot.x, steps[at]);
    line.setAttribute("x1", px);
    line.setAttribute("x2", px);
    curves.forEach(({ y }, i) => {
      dots[i].setAttribute("cx", px);
      dots[i].setAttribute("cy", place(plot.y, y[at]));
      cells[i + 1].textContent = y[at].toPrecision(3);
    });
    cells[0].textContent = Math.round(steps[at]);
    chart.classList.add("pointed");
  }

  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const distances = steps.map((step) => Math.abs(place(plot.x, step) - px));
    show(distances.indexOf(Math.min(...distances)));
  });
  const moves = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity };
  chart.setAttribute("tabindex", 0);
  chart.addEventListener("focus", () => show(at));
  chart.addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(at + moves[event.key]);
  });
  show(at);
}
