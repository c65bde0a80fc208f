/* The MLP rule on a CPU: one call does what `chunked_mlp.chunked_update_` does to one tensor of N networks.

   Elements are handled 64 at a time, so that features and activations stay in the first-level cache. Sums over a tensor
   are taken slab by slab and then over slabs in order, so results do not depend on the number of threads.

   Legend: N networks, H hidden units (padded to a multiple of UNITS), F features that vary along rows and columns,
   E x R x C one tensor (see `features`), element i = (e * R + r) * C + c. Arrays are contiguous unless strides are
   given; features and activations are (F, LANES) and (H, LANES). */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#define LANES 64
#define UNITS 8 /* computed together for WIDTH elements */
#define SLAB 1024

#define DECAYS 3
#define INPUTS 39
#define TIME_INPUTS 11
#define DENSE 16
#define VECTOR 22 /* F of a vector, whose row and column features vary along it */
#define ALONG 6   /* row features, column features */

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t mask __attribute__((vector_size(4 * WIDTH)));
typedef float lanes[LANES] __attribute__((aligned(64)));

typedef struct {
    int64_t num_networks, num_blocks, num_rows, num_columns, factored, hidden;
    const float *theta;      /* (N, M) */
    const float *inner_step; /* (N,) */
    float *param;            /* (N, E, R, C) */
    const float *grad;       /* (N, E, R, C) */
    int64_t theta_stride, inner_step_stride, param_strides[4], grad_strides[4];
    float *momentum;         /* (N, 3, E, R, C) */
    float *square;           /* (N, E, R, C) */
    float *row, *column;     /* (N, 3, E, R) and (N, 3, E, C); (N, 3, C) both for vectors */
    const uint8_t *active;   /* (N,): the other networks stay as they are; NULL for all */
    float step_size, shrink;
} Update;

typedef struct { /* one network's scratch */
    float momentum_weight[DECAYS], square_weight, factored_weight[DECAYS];
    float *row_factor, *column_factor; /* (3, E * R) and (3, E * C), matrices only */
    float *sums;                       /* (slabs, F) squares of the features */
    float *first, *second, *last;      /* (H / UNITS, F, UNITS), (H / UNITS, H, UNITS), (2, H) */
    float *row_bias;                   /* (H, E * R) with the constant part; (H, 1) for vectors */
    float *column_bias;                /* (H, E * C), matrices only */
    float *second_bias;                /* (H,) */
    float *inverse_root;               /* (3, E * C), matrices only */
} Scratch;

/* Columns of the first layer, in the order of `dense_features` */
static const int DENSE_INPUTS[DENSE] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 25, 26, 27};
static const int ROW_INPUTS[ALONG] = {13, 14, 15, 19, 20, 21};
static const int COLUMN_INPUTS[ALONG] = {16, 17, 18, 22, 23, 24};
static const float TIMESCALES[TIME_INPUTS] = {1, 3, 10, 30, 100, 300, 1e3f, 3e3f, 1e4f, 3e4f, 1e5f};

static int is_active(const Update *u, int64_t n) { return !u->active || u->active[n]; }
static int64_t numel(const Update *u) { return u->num_blocks * u->num_rows * u->num_columns; }
static int64_t padded(int64_t hidden) { return (hidden + UNITS - 1) / UNITS * UNITS; }
static int64_t num_slabs(const Update *u) { return (numel(u) + SLAB - 1) / SLAB; }
static int num_features(const Update *u) { return u->factored ? DENSE : VECTOR; }
static float rsqrt(float x) { return 1.0f / sqrtf(x); }
static float safe_rsqrt(float x) { return rsqrt(x < 1e-9f ? 1e-9f : x); }
static float inverse_rms(double mean_square) { return rsqrt((float)mean_square + 1e-5f); }
static float clamp01(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }

static int64_t offset(const int64_t *strides, const Update *u, int64_t n, int64_t block_row) {
    return n * strides[0] + block_row / u->num_rows * strides[1] + block_row % u->num_rows * strides[2];
}

/* Part of a run of elements that lies in one row. */
typedef struct {
    int64_t row, block, column; /* row = e * R + r, column = c */
    int lane, count;
} Piece;

static Piece piece(const Update *u, int64_t first, int lane, int count) {
    int64_t row = (first + lane) / u->num_columns, column = (first + lane) % u->num_columns;
    int64_t left = u->num_columns - column;
    return (Piece){row, row / u->num_rows, column, lane, left < count - lane ? (int)left : count - lane};
}

#define FOR_PIECES(p, u, first, total) \
    for (Piece p = piece(u, first, 0, total); p.lane < (total); p = piece(u, first, p.lane + p.count, total))

/* Weights of new values in the exponential averages, 1 - learned decay. */
static void unpack_decays(const Update *u, int64_t n, Scratch *s) {
    static const float initial[2 * DECAYS + 1] = {0.9f, 0.99f, 0.999f, 0.999f, 0.9f, 0.99f, 0.999f};
    int64_t h = u->hidden;
    const float *offsets = u->theta + n * u->theta_stride + h * (INPUTS + 1) + h * (h + 1) + 2 * (h + 1);
    float weight[2 * DECAYS + 1];
    for (int i = 0; i < 2 * DECAYS + 1; i++) {
        float decay = 1 - expf(log1pf(-initial[i]) + 10 * offsets[i]);
        weight[i] = 1 - (i < DECAYS ? decay : clamp01(decay));
    }
    memcpy(s->momentum_weight, weight, sizeof s->momentum_weight);
    s->square_weight = weight[DECAYS];
    memcpy(s->factored_weight, weight + DECAYS + 1, sizeof s->factored_weight);
}

/* Row and column averages of squared gradients, and Adafactor's factors of them. Uses `column_bias` as room. */
static void accumulate_factors(const Update *u, int64_t n, Scratch *s) {
    int64_t num_rows = u->num_rows, num_columns = u->num_columns, stride = u->grad_strides[3];
    for (int64_t e = 0; e < u->num_blocks; e++) {
        float *restrict column_sum = s->column_bias;
        memset(column_sum, 0, num_columns * sizeof(float));
        for (int64_t r = e * num_rows; r < (e + 1) * num_rows; r++) {
            const float *restrict grad = u->grad + offset(u->grad_strides, u, n, r);
            vec partial = {0};
            int64_t c = 0;
            if (stride == 1)
                for (; c + WIDTH <= num_columns; c += WIDTH) {
                    vec g, sum;
                    memcpy(&g, grad + c, sizeof g);
                    memcpy(&sum, column_sum + c, sizeof g);
                    partial += g * g;
                    sum += g * g;
                    memcpy(column_sum + c, &sum, sizeof g);
                }
            float row_sum = 0;
            for (int i = 0; i < WIDTH; i++) row_sum += partial[i];
            for (; c < num_columns; c++) {
                float square = grad[c * stride] * grad[c * stride];
                row_sum += square;
                column_sum[c] += square;
            }
            for (int k = 0; k < DECAYS; k++) {
                float *row = u->row + (n * DECAYS + k) * u->num_blocks * num_rows + r;
                *row += s->factored_weight[k] * (row_sum / num_columns + 1e-30f - *row);
            }
        }
        for (int k = 0; k < DECAYS; k++) {
            float *column = u->column + ((n * DECAYS + k) * u->num_blocks + e) * num_columns;
            float *column_factor = s->column_factor + (k * u->num_blocks + e) * num_columns;
            for (int64_t c = 0; c < num_columns; c++) {
                column[c] += s->factored_weight[k] * (column_sum[c] / num_rows + 1e-30f - column[c]);
                column_factor[c] = safe_rsqrt(column[c]);
            }
            const float *row = u->row + ((n * DECAYS + k) * u->num_blocks + e) * num_rows;
            float *row_factor = s->row_factor + (k * u->num_blocks + e) * num_rows;
            double sum = 0;
            for (int64_t r = 0; r < num_rows; r++) sum += row[r];
            float mean = (float)(sum / num_rows) + 1e-9f;
            for (int64_t r = 0; r < num_rows; r++) row_factor[r] = safe_rsqrt(row[r] / mean);
        }
    }
}

/* Gradient and parameter of up to LANES elements from `first`; the rest of the lanes is 0. */
static void load(const Update *u, int64_t n, int64_t first, int count, lanes *x) {
    memset(x, 0, 2 * sizeof(lanes));
    FOR_PIECES(p, u, first, count) {
        const float *grad = u->grad + offset(u->grad_strides, u, n, p.row) + p.column * u->grad_strides[3];
        const float *param = u->param + offset(u->param_strides, u, n, p.row) + p.column * u->param_strides[3];
        for (int i = 0; i < p.count; i++) x[0][p.lane + i] = grad[i * u->grad_strides[3]];
        for (int i = 0; i < p.count; i++) x[1][p.lane + i] = param[i * u->param_strides[3]];
    }
}

/* Averages of elements; a vector's row and column averages are also of elements. */
static void accumulate_elements(const Update *u, int64_t n, int64_t first, int count, const Scratch *s,
                                const float *grad) {
    for (int k = 0; k < DECAYS; k++) {
        float *momentum = u->momentum + (n * DECAYS + k) * numel(u) + first, weight = s->momentum_weight[k];
        for (int i = 0; i < count; i++) momentum[i] += weight * (grad[i] - momentum[i]);
    }
    float *square = u->square + n * numel(u) + first;
    for (int i = 0; i < count; i++) square[i] += s->square_weight * (grad[i] * grad[i] - square[i]);
    for (int k = 0; k < DECAYS && !u->factored; k++) {
        float *column = u->column + (n * DECAYS + k) * numel(u) + first, weight = s->factored_weight[k];
        for (int i = 0; i < count; i++) column[i] += weight * (grad[i] * grad[i] + 1e-30f - column[i]);
        memcpy(u->row + (n * DECAYS + k) * numel(u) + first, column, count * sizeof(float));
    }
}

/* Preconditioned gradient and momentum of one decay of a matrix. */
static void precondition(const Update *u, int64_t first, int count, const Scratch *s, int k, lanes *x) {
    FOR_PIECES(p, u, first, count) {
        float row = s->row_factor[k * u->num_blocks * u->num_rows + p.row];
        const float *column = s->column_factor + (k * u->num_blocks + p.block) * u->num_columns + p.column;
        for (int i = p.lane; i < p.lane + p.count; i++) {
            float factor = row * column[i - p.lane];
            x[10 + k][i] = factor * x[0][i];
            x[13 + k][i] = factor * x[2 + k][i];
        }
    }
}

/* The F features of up to LANES elements, given gradients and parameters in x[0] and x[1]; unused lanes are 0. */
static void dense_features(const Update *u, int64_t n, int64_t first, int count, const Scratch *s, lanes *restrict x) {
    const float *square = u->square + n * numel(u) + first;
    memset(x + 2, 0, (num_features(u) - 2) * sizeof(lanes));
    for (int i = 0; i < count; i++) x[5][i] = square[i];
    for (int i = 0; i < count; i++) x[9][i] = rsqrt(square[i] + 1e-6f);
    for (int k = 0; k < DECAYS; k++) {
        const float *momentum = u->momentum + (n * DECAYS + k) * numel(u) + first;
        for (int i = 0; i < count; i++) x[2 + k][i] = momentum[i];
        for (int i = 0; i < count; i++) x[6 + k][i] = momentum[i] * x[9][i];
        if (u->factored) {
            precondition(u, first, count, s, k, x);
            continue;
        }
        const float *column = u->column + (n * DECAYS + k) * numel(u) + first;
        for (int i = 0; i < count; i++) {
            x[10 + k][i] = x[0][i] * safe_rsqrt(column[i] + 1e-9f);
            x[13 + k][i] = momentum[i] * rsqrt(column[i] + 1e-6f);
            x[16 + k][i] = column[i];
            x[19 + k][i] = rsqrt(column[i] + 1e-8f);
        }
    }
}

/* Accumulates a slab's gradients and sums the squares of its features. */
static void statistics(const Update *u, int64_t n, int64_t slab, const Scratch *s) {
    int64_t end = (slab + 1) * SLAB < numel(u) ? (slab + 1) * SLAB : numel(u);
    lanes x[VECTOR];
    vec sums[VECTOR];
    memset(sums, 0, sizeof sums);
    for (int64_t first = slab * SLAB; first < end; first += LANES) {
        int count = end - first < LANES ? (int)(end - first) : LANES;
        load(u, n, first, count, x);
        accumulate_elements(u, n, first, count, s, x[0]);
        dense_features(u, n, first, count, s, x);
        for (int k = 0; k < num_features(u); k++)
            for (int i = 0; i < LANES; i += WIDTH) sums[k] += *(vec *)(x[k] + i) * *(vec *)(x[k] + i);
    }
    for (int k = 0; k < num_features(u); k++) {
        float sum = 0;
        for (int i = 0; i < WIDTH; i++) sum += sums[k][i];
        s->sums[slab * num_features(u) + k] = sum;
    }
}

/* bias (H, count) += share of an average (3, count) along rows or columns and of its inverse root. */
static void add_along(const Update *u, const float *theta, const float *average, int64_t count, const int *inputs,
                      float *restrict inverse_root, float *restrict bias) {
    double sums[ALONG] = {0};
    float scale[ALONG];
    for (int64_t i = 0; i < DECAYS * count; i++) {
        inverse_root[i] = rsqrt(average[i] + 1e-8f);
        sums[i / count] += average[i] * average[i];
        sums[DECAYS + i / count] += inverse_root[i] * inverse_root[i];
    }
    for (int j = 0; j < ALONG; j++) scale[j] = inverse_rms(sums[j] / count);
    for (int64_t h = 0; h < u->hidden; h++)
        for (int j = 0; j < ALONG; j++) {
            float weight = theta[h * INPUTS + inputs[j]] * scale[j];
            const float *x = (j < DECAYS ? average : inverse_root) + j % DECAYS * count;
            for (int64_t i = 0; i < count; i++) bias[h * count + i] += weight * x[i];
        }
}

/* The network with normalisation, time, rows and columns folded into its first layer, in the order of use. */
static void fold(const Update *u, int64_t n, Scratch *s) {
    int64_t h = u->hidden, hp = padded(h), num_rows = u->factored ? u->num_blocks * u->num_rows : 1;
    int f = num_features(u);
    const float *theta = u->theta + n * u->theta_stride;
    const float *bias = theta + h * INPUTS, *second = bias + h, *second_bias = second + h * h, *last = second_bias + h;
    float scale[VECTOR], time[TIME_INPUTS];
    for (int k = 0; k < f; k++) {
        double sum = 0;
        for (int64_t slab = 0; slab < num_slabs(u); slab++) sum += s->sums[slab * f + k];
        scale[k] = inverse_rms(sum / numel(u));
    }
    for (int k = 0; k < TIME_INPUTS; k++) time[k] = tanhf(u->inner_step[n * u->inner_step_stride] / TIMESCALES[k] - 1);
    for (int64_t i = 0; i < h; i++) {
        const float *row = theta + i * INPUTS;
        float *first = s->first + i / UNITS * f * UNITS + i % UNITS, constant = bias[i];
        for (int k = 0; k < DENSE; k++) first[k * UNITS] = row[DENSE_INPUTS[k]] * scale[k];
        for (int k = DENSE; k < f; k++)
            first[k * UNITS] = (row[ROW_INPUTS[k - DENSE]] + row[COLUMN_INPUTS[k - DENSE]]) * scale[k];
        for (int k = 0; k < TIME_INPUTS; k++) constant += row[INPUTS - TIME_INPUTS + k] * time[k];
        for (int64_t r = 0; r < num_rows; r++) s->row_bias[i * num_rows + r] = constant;
        for (int64_t k = 0; k < h; k++) s->second[(i / UNITS * hp + k) * UNITS + i % UNITS] = second[i * h + k];
        s->second_bias[i] = second_bias[i];
        for (int o = 0; o < 2; o++) s->last[o * hp + i] = last[o * h + i];
    }
    if (!u->factored) return;
    int64_t num_columns = u->num_blocks * u->num_columns;
    memset(s->column_bias, 0, h * num_columns * sizeof(float));
    const float *rows = u->row + n * DECAYS * num_rows, *columns = u->column + n * DECAYS * num_columns;
    add_along(u, theta, rows, num_rows, ROW_INPUTS, s->inverse_root, s->row_bias);
    add_along(u, theta, columns, num_columns, COLUMN_INPUTS, s->inverse_root, s->column_bias);
}

/* Biases of the first layer for up to LANES elements. */
static void load_bias(const Update *u, int64_t first, int count, const Scratch *s, lanes *restrict hidden) {
    int64_t hp = padded(u->hidden);
    int64_t num_rows = u->num_blocks * u->num_rows, num_columns = u->num_blocks * u->num_columns;
    if (!u->factored) {
        for (int64_t h = 0; h < hp; h++)
            for (int i = 0; i < LANES; i++) hidden[h][i] = s->row_bias[h];
        return;
    }
    FOR_PIECES(p, u, first, count) {
        const float *row = s->row_bias + p.row, *column = s->column_bias + p.block * u->num_columns + p.column;
        for (int64_t h = 0; h < hp; h++)
            for (int i = 0; i < p.count; i++) hidden[h][p.lane + i] = row[h * num_rows] + column[h * num_columns + i];
    }
}

static vec relu(vec x) { return (vec)((mask)x & ~(mask)(x < 0)); } /* NaN stays NaN */

/* exp by reduction to [-log(2) / 2, log(2) / 2], to 2 units in the last place; the range of float bounds x. */
static vec exponential(vec x) {
    static const float coefficients[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    vec low = {0}, high = {0}, y = {0};
    low -= 87, high += 88, y += 1.0f / 720;
    mask is_low = x < low, is_high = x > high;
    x = (vec)(((mask)x & ~is_low & ~is_high) | ((mask)low & is_low) | ((mask)high & is_high));
    vec magic = {0};
    magic += 12582912; /* 1.5 * 2^23: adding it rounds to an integer */
    vec power = x * 1.44269504f + magic - magic;
    vec rest = x - power * 0.693359375f + power * 2.12194440e-4f;
    for (int i = 0; i < 6; i++) y = y * rest + coefficients[i];
    return y * (vec)((__builtin_convertvector(power, mask) + 127) << 23);
}

/* sums[i] += weight (K, UNITS) transposed times x (K, lanes): where the time is spent, so sums stay in registers. */
static inline void multiply(vec sums[UNITS], const float *weight, const lanes *x, int64_t num_inputs) {
    for (int64_t k = 0; k < num_inputs; k++, weight += UNITS)
        for (int i = 0; i < UNITS; i++) sums[i] += weight[i] * *(const vec *)x[k];
}

/* Steps of WIDTH elements from features (F, lanes) and biases in `hidden` (H, lanes), which become activations. */
static vec network(const Update *u, int64_t n, const Scratch *s, const lanes *x, lanes *hidden) {
    int64_t h = u->hidden, hp = padded(h);
    const float *last_bias = u->theta + n * u->theta_stride + h * (INPUTS + 1) + h * (h + 1) + 2 * h;
    vec sums[UNITS], direction = {0}, magnitude = {0};
    for (int64_t unit = 0; unit < hp; unit += UNITS) {
        for (int i = 0; i < UNITS; i++) sums[i] = *(vec *)hidden[unit + i];
        multiply(sums, s->first + unit * num_features(u), x, num_features(u));
        for (int i = 0; i < UNITS; i++) *(vec *)hidden[unit + i] = relu(sums[i]);
    }
    for (int64_t unit = 0; unit < hp; unit += UNITS) {
        for (int i = 0; i < UNITS; i++) sums[i] = s->second_bias[unit + i] - (vec){0};
        multiply(sums, s->second + unit * hp, (const lanes *)hidden, hp);
        for (int i = 0; i < UNITS; i++) {
            direction += s->last[unit + i] * relu(sums[i]);
            magnitude += s->last[hp + unit + i] * relu(sums[i]);
        }
    }
    return (direction + last_bias[0]) * exponential(0.001f * (magnitude + last_bias[1]));
}

/* Changes a slab's parameters. */
static void apply(const Update *u, int64_t n, int64_t slab, const Scratch *s, lanes *hidden) {
    int64_t end = (slab + 1) * SLAB < numel(u) ? (slab + 1) * SLAB : numel(u);
    lanes x[VECTOR], steps;
    for (int64_t first = slab * SLAB; first < end; first += LANES) {
        int count = end - first < LANES ? (int)(end - first) : LANES;
        load(u, n, first, count, x);
        dense_features(u, n, first, count, s, x);
        load_bias(u, first, count, s, hidden);
        for (int i = 0; i < count; i += WIDTH) /* `lanes` from lane i on */
            *(vec *)(steps + i) = network(u, n, s, (const lanes *)(x[0] + i), (lanes *)(hidden[0] + i));
        FOR_PIECES(p, u, first, count) {
            float *param = u->param + offset(u->param_strides, u, n, p.row) + p.column * u->param_strides[3];
            for (int i = 0; i < p.count; i++)
                param[i * u->param_strides[3]] = u->shrink * x[1][p.lane + i] - u->step_size * steps[p.lane + i];
        }
    }
}

/* Divides zeroed memory among networks; returns the number of floats that one takes, so call it once with NULL. */
static int64_t divide(const Update *u, float *memory, Scratch *s) {
    int64_t hp = padded(u->hidden), f = num_features(u), rows = 1, columns = 0;
    if (u->factored) rows = u->num_blocks * u->num_rows, columns = u->num_blocks * u->num_columns;
    float **parts[] = {&s->sums, &s->first, &s->second, &s->last, &s->second_bias, &s->row_bias, &s->column_bias,
                       &s->row_factor, &s->column_factor, &s->inverse_root};
    int64_t sizes[] = {num_slabs(u) * f, hp * f, hp * hp, 2 * hp, hp, rows * hp, columns * hp,
                       u->factored ? DECAYS * rows : 0, DECAYS * columns, DECAYS * columns};
    int64_t used = 0;
    for (int i = 0; i < 10; i++) {
        if (memory) *parts[i] = memory + used;
        used += (sizes[i] + 15) / 16 * 16;
    }
    return used;
}

/* Returns 0, or 1 if there is no memory. */
int mlp_update(const Update *u, int num_threads) {
    int64_t n_networks = u->num_networks, slabs = num_slabs(u), num_tasks = n_networks * slabs;
    Scratch *scratch = malloc(n_networks * sizeof(Scratch)), unused;
    int64_t size = divide(u, NULL, &unused), hidden_size = padded(u->hidden) * LANES, failed = 0;
    float *memory = calloc(n_networks * size, sizeof(float));
    if (!scratch || !memory) failed = 1;
    for (int64_t n = 0; n < n_networks && !failed; n++) divide(u, memory + n * size, scratch + n);

#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && !failed)
    {
        lanes *hidden = aligned_alloc(64, hidden_size * sizeof(float));
        if (!hidden)
#pragma omp atomic write
            failed = 1;
#pragma omp barrier
        if (!failed) {
#pragma omp for
            for (int64_t n = 0; n < n_networks; n++) {
                if (!is_active(u, n)) continue;
                unpack_decays(u, n, scratch + n);
                if (u->factored) accumulate_factors(u, n, scratch + n);
            }
#pragma omp for
            for (int64_t t = 0; t < num_tasks; t++)
                if (is_active(u, t / slabs)) statistics(u, t / slabs, t % slabs, scratch + t / slabs);
#pragma omp for
            for (int64_t n = 0; n < n_networks; n++)
                if (is_active(u, n)) fold(u, n, scratch + n);
#pragma omp for
            for (int64_t t = 0; t < num_tasks; t++)
                if (is_active(u, t / slabs)) apply(u, t / slabs, t % slabs, scratch + t / slabs, hidden);
        }
        free(hidden);
    }
    free(scratch);
    free(memory);
    return (int)failed;
}
