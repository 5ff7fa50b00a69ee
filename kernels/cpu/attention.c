/* Causal attention straight from the paged KV cache: rotate, write new keys and values, attend.
 *
 * One kernel for decodes, prompts and chunks. A task is a tile of queries that share a key head,
 * over a part of their context; keys come in spans of SPAN positions, counted from position 0, with
 * a running softmax (Milakov and Gimelshein 2018; Dao et al. 2022). Spans and parts do not depend
 * on the batch, the chunk or the threads, so neither does one bit of a token's result. Scores,
 * weights and sums are float32; only what a row may see is ever read.
 */
#include <stdlib.h>

#include "calls.h"

#define LINE         64        /* bytes that memory gives at once */
#define SPAN         64        /* keys for which scores are held at once */
#define PART         2048      /* keys after which another task takes over */
#define LEAST        (1 << 16) /* products that are worth more than the calling thread */
#define TILE_QUERIES 32 /* (token, head) pairs of a tile, or the heads of one token if more */

typedef struct {
    long row, first, count; /* tokens first … first + count - 1 of a row's new ones */
    long part, parts;       /* which PART of the context, of how many */
    long partial; /* where the first part's unfinished result lies, in rows of `partials` */
} Tile;

/* The products of up to 4 queries with 4 keys: out[i * SPAN + j]. */
INLINE void score(const Call *c, const char *q, const char *const keys[4], float *out,
                  const int queries, const int kv_is_bf16) {
    const int size = kv_is_bf16 ? 2 : 4;
    const long bytes = c->batch->dim * size, step = c->padded * size;
    vec sums[4][4] = {0};
    for (long at = 0; at < bytes; at += VECTOR_BYTES) {
        vec k[4];
        for (int j = 0; j < 4; j++) k[j] = load_left(keys[j] + at, bytes - at);
        for (int i = 0; i < queries; i++) {
            const vec query = load(q + i * step + at);
            for (int j = 0; j < 4; j++) sums[i][j] = dot(sums[i][j], query, k[j], kv_is_bf16);
        }
    }
    for (int i = 0; i < queries; i++)
        put_quad(out + i * SPAN, lane_sums(sums[i][0], sums[i][1], sums[i][2], sums[i][3]), 0);
}

/* Two registers of what weights are multiplied with: bytes from `at` of two values as pairs in
 * bfloat16, or of one value in float32. */
INLINE void load_values(const char *value, const char *next, long at, long bytes, vec v[2],
                        const int kv_is_bf16) {
    if (kv_is_bf16)
        interleave(load_left(value + at, bytes - at), load_left(next + at, bytes - at), v);
    else
        for (int half = 0; half < 2; half++, at += VECTOR_BYTES)
            v[half] = load_left(value + at, bytes - at);
}

/* out[i] += sum over keys [low, high) of weights[i][key] * value[key], for up to 4 queries and 1 or
 * 2 PAIRs of the values from element `at`. */
INLINE void mix_at(const Call *c, float *out, const char *weights, const char *const *keys,
                   long low, long high, long at, const int queries, const int pairs,
                   const int kv_is_bf16) {
    const int size = kv_is_bf16 ? 2 : 4;
    const long to_values = c->values - c->keys, bytes = c->batch->dim * size;
    vec sums[4][4];
    for (int i = 0; i < queries; i++)
        for (int part = 0; part < 2 * pairs; part++)
            sums[i][part] = load(out + i * c->padded + at + part * LANES);
    for (long key = low; key < high; key += kv_is_bf16 ? 2 : 1) {
        vec v[4];
        for (int pair = 0; pair < pairs; pair++)
            load_values(keys[key] + to_values, keys[key + 1] + to_values,
                        (at + pair * PAIR) * size, bytes, v + 2 * pair, kv_is_bf16);
        for (int i = 0; i < queries; i++) {
            float weight; /* of a key, or a pair of them */
            memcpy(&weight, weights + (i * SPAN + key) * size, 4);
            for (int part = 0; part < 2 * pairs; part++)
                sums[i][part] = dot(sums[i][part], spread(weight), v[part], kv_is_bf16);
        }
    }
    for (int i = 0; i < queries; i++)
        for (int part = 0; part < 2 * pairs; part++)
            store(out + i * c->padded + at + part * LANES, sums[i][part]);
}

/* The same for whole values. Keys in bfloat16 come in pairs: low and high are even. */
INLINE void mix(const Call *c, float *out, const char *weights, const char *const *keys, long low,
                long high, const int queries, const int kv_is_bf16) {
    long at = 0;
    for (; at + PAIR < c->batch->dim; at += 2 * PAIR)
        mix_at(c, out, weights, keys, low, high, at, queries, 2, kv_is_bf16);
    if (at < c->batch->dim) mix_at(c, out, weights, keys, low, high, at, queries, 1, kv_is_bf16);
}

/* Scores to weights e^(score - top), rounded to the cache's dtype; `totals` adds them up. What was
 * mixed under a smaller top is rescaled. Keys outside [low, high) of the span get 0. */
INLINE void soften(float *scores, char *weights, float *top, vec *totals, float *out, long padded,
                   int low, int high, const int kv_is_bf16) {
    if (low > 0 || high < SPAN)
        for (int i = 0; i < SPAN; i++) scores[i] = i >= low && i < high ? scores[i] : -INFINITY;
    vec tops = load(scores);
    for (int i = LANES; i < SPAN; i += LANES) tops = higher(tops, load(scores + i));
    const float new_top = highest(tops);
    if (new_top > *top) {
        const float shrink = *top == -INFINITY ? 0.0f : fast_exp(*top - new_top);
        for (long d = 0; d < padded; d += LANES) store(out + d, load(out + d) * shrink);
        *totals *= shrink;
        *top = new_top;
    }
    const vec reference = spread(*top == -INFINITY ? 0.0f : *top);
    for (int i = 0; i < SPAN; i += LANES) {
        const vec weight = exp_below(load(scores + i) - reference);
        *totals += weight;
        put_vec(weights + i * (kv_is_bf16 ? 2 : 4), weight, kv_is_bf16);
    }
}

#define BY_FOURS(count, call)                                                                      \
    for (long i = 0; i < (count); i += 4) {                                                        \
        switch (least(4, (count) - i)) {                                                           \
        case 4: call(4); break;                                                                    \
        case 3: call(3); break;                                                                    \
        case 2: call(2); break;                                                                    \
        case 1: call(1); break;                                                                    \
        }                                                                                          \
    }

/* Find where the keys [low, high) of a span lie, fill up what is read around them, and have them
 * and their values brought near: the span before it is worked on meanwhile. */
INLINE void locate(const Call *c, const int32_t *table, long head, long start, long low, long high,
                   const char **keys, const int kv_is_bf16) {
    const Batch *b = c->batch;
    const long row = b->dim * (kv_is_bf16 ? 2 : 4), step = b->kv_heads * row;
    long block = (start + low) / b->block_size, offset = (start + low) % b->block_size;
    for (long j = low; j < high; block++, offset = 0) {
        const char *key = c->keys + (table[block] * b->block_size + offset) * step + head * row;
        const long end = least(high, j + b->block_size - offset);
        for (; j < end; j++, key += step) {
            keys[j] = key;
            for (long at = 0; at < row; at += LINE) {
                __builtin_prefetch(key + at);
                __builtin_prefetch(key + (c->values - c->keys) + at);
            }
        }
    }
    for (long j = low / 4 * 4; j < low; j++) keys[j] = keys[low];
    for (long j = high; j < high + 3; j++) keys[j] = keys[high - 1];
}

/* Attend from a tile's queries to one part of their context. q [queries, padded] is in the cache's
 * dtype, out [queries, padded] and totals [queries] in float32. */
INLINE void attend(const Call *c, const Tile *t, long head, const char *q, float *out, float *tops,
                   vec *totals, const int kv_is_bf16) {
    const Batch *b = c->batch;
    const long queries = t->count * c->group, size = kv_is_bf16 ? 2 : 4;
    const long num_new = b->query_starts[t->row + 1] - b->query_starts[t->row];
    const long position = b->kv_lens[t->row] - num_new + t->first; /* of the tile's first token */
    const int32_t *table = b->tables + t->row * b->table_width;
    const long seen_from = most(t->part * PART, most(0, position - c->window + 1));
    const long seen_to = least((t->part + 1) * PART, position + t->count);
    float scores[most(TILE_QUERIES, c->group) * SPAN];
    bf16 halves[most(TILE_QUERIES, c->group) * SPAN];
    char *weights = kv_is_bf16 ? (char *)halves : (char *)scores;
    const char *located[2][SPAN + 3];
    long start = seen_from / SPAN * SPAN;
    locate(c, table, head, start, seen_from - start, least(seen_to - start, SPAN), located[0],
           kv_is_bf16);
    for (int span = 0; start < seen_to; start += SPAN, span ^= 1) {
        const long low = most(seen_from - start, 0), high = least(seen_to - start, SPAN);
        const long next = start + SPAN;
        if (next < seen_to)
            locate(c, table, head, next, 0, least(seen_to - next, SPAN), located[!span],
                   kv_is_bf16);
        const char *const *keys = located[span];
        for (long key = low / 4 * 4; key < high; key += 4) {
#define SCORE(n)                                                                                   \
    score(c, q + i * c->padded * size, keys + key, scores + i * SPAN + key, n, kv_is_bf16)
            BY_FOURS(queries, SCORE)
        }
        for (long i = 0; i < queries; i++) {
            const long last = position + i / c->group; /* the newest key that this query sees */
            const long from = most(last - c->window + 1 - start, low),
                       to = least(last + 1 - start, high);
            soften(scores + i * SPAN, weights + i * SPAN * size, tops + i, totals + i,
                   out + i * c->padded, c->padded, from, to, kv_is_bf16);
        }
#define MIX(n)                                                                                     \
    mix(c, out + i * c->padded, weights + i * SPAN * size, keys, low & ~1, (high + 1) & ~1, n,     \
        kv_is_bf16)
        BY_FOURS(queries, MIX)
    }
}

/* Write a tile's result: out / total. */
static void finish(const Call *c, const Tile *t, long head, const float *out, const float *totals) {
    const Batch *b = c->batch;
    float buffer[c->padded];
    for (long i = 0; i < t->count * c->group; i++) {
        const long token = b->query_starts[t->row] + t->first + i / c->group;
        const long at = (token * c->heads + head * c->group + i % c->group) * b->dim;
        if (b->kv_is_bf16) join(out + i * c->padded, buffer, c->padded, 1.0f / totals[i], 1);
        else join(out + i * c->padded, buffer, c->padded, 1.0f / totals[i], 0);
        write_head(buffer, c->out + at * (c->is_bf16 ? 2 : 4), b->dim, c->is_bf16);
    }
}

/* One task. Where a context has several parts, the result stays in `partials`, unfinished: per
 * query `padded` sums, then the top and the total. */
INLINE void run(const Call *c, const Tile *t, long head, float *partials, const int kv_is_bf16) {
    const Batch *b = c->batch;
    const long queries = t->count * c->group, width = c->padded;
    float q[queries * width], out[queries * width], tops[queries], totals[queries], buffer[width];
    vec parts[queries];
    memset(out, 0, sizeof out);
    memset(parts, 0, sizeof parts);
    memset(buffer, 0, sizeof buffer);
    for (long i = 0; i < queries; i++) {
        const long token = b->query_starts[t->row] + t->first + i / c->group;
        read_head(c, c->q, c->q_stride, token, head * c->group + i % c->group, 1, buffer);
        for (long d = 0; d < width; d++) put(q, i * width + d, buffer[d] * c->scale, kv_is_bf16);
        tops[i] = -INFINITY;
    }
    attend(c, t, head, (const char *)q, out, tops, parts, kv_is_bf16);
    for (long i = 0; i < queries; i++) totals[i] = sum(parts[i]);
    if (t->parts == 1) {
        finish(c, t, head, out, totals);
        return;
    }
    float *to = partials + ((t->partial + t->part) * b->kv_heads + head) *
                               most(TILE_QUERIES, c->group) * (width + 2);
    for (long i = 0; i < queries; i++, to += width + 2) {
        memcpy(to, out + i * width, width * sizeof *to);
        to[width] = tops[i], to[width + 1] = totals[i];
    }
}

/* Put the parts of a tile together, in order, and write the result. */
static void merge(const Call *c, const Tile *t, long head, const float *partials) {
    const long queries = t->count * c->group, width = c->padded;
    const long stride = most(TILE_QUERIES, c->group) * (width + 2); /* from result to result */
    float out[queries * width], totals[queries];
    memset(out, 0, sizeof out);
    memset(totals, 0, sizeof totals);
    for (long i = 0; i < queries; i++) {
        const long step = c->batch->kv_heads * stride; /* from part to part */
        const float *first = partials + t->partial * step + head * stride + i * (width + 2);
        float top = -INFINITY;
        for (long part = 0; part < t->parts; part++)
            top = first[part * step + width] > top ? first[part * step + width] : top;
        for (long part = 0; part < t->parts; part++) {
            const float *from = first + part * step;
            const float factor = from[width] == -INFINITY ? 0.0f : fast_exp(from[width] - top);
            for (long d = 0; d < width; d++) out[i * width + d] += from[d] * factor;
            totals[i] += from[width + 1] * factor;
        }
    }
    finish(c, t, head, out, totals);
}

/* List every tile and part; return how many, and through `partials` how many wait to be merged. */
static long list_tiles(const Call *c, Tile *tiles, long *partials) {
    const Batch *b = c->batch;
    const long tile_tokens = most(1, TILE_QUERIES / c->group);
    long count = 0;
    *partials = 0;
    for (long row = 0; row < b->rows; row++) {
        const long num_new = b->query_starts[row + 1] - b->query_starts[row];
        for (long first = 0; first < num_new; first += tile_tokens) {
            const long tokens = least(tile_tokens, num_new - first);
            const long parts = (b->kv_lens[row] - num_new + first + tokens + PART - 1) / PART;
            for (long part = 0; part < parts; part++, count++)
                if (tiles) tiles[count] = (Tile){row, first, tokens, part, parts, *partials};
            if (parts > 1) *partials += parts;
        }
    }
    return count;
}

/* Returns 0, or 1 if there was no memory for the results of parts. */
EXPORT int attention(const Batch *b, const void *q, const void *k, const void *v, void *out,
                     void *kv, const float *cos, const float *sin, long q_stride, long k_stride,
                     long v_stride, long heads, float scale, long window, int is_bf16) {
    const long side =
        b->num_blocks * b->block_size * b->kv_heads * b->dim * (b->kv_is_bf16 ? 2 : 4);
    const long padded = (b->dim + PAIR - 1) / PAIR * PAIR, group = heads / b->kv_heads;
    const Call call = {b,     q,        k,        v,        cos,   sin,   kv,     (char *)kv + side,
                       out,   q_stride, k_stride, v_stride, heads, group, padded, window,
                       scale, is_bf16},
               *c = &call;
    long num_partials;
    const long num_tiles = list_tiles(c, NULL, &num_partials);
    Tile *tiles = malloc(num_tiles * sizeof *tiles + 1);
    float *partials = malloc(num_partials * b->kv_heads * most(TILE_QUERIES, group) * (padded + 2) *
                                 sizeof *partials +
                             1);
    if (!tiles || !partials) {
        free(tiles), free(partials);
        return 1;
    }
    list_tiles(c, tiles, &num_partials);
    const long tasks = num_tiles * b->kv_heads;
    long products = 0;
    for (long row = 0; row < b->rows; row++)
        products +=
            (b->query_starts[row + 1] - b->query_starts[row]) * b->kv_lens[row] * heads * b->dim;
#pragma omp parallel num_threads(team(products, LEAST, b->threads))
    {
#pragma omp for schedule(static)
        for (long token = 0; token < b->tokens; token++) write_token(c, token);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < tasks; task++) {
            const Tile *t = tiles + task / b->kv_heads;
            if (b->kv_is_bf16) run(c, t, task % b->kv_heads, partials, 1);
            else run(c, t, task % b->kv_heads, partials, 0);
        }
        if (num_partials) {
#pragma omp for schedule(dynamic)
            for (long task = 0; task < tasks; task++) {
                const Tile *t = tiles + task / b->kv_heads;
                if (t->parts > 1 && t->part == 0) merge(c, t, task % b->kv_heads, partials);
            }
        }
    }
    free(tiles), free(partials);
    return 0;
}
