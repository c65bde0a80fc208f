// The generator of `generator/tabular/` for one table: labelled points become a classifier. A test holds it to PyTorch.
// Everything is a Float32Array in row-major order, as in `model.py`, whose steps these are.
//
// Legend: n rows, D features, K classes, d token width, h heads, H hidden units.
"use strict";

class TabularGenerator {
  constructor({ tensors, metadata }) {
    Object.assign(this, { tensors, options: JSON.parse(metadata.model) });
  }

  linear(name, x) {
    return affine(x, this.tensors[`${name}.weight`], this.tensors[`${name}.bias`]);
  }

  norm(name, x) {
    const { data: gain } = this.tensors[`${name}.weight`];
    return layerNorm(x, gain.length, gain, this.tensors[`${name}.bias`].data);
  }

  // The network of rows (n, D) with labels from 0 to K - 1.
  generate(inputs, labels, K) {
    const n = labels.length, D = inputs.length / n, t = (this.table = { n, D, K, labels });
    Object.assign(t, standardisation(inputs, D));
    t.z = squashed(inputs, t);
    t.live = Math.max(t.scale.filter((value) => value > 0).length, 1);
    t.classes = new Float32Array(n * K);
    labels.forEach((label, i) => (t.classes[i * K + label] = 1));
    t.share = columnMeans(t.classes, K);
    t.covariance = rowProducts(transposed(t.z, D), transposed(t.z, D), n).map((value) => value / n);
    const shrunk = t.covariance.map((value, k) => value + (k % (D + 1) === 0 ? 0.02 : 0));
    const identity = new Float32Array(D * D).map((_, k) => (k % (D + 1) === 0 ? 1 : 0));
    t.precision = choleskySolve(cholesky(shrunk, D), D, identity);

    // How much each feature counts: (D, *) for each head of the blocks, for places, for directions, for the readout.
    const usual = this.tensors.usual_relevance.data, count = usual.length;
    const learned = rowProducts(gelu(this.linear("statistics", featureStatistics(t))), this.tensors["relevance.weight"].data, 32);
    const relevances = learned.map((value, k) => Math.exp(usual[k % count] + 3 * Math.tanh(value / 3)) / t.live);
    const { num_heads: heads, num_blocks: numBlocks } = this.options, last = heads * numBlocks;
    const relevance = (from, size) =>
      new Float32Array(D * size).map((_, k) => relevances[Math.floor(k / size) * count + from + (k % size)]);

    // Where rows stand.
    let tokens = this.linear("rows", rowFeatures(t));
    for (let block = 0; block < numBlocks; block++)
      tokens = this.block(`blocks.${block}`, tokens, places(t, relevance(block * heads, heads)));
    tokens = this.norm("norm", tokens);

    // Hidden units, and the readout.
    const mixture = this.linear("mixture", columnMeans(tokens, this.options.width));
    const [penalty, nonlinear, direct, whitened] = mixture.map((value) => Math.exp(Math.min(Math.max(value, -6), 6)));
    const { weights, biases } = this.units(tokens, places(t, relevance(last, 2)), relevance(last + 2, 1));
    const size = nonlinear / Math.sqrt(biases.length);
    const network = { ...t, inWeights: weights.map((v) => v * size), inBias: biases.map((v) => v * size) };
    const ofReadout = relevance(last + 3, 1);
    const metric = t.precision.map((value, k) => {
      const diagonal = k % (D + 1) === 0 ? direct * ofReadout[Math.floor(k / D)] : 0;
      return diagonal + (whitened * value) / t.live;
    });
    network.offset = t.share.map((share) => (share > 0 ? Math.log(Math.max(share, 1e-9)) : -1e4));
    const hidden = hiddenOf(network, t.z), measured = rowProducts(t.z, metric, D);
    const linearPart = rowProducts(measured, t.z, D);
    const gram = rowProducts(hidden, hidden, biases.length).map((value, k) => value + linearPart[k] + 1);
    const coefficients = this.readout(gram, network.offset, penalty);
    const columns = transposed(coefficients, K); // (K, n)
    network.outWeights = rowProducts(columns, transposed(hidden, biases.length), n); // (K, H)
    network.directWeights = rowProducts(columns, transposed(measured, D), n); // (K, D)
    network.outBias = network.offset.map((value, k) => value + columns.subarray(k * n, (k + 1) * n).reduce((a, b) => a + b, 0));
    return network;
  }

  // Logits (h, asking rows, n) of attention: learned queries, distances (places (n, h, D)) and shared classes.
  attention(name, tokens, where, heads, asking) {
    const { n, D, labels } = this.table, same = this.tensors[`${name}.same`].data;
    const queries = this.linear(`${name}.queries`, tokens), keys = this.linear(`${name}.keys`, tokens), size = keys.length / n / heads;
    const logits = new Float32Array(heads * asking.length * n);
    for (let h = 0; h < heads; h++)
      asking.forEach((i, a) => {
        for (let j = 0; j < n; j++) {
          let sum = labels[i] === labels[j] ? same[h] : 0;
          for (let k = 0; k < size; k++) sum += (queries[(i * heads + h) * size + k] / Math.sqrt(size)) * keys[(j * heads + h) * size + k];
          for (let k = 0; k < D; k++) {
            const other = where[(j * heads + h) * D + k];
            sum += 2 * where[(i * heads + h) * D + k] * other - other * other;
          }
          logits[(h * asking.length + a) * n + j] = sum;
        }
      });
    return logits;
  }

  block(name, tokens, where) {
    const { n, K, labels, classes } = this.table, { width, num_heads: heads } = this.options;
    const inner = this.norm(`${name}.norm`, tokens), size = width / heads;
    const logits = this.attention(`${name}.attention`, inner, where, heads, labels.map((_, i) => i));
    const values = this.linear(`${name}.values`, inner), heard = new Float32Array(n * (width + 2 * heads));
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < n; i++) {
        const row = logits.slice((h * n + i) * n, (h * n + i + 1) * n);
        row[i] -= 1e4; // not itself
        const weights = softmax(row), shares = new Float32Array(K), at = i * (width + 2 * heads);
        weights.forEach((weight, j) => {
          for (let k = 0; k < size; k++) heard[at + h * size + k] += weight * values[j * width + h * size + k];
          for (let k = 0; k < K; k++) shares[k] += weight * classes[j * K + k];
        });
        heard[at + width + h] = shares[labels[i]];
        heard[at + width + heads + h] = shares.reduce((sum, share) => sum + share * share, 0);
      }
    tokens = add(tokens, this.linear(`${name}.output`, heard));
    return add(tokens, this.linear(`${name}.mlp.3`, gelu(this.linear(`${name}.mlp.1`, this.norm(`${name}.mlp.0`, tokens)))));
  }

  // Weights (H, D) and biases (H,) of hidden units, each anchored at a row.
  units(tokens, where, relevance) {
    const { n, D, z, precision, live } = this.table, { width, num_units: most } = this.options;
    const sharpness = Math.exp(this.tensors["units.sharpness"].data[0]) - 1;
    const whitening = sigmoid(this.tensors["units.whitening"].data[0]);
    const order = Array.from({ length: n }, (_, i) => i).sort((i, j) => tokens[i * width] - tokens[j * width]);
    const H = Math.min(most, n), anchors = Array.from({ length: H }, (_, u) => order[Math.round((u * (n - 1)) / Math.max(H - 1, 1))]);
    const logits = this.attention("units.ends", tokens, where, 2, anchors);
    const end = (which, u) => {
      const place = new Float32Array(D), from = (which * H + u) * n;
      softmax(logits.subarray(from, from + n)).forEach((weight, j) => { for (let k = 0; k < D; k++) place[k] += weight * z[j * D + k]; });
      return place;
    };
    const shape = this.linear("units.shape", tokens), weights = new Float32Array(H * D), biases = new Float32Array(H);
    anchors.forEach((row, u) => {
      const near = end(0, u), far = end(1, u), between = near.map((value, k) => value - far[k]);
      const plain = unitLength(between.map((value, k) => value * (Math.abs(value) + 1e-3) ** sharpness * relevance[k] * live));
      const white = unitLength(rowProducts(between, precision, D)); // the precision is symmetric
      const direction = plain.map((value, k) => value + whitening * (white[k] - value));
      const [slope, place, shift] = shape.subarray(3 * row, 3 * row + 3);
      const along = direction.reduce((sum, value, k) => sum + value * between[k], 0);
      const steep = Math.exp(Math.min(Math.max(slope, -3), 3)) / (Math.abs(along) + 0.1);
      biases[u] = shift;
      direction.forEach((value, k) => {
        weights[u * D + k] = value * steep;
        biases[u] -= value * steep * (near[k] + sigmoid(place) * (far[k] - near[k]));
      });
    });
    return { weights, biases };
  }

  // Penalised logistic regression: coefficients (n, K) of the rows.
  readout(gram, offset, penalty) {
    const { n, K, classes } = this.table;
    const factor = cholesky(gram.map((value, k) => value / 2 + (k % (n + 1) === 0 ? penalty : 0)), n);
    let coefficients = new Float32Array(n * K);
    for (const rate of this.tensors.rates.data) {
      const logits = rowProducts(gram, transposed(coefficients, K), n).map((value, k) => value + offset[k % K]);
      const answers = join(...Array.from({ length: n }, (_, i) => softmax(logits.subarray(i * K, (i + 1) * K))));
      const residual = classes.map((value, k) => value - answers[k] - penalty * coefficients[k]);
      const step = choleskySolve(factor, n, residual);
      coefficients = coefficients.map((value, k) => value + rate * step[k]);
    }
    return coefficients;
  }
}

// Logits (q, K) of a generated network on rows (q, D).
function logitsOf(network, inputs) {
  const z = squashed(inputs, network), { D, K } = network;
  const direct = affine(z, { shape: [K, D], data: network.directWeights }, { data: network.outBias });
  return rowProducts(hiddenOf(network, z), network.outWeights, network.inBias.length).map((value, k) => value + direct[k]);
}
function hiddenOf({ inWeights, inBias, D }, z) {
  return affine(z, { shape: [inBias.length, D], data: inWeights }, { data: inBias }).map((value) => Math.max(value, 0));
}

function columnMeans(x, columns) {
  const means = new Float32Array(columns);
  x.forEach((value, k) => (means[k % columns] += (value * columns) / x.length));
  return means;
}
function standardisation(inputs, D) {
  const mean = columnMeans(inputs, D);
  const variance = columnMeans(inputs.map((value, k) => (value - mean[k % D]) ** 2), D);
  const scale = variance.map((value, k) => (Math.sqrt(value) > 1e-6 * (1 + Math.abs(mean[k])) ? 1 / Math.sqrt(value) : 0));
  return { mean, scale };
}
function squashed(inputs, { mean, scale, D }) {
  return inputs.map((value, k) => {
    const z = (value - mean[k % D]) * scale[k % D];
    return z / Math.sqrt(1 + (z / 4) ** 2);
  });
}
function places({ z, D, n }, relevance) { // (n, h, D), of which squared distances are weighted by relevance (D, h)
  const heads = relevance.length / D;
  return new Float32Array(n * heads * D).map((_, k) => {
    const feature = k % D, head = Math.floor(k / D) % heads, row = Math.floor(k / D / heads);
    return z[row * D + feature] * Math.sqrt(relevance[feature * heads + head]);
  });
}
function unitLength(vector) {
  const size = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0) + 1e-6);
  return vector.map((value) => value / size);
}

// What is known of each feature (D, 7).
function featureStatistics({ n, D, K, z, labels, covariance, live }) {
  const counts = new Float32Array(K);
  labels.forEach((label) => counts[label]++);
  return join(...Array.from({ length: D }, (_, d) => {
    const column = Array.from({ length: n }, (_, i) => z[i * D + d]);
    const explained = [(v) => v, (v) => Math.min(v * v, 9), Math.abs, Math.sign].map((read) => {
      const values = column.map(read), mean = values.reduce((a, b) => a + b, 0) / n, sums = new Float32Array(K);
      values.forEach((value, i) => (sums[labels[i]] += value - mean));
      const between = sums.reduce((total, sum, k) => total + sum ** 2 / Math.max(counts[k], 1), 0) / n;
      return between / (values.reduce((total, value) => total + (value - mean) ** 2, 0) / n + 1e-6);
    });
    let others = 0;
    for (let k = 0; k < D; k++) if (k !== d) others += covariance[d * D + k] ** 2;
    const fourth = column.reduce((sum, value) => sum + value ** 4, 0) / n;
    return [...explained, others / live, fourth / 9, Math.log(live) / 3];
  }));
}

// What is known of each row (n, 5) before it hears of others.
function rowFeatures({ n, D, z, labels, share, live }) {
  const numClasses = share.filter((value) => value > 0).length;
  return join(...labels.map((label, i) => {
    const size = z.subarray(i * D, (i + 1) * D).reduce((sum, value) => sum + value * value, 0) / live;
    return [size, Math.log(share[label]), Math.log(n) / 5, Math.log(live) / 3, Math.log(numClasses)];
  }));
}
