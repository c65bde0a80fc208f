// The few operations on numbers that the generators of this page take. Matrices are Float32Arrays in row-major order.
"use strict";

// A safetensors file as tensors {name: {shape, data}}, and its metadata {name: text}.
function readSafetensors(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const begin = 8 + Number(view.getBigUint64(0, true));
  const { __metadata__: metadata, ...entries } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, begin)));
  const kinds = { F32: Float32Array, I32: Int32Array };
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(entries))
    tensors[name] = { shape, data: new kinds[dtype](bytes.slice(begin + from, begin + to).buffer) };
  return { tensors, metadata };
}

// Rows (n, in) -> (n, out), four outputs at a time, so that their sums do not wait for each other.
function affine(x, { shape: [outs, ins], data: w }, { data: b }) {
  const rows = x.length / ins, y = new Float32Array(rows * outs);
  for (let i = 0; i < rows; i++) {
    const from = i * ins;
    let o = 0;
    for (; o + 4 <= outs; o += 4) {
      let s0 = b[o], s1 = b[o + 1], s2 = b[o + 2], s3 = b[o + 3];
      for (let k = 0, q = o * ins; k < ins; k++, q++) {
        const value = x[from + k];
        s0 += value * w[q]; s1 += value * w[q + ins]; s2 += value * w[q + 2 * ins]; s3 += value * w[q + 3 * ins];
      }
      y.set([s0, s1, s2, s3], i * outs + o);
    }
    for (; o < outs; o++) {
      let sum = b[o];
      for (let k = 0; k < ins; k++) sum += x[from + k] * w[o * ins + k];
      y[i * outs + o] = sum;
    }
  }
  return y;
}

// Products of all rows of x (n, in) with all rows of y (m, in): (n, m).
function rowProducts(x, y, ins) {
  const rows = y.length / ins;
  return affine(x, { shape: [rows, ins], data: y }, { data: new Float32Array(rows) });
}
function transposed(x, columns) {
  const rows = x.length / columns;
  return x.map((_, k) => x[(k % rows) * columns + Math.floor(k / rows)]);
}

// Each row of length d to mean 0 and variance 1, times gain plus shift where given.
function layerNorm(x, d, gain, shift) {
  const y = new Float32Array(x.length);
  for (let i = 0; i < x.length; i += d) {
    let mean = 0, square = 0;
    for (let k = i; k < i + d; k++) mean += x[k] / d;
    for (let k = i; k < i + d; k++) square += (x[k] - mean) ** 2 / d;
    const scale = 1 / Math.sqrt(square + 1e-5);
    for (let k = 0; k < d; k++) y[i + k] = (x[i + k] - mean) * scale * (gain ? gain[k] : 1) + (shift ? shift[k] : 0);
  }
  return y;
}

// Source: Abramowitz and Stegun 1964, 7.1.26, to 1.5e-7.
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const sum = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(x) * (1 - sum * Math.exp(-x * x));
}
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const gelu = (x) => x.map((value) => 0.5 * value * (1 + erf(value * Math.SQRT1_2)));
const add = (x, y) => x.map((value, k) => value + y[k % y.length]); // y may be one row
const join = (...parts) => Float32Array.from(parts.flatMap((part) => Array.from(part)));

function softmax(row) {
  const top = row.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = row.map((value) => Math.exp(value - top));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / total);
}

// The lower factor L of a positive definite matrix (n, n) = L L^T, in double precision.
function cholesky(matrix, n) {
  const factor = new Float64Array(n * n);
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) {
      let sum = matrix[i * n + j];
      for (let k = 0; k < j; k++) sum -= factor[i * n + k] * factor[j * n + k];
      factor[i * n + j] = i === j ? Math.sqrt(sum) : sum / factor[j * n + j];
    }
  return factor;
}
// X (n, columns) with L L^T X = B.
function choleskySolve(factor, n, b) {
  const columns = b.length / n, x = Float64Array.from(b);
  for (let c = 0; c < columns; c++) {
    for (let i = 0; i < n; i++) {
      for (let k = 0; k < i; k++) x[i * columns + c] -= factor[i * n + k] * x[k * columns + c];
      x[i * columns + c] /= factor[i * n + i];
    }
    for (let i = n - 1; i >= 0; i--) {
      for (let k = i + 1; k < n; k++) x[i * columns + c] -= factor[k * n + i] * x[k * columns + c];
      x[i * columns + c] /= factor[i * n + i];
    }
  }
  return Float32Array.from(x);
}

// Uniform numbers in [0, 1). Source: Ettinger 2017, mulberry32, public domain.
function mulberry32(seed) {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
