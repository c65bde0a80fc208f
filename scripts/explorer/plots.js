// Plots on a canvas: axes with round numbers, points and lines, and what is pointed at.

export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const finite = (values) => values.filter((value) => value !== null && Number.isFinite(value));

// Blue over grey to orange for shares from 0 to 1 (Okabe and Ito's blue and vermilion), grey for what is unknown.
export function colourOf(share) {
  if (share === null || Number.isNaN(share)) return css("--grey");
  const low = [0, 114, 178], middle = [200, 190, 160], high = [213, 94, 0];
  const [from, to, t] = share < 0.5 ? [low, middle, 2 * share] : [middle, high, 2 * share - 1];
  return `rgb(${from.map((value, k) => Math.round(value + t * (to[k] - value))).join(" ")})`;
}

// Shares from 0 to 1 of values, on a logarithmic scale where they span decades.
export function shares(values) {
  const known = finite(values), low = Math.min(...known), high = Math.max(...known);
  const read = low > 0 && high / low > 20 ? Math.log : Number;
  return values.map((value) => (value === null || high === low ? null : (read(value) - read(low)) / (read(high) - read(low))));
}

// A scale from values to pixels, logarithmic where they are positive and span decades.
function scale(values, from, to, { zero } = {}) {
  const known = finite(values);
  let low = known.reduce((a, b) => Math.min(a, b), Infinity), high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  const positive = known.filter((value) => value > 0);
  const least = positive.reduce((a, b) => Math.min(a, b), Infinity);
  const isLog = high / (zero ? least : low) > 20 && (zero ? positive.length > 0 : low > 0);
  if (isLog && zero) low = least / 3; // room for step 0
  if (!(high > low)) [low, high] = [low - 1, high + 1];
  const read = isLog ? (value) => Math.log(Math.max(value, low)) : Number;
  const place = (value) => from + ((read(value) - read(low)) / (read(high) - read(low))) * (to - from);
  const ticks = isLog ? logTicks(low, high) : linearTicks(low, high);
  if (!isLog || !zero) return { place, ticks };
  return { place, ticks: [[low, "0"], ...ticks.filter(([value]) => Math.abs(place(value) - from) > 30)] };
}
function linearTicks(low, high) {
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw);
  const ticks = [];
  for (let value = Math.ceil(low / size) * size; value <= high; value += size) ticks.push([value, `${+value.toPrecision(6)}`]);
  return ticks;
}
function logTicks(low, high) {
  const factors = high / low > 400 ? [1] : [1, 2, 5], ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (value >= low && value <= high) ticks.push([value, `${+value.toPrecision(3)}`]);
    }
  return ticks;
}

export class Plot {
  // What is pointed at is said in the figure's output; a click, or Enter, picks it; arrow keys go from one to the next.
  constructor(canvas, onPick) {
    Object.assign(this, { canvas, targets: [], at: -1, output: canvas.parentElement.querySelector("output") });
    canvas.addEventListener("pointermove", (event) => this.say(this.near(event)));
    canvas.addEventListener("click", (event) => this.pick(this.near(event), onPick));
    canvas.addEventListener("keydown", ({ key }) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[key], count = this.targets.length;
      if (step && count) this.say((this.at = (this.at + step + count) % count));
      if (key === "Enter") this.pick(this.at, onPick);
    });
  }

  // Empties the canvas and draws axes around all values.
  begin(xs, ys, { xLabel = "", yLabel = "", steps = false } = {}) {
    const ratio = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = this.canvas;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    const pen = (this.pen = this.canvas.getContext("2d"));
    pen.scale(ratio, ratio);
    pen.font = `12px system-ui, "DejaVu Sans", sans-serif`;
    const box = { left: 58, right: width - 14, top: 12, bottom: height - 42 };
    this.x = scale(xs, box.left, box.right, { zero: steps });
    this.y = scale(ys, box.bottom, box.top);
    Object.assign(this, { targets: [], at: -1 });
    pen.strokeStyle = css("--faint");
    pen.fillStyle = css("--ink");
    pen.textAlign = "right";
    for (const [value, text] of this.y.ticks) {
      this.stroke([[box.left, this.y.place(value)], [box.right, this.y.place(value)]]);
      pen.fillText(text, box.left - 6, this.y.place(value) + 4);
    }
    pen.textAlign = "center";
    for (const [value, text] of this.x.ticks) pen.fillText(text, this.x.place(value), box.bottom + 17);
    pen.fillText(xLabel, (box.left + box.right) / 2, height - 6);
    pen.save();
    pen.translate(13, (box.top + box.bottom) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(yLabel, 0, 0);
    pen.restore();
  }

  stroke(points) {
    this.pen.beginPath();
    points.forEach(([x, y], k) => this.pen[k ? "lineTo" : "moveTo"](x, y));
    this.pen.stroke();
  }

  places(xs, ys) {
    return xs.map((x, k) => [x, ys[k]]).filter(([x, y]) => x !== null && y !== null).map(([x, y]) => [this.x.place(x), this.y.place(y)]);
  }

  line(xs, ys, colour, width, target) {
    const places = this.places(xs, ys);
    Object.assign(this.pen, { strokeStyle: colour, lineWidth: width });
    this.stroke(places);
    for (const [x, y] of places) this.targets.push({ x, y, ...target });
  }

  band(xs, lows, highs, colour) {
    const outline = [...this.places(xs, lows), ...this.places(xs, highs).reverse()];
    this.pen.fillStyle = colour;
    this.pen.beginPath();
    outline.forEach(([x, y], k) => this.pen[k ? "lineTo" : "moveTo"](x, y));
    this.pen.fill();
  }

  dot(x, y, colour, radius, target) {
    const [px, py] = [this.x.place(x), this.y.place(y)];
    this.pen.fillStyle = colour;
    this.pen.beginPath();
    this.pen.arc(px, py, radius, 0, 2 * Math.PI);
    this.pen.fill();
    this.targets.push({ x: px, y: py, ...target });
  }

  // A ring with a letter around a point.
  mark(x, y, letter, colour) {
    const [px, py] = [this.x.place(x), this.y.place(y)];
    Object.assign(this.pen, { strokeStyle: colour, fillStyle: colour, lineWidth: 2.5 });
    this.pen.beginPath();
    this.pen.arc(px, py, 8, 0, 2 * Math.PI);
    this.pen.stroke();
    this.pen.font = `bold 15px system-ui, "DejaVu Sans", sans-serif`;
    this.pen.fillText(letter, px + 16, py - 8);
  }

  // Number of the target that is nearest to the pointer, -1 if none is near.
  near({ offsetX, offsetY }) {
    const distances = this.targets.map(({ x, y }) => (x - offsetX) ** 2 + (y - offsetY) ** 2);
    const least = distances.reduce((a, b) => Math.min(a, b), Infinity);
    return (this.at = least < 400 ? distances.indexOf(least) : -1);
  }

  say(number) {
    this.output.textContent = this.targets[number]?.text ?? "";
    this.canvas.style.cursor = number < 0 ? "" : "pointer";
  }

  pick(number, onPick) {
    if (this.targets[number]) onPick(this.targets[number]);
  }
}

// ----- weights and images as small pictures

function picture(parent, width, height, colours, label) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  const pen = canvas.getContext("2d"), image = pen.createImageData(width, height);
  colours.forEach((colour, k) => image.data.set(colour, 4 * k));
  pen.putImageData(image, 0, 0);
  parent.append(canvas);
}

// Rows of a weight matrix: each a small image where it is one, otherwise all together.
export function weights({ name, row_shape: [height, width] }, rows, scaleOf) {
  const grid = document.createElement("div"), most = scaleOf || strongest(rows);
  const signed = (value) => [...(value < 0 ? [0, 114, 178] : [213, 94, 0]), 255 * Math.min(Math.abs(value) / most, 1)];
  grid.className = height > 1 ? "units" : "units rows";
  grid.style.setProperty("--aspect", `${width} / ${height}`);
  if (height > 1) rows.forEach((row, u) => picture(grid, width, height, row.map(signed), `${name}, unit ${u}`));
  else picture(grid, width, rows.length, rows.flat().map(signed), name);
  grid.style.maxWidth = height > 1 ? "" : `${1.4 * width}rem`;
  return grid;
}
export const strongest = (rows) => {
  const sizes = rows.flat(Infinity).map(Math.abs).sort((a, b) => a - b);
  return sizes[Math.floor(0.98 * (sizes.length - 1))] || 1;
};
export function inkPicture(parent, [height, width], pixels, label) {
  picture(parent, width, height, pixels.map((value) => [0, 0, 0, 255 * value]), label);
}
