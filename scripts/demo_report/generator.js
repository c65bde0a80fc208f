// The generator of `generator/` in the few operations that it takes: from a start, a prompt and noise to a network.
// Everything is a Float32Array in row-major order. A test holds `generate` and `evaluate` to PyTorch.
//
// Legend: n tokens, d token width, P numbers of one network, E examples, K classes.
"use strict";

class Generator {
  constructor({ tensors, metadata }) {
    const page = JSON.parse(metadata.page);
    Object.assign(this, { tensors, page });
    this.width = tensors["model.role.weight"].shape[0];
    this.numParams = tensors.mean.data.length;
    this.numSteps = tensors.times.data.length;
    this.numDraws = 1 + (page.use_latent ? this.numSteps : 0); // Gaussian vectors (P,) that a network takes
  }

  linear(name, x) {
    return affine(x, this.tensors[`model.${name}.weight`], this.tensors[`model.${name}.bias`]);
  }

  norm(name, x) {
    const { data: gain } = this.tensors[`model.${name}.weight`];
    return layerNorm(x, gain.length, gain, this.tensors[`model.${name}.bias`].data);
  }

  has(name) {
    return `model.${name}.weight` in this.tensors;
  }

  // Rows of a block (n, F), gathered from flat vectors side by side.
  rows(name, vectors) {
    const { data: places, shape: [count, size] } = this.tensors[`block.${name}`];
    const y = new Float32Array(count * size * vectors.length);
    vectors.forEach((vector, c) => {
      for (let i = 0; i < count; i++)
        for (let k = 0; k < size; k++) y[(i * vectors.length + c) * size + k] = vector[places[i * size + k]];
    });
    return y;
  }

  // What to ask the model for so that networks have, on average, the loss that is meant.
  calibrated(loss) {
    const [low, high] = this.page.range, inside = Math.min(Math.max(loss, low), high);
    if (!this.page.calibration) return inside;
    const scale = (values) => values.map((value) => Math.log(Math.max(value, 1e-4)));
    const [value] = scale([inside]), meant = scale(this.page.calibration.meant), asked = scale(this.page.calibration.asked);
    const next = meant.findIndex((one) => one > value);
    if (next === 0) return Math.exp(asked[0]);
    if (next < 0) return Math.exp(asked.at(-1));
    const share = (value - meant[next - 1]) / (meant[next] - meant[next - 1]);
    return Math.exp(asked[next - 1] + share * (asked[next] - asked[next - 1]));
  }

  // Features of the prompt, and a 1 because there is a start.
  promptFeatures(loss) {
    const target = Math.min(Math.log(Math.max(loss, 0) + 1e-4), 3);
    const waves = [0.5, 1, 2, 4].map((frequency) => target * frequency);
    return Float32Array.of(target / 2, 1, 0, 0, ...waves.map(Math.sin), ...waves.map(Math.cos), 1);
  }

  // Tokens by group: their places in the network, the start, and the prototypes of the recurrence.
  read(start, asked) {
    const count = this.page.group_sizes.length;
    let tokens = this.page.group_sizes.map((size, g) => {
      const place = this.linear("role", Float32Array.of(g === 1, g === count - 1, g / count).map((v) => v * (count > 1)));
      return add(new Float32Array(size * this.width), place);
    });
    for (const [name, key, g] of this.page.blocks)
      tokens[g] = add(tokens[g], this.linear(`start_encoders.${key}`, this.rows(name, [start])));
    if (!this.has("prototype")) return tokens;
    const told = this.linear("recurrence_condition", asked);
    let sequence = join(...tokens.map((part) => add(this.meanRow(this.summary(part)), told)));
    for (let layer = 0; this.has(`recurrent.${layer}.norm`); layer++) sequence = this.recur(`recurrent.${layer}`, sequence);
    const prototypes = this.linear("prototype", sequence);
    return tokens.map((part, g) => add(part, prototypes.subarray(g * this.width, (g + 1) * this.width)));
  }

  summary(x) {
    return gelu(this.linear("summary.1", this.norm("summary.0", x)));
  }

  meanRow(x) {
    const rows = x.length / this.width, mean = new Float32Array(this.width);
    x.forEach((value, k) => (mean[k % this.width] += value / rows));
    return mean;
  }

  // h_t = keep_t * h_(t-1) + (1 - keep_t) * value_t in both directions, gated.
  recur(name, x) {
    const d = this.width, length = x.length / d, fed = this.linear(`${name}.inputs`, this.norm(`${name}.norm`, x));
    const mixed = new Float32Array(2 * length * d);
    for (const direction of [0, 1])
      for (let k = 0; k < d; k++)
        for (let step = 0, state = 0; step < length; step++) {
          const t = direction ? length - 1 - step : step, at = 5 * t * d + direction * d + k;
          const keep = sigmoid(fed[at]), gate = fed[5 * t * d + 4 * d + k];
          state = keep * state + (1 - keep) * fed[at + 2 * d];
          mixed[2 * t * d + direction * d + k] = state * gate * sigmoid(gate);
        }
    return add(x, this.linear(`${name}.output`, mixed));
  }

  // Denoiser block: tokens (n, d), with attention over all of them; modulated by the condition.
  block(name, x, condition) {
    const d = this.width, modulation = this.linear(`${name}.modulation`, condition);
    const [scale1, shift1, scale2, shift2] = [0, 1, 2, 3].map((i) => modulation.subarray(i * d, (i + 1) * d));
    const modulated = (scale, shift, y) => layerNorm(y, d).map((v, k) => v * (1 + scale[k % d]) + shift[k % d]);
    const heads = this.linear(`${name}.query_key_value`, modulated(scale1, shift1, x));
    x = add(x, this.linear(`${name}.output`, this.attend(heads)));
    const hidden = gelu(this.linear(`${name}.mlp.0`, modulated(scale2, shift2, x)));
    return add(x, this.linear(`${name}.mlp.2`, hidden));
  }

  // Queries, keys and values (n, 3d) -> (n, d).
  attend(heads) {
    const d = this.width, n = heads.length / (3 * d), size = d / this.page.num_heads;
    const mixed = new Float32Array(n * d);
    for (let from = 0; from < d; from += size)
      for (let i = 0; i < n; i++) {
        const logits = new Float32Array(n);
        for (let j = 0; j < n; j++)
          for (let k = from; k < from + size; k++) logits[j] += heads[3 * i * d + k] * heads[3 * j * d + d + k];
        softmax(logits.map((value) => value / Math.sqrt(size))).forEach((share, j) => {
          for (let k = from; k < from + size; k++) mixed[i * d + k] += share * heads[3 * j * d + 2 * d + k];
        });
      }
    return mixed;
  }

  // Clean normalised parameters (P,) predicted from noisy ones.
  predict(known, asked, time, drawn) {
    const angles = [1, 2, 4, 8, 16].map((frequency) => (time * frequency * Math.PI) / 2);
    const told = join(asked, angles.map(Math.sin), angles.map(Math.cos));
    const condition = this.linear("condition.2", gelu(this.linear("condition.0", told)));
    const tokens = known.map((part) => part);
    for (const [name, key, g] of this.page.blocks)
      tokens[g] = add(tokens[g], this.linear(`drawn_encoders.${key}`, this.rows(name, drawn)));
    let x = add(join(...tokens), condition);
    for (let layer = 0; this.has(`blocks.${layer}.output`); layer++) x = this.block(`blocks.${layer}`, x, condition);
    x = this.norm("final_norm", x);
    const clean = new Float32Array(this.numParams), ends = [];
    this.page.group_sizes.reduce((from, size, g) => (ends[g] = from + size * this.width), 0);
    for (const [name, key, g] of this.page.blocks) {
      const part = x.subarray(ends[g] - this.page.group_sizes[g] * this.width, ends[g]);
      const values = this.linear(`decoders.${key}`, part);
      this.tensors[`block.${name}`].data.forEach((place, k) => (clean[place] = values[k]));
    }
    return clean;
  }

  // A network (P,) from a start (P,), a loss and `numDraws` Gaussian vectors, by deterministic DDIM.
  generate(start, loss, noise) {
    const { mean: { data: mean }, std: { data: std }, times, kept } = this.tensors;
    const asked = this.promptFeatures(this.calibrated(loss));
    const known = this.read(start.map((value, k) => (std[k] > 0 ? (value - mean[k]) / std[k] : 0)), asked);
    let values = noise[0];
    times.data.forEach((time, step) => {
      const clean = this.predict(known, asked, time, this.page.use_latent ? [values, noise[step + 1]] : [values]);
      const [before, after] = [kept.data[2 * step], kept.data[2 * step + 1]];
      const [noiseBefore, noiseAfter] = [Math.sqrt(1 - before), Math.sqrt(1 - after)];
      values = clean.map(
        (value, k) => Math.sqrt(after) * value + (noiseAfter * (values[k] - Math.sqrt(before) * value)) / noiseBefore,
      );
    });
    return values.map((value, k) => value * std[k] + mean[k]);
  }

  // Class probabilities (E, K) of a network (P,) on inputs (E, pixels).
  answers(params, inputs) {
    let x = inputs, numOutputs = 0;
    this.page.layers.forEach(([weight, bias, outs, ins], i) => {
      const slot = (from, size) => ({ shape: [outs, ins], data: params.subarray(from, from + size) });
      x = affine(x, slot(weight, outs * ins), slot(bias, outs));
      if (i < this.page.layers.length - 1) x = x.map((value) => Math.max(value, 0));
      numOutputs = outs;
    });
    return Array.from({ length: x.length / numOutputs }, (_, e) => softmax(x.subarray(e * numOutputs, (e + 1) * numOutputs)));
  }

  // Mean loss in nats and accuracy of a network on the validation split.
  evaluate(params) {
    const targets = this.tensors["val.targets"].data;
    const answers = this.answers(params, this.tensors["val.inputs"].data);
    const loss = answers.reduce((sum, row, e) => sum - Math.log(Math.max(row[targets[e]], 1e-30)), 0);
    const right = answers.filter((row, e) => row.indexOf(Math.max(...row)) === targets[e]).length;
    return { loss: loss / answers.length, accuracy: right / answers.length };
  }

  // An initial network (P,) as torch.nn.Linear makes it, and Gaussian vectors, all from one seed.
  draw(seed) {
    const uniform = mulberry32(seed);
    const start = this.tensors.bound.data.map((bound) => bound * (2 * uniform() - 1));
    const gaussian = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
    const noise = Array.from({ length: this.numDraws }, () => new Float32Array(this.numParams).map(gaussian));
    return { start, noise };
  }
}
