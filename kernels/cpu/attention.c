/* Causal attention straight from the paged KV cache: rotate, write new keys and values, attend.
 *
 * One kernel for decodes, prompts and chunks. A task is a tile of queries that share a key head,
 * over a part of their context; keys come in spans of SPAN positions, counted from position 0, with
 * a running softmax (Milakov and Gimelshein 2018; Dao et al. 2022). Spans and parts do not depend
 * on the batch, the chunk or the threads, so neither does one bit of a token's result. Scores,
 * weights and sums are float32; only what a row may see is ever read.
 */
#include <stdlib.h>

#include "heads.h"

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
INLINE void score(const Call *c, const float *q, const char *const keys[4], float *out,
                  const int queries, const int kv_is_bf16) {
    const long dim = c->batch->dim, size = kv_is_bf16 ? 2 : 4;
    vec sums[4][4] = {0};
    for (long at = 0; at < dim; at += PAIR) {
        vec k[4][2];
        for (int j = 0; j < 4; j++) load_pair(keys[j] + at * size, dim - at, k[j], kv_is_bf16);
        for (int i = 0; i < queries; i++) {
            vec low = load(q + i * c->padded + at), high = load(q + i * c->padded + at + LANES);
            for (int j = 0; j < 4; j++) sums[i][j] += low * k[j][0];
            for (int j = 0; j < 4; j++) sums[i][j] += high * k[j][1];
        }
    }
    for (int i = 0; i < queries; i++)
        put_quad(out + i * SPAN, lane_sums(sums[i][0], sums[i][1], sums[i][2], sums[i][3]), 0);
}

/* out[i] += sum over keys [low, high) of weights[i][key] * value[key], for up to 4 queries. */
INLINE void mix(const Call *c, float *out, const float *weights, const char *const *values,
                long low, long high, const int queries, const int kv_is_bf16) {
    const long dim = c->batch->dim, size = kv_is_bf16 ? 2 : 4;
    for (long at = 0; at < dim; at += PAIR) {
        vec sums[4][2];
        for (int i = 0; i < queries; i++)
            for (int half = 0; half < 2; half++)
                sums[i][half] = load(out + i * c->padded + at + half * LANES);
        for (long key = low; key < high; key++) {
            vec v[2];
            load_pair(values[key] + at * size, dim - at, v, kv_is_bf16);
            for (int i = 0; i < queries; i++) {
                vec weight = spread(weights[i * SPAN + key]);
                sums[i][0] += weight * v[0];
                sums[i][1] += weight * v[1];
            }
        }
        for (int i = 0; i < queries; i++)
            for (int half = 0; half < 2; half++)
                store(out + i * c->padded + at + half * LANES, sums[i][half]);
    }
}

/* Scores to weights e^(score - top), in place; rescale what was mixed under a smaller top. Keys
 * outside [low, high) of the span get weight 0. */
INLINE void soften(float *scores, float *top, float *total, float *out, long padded, long low,
                   long high) {
    for (long i = 0; i < SPAN; i++) scores[i] = i >= low && i < high ? scores[i] : -INFINITY;
    float tops[LANES];
    for (int j = 0; j < LANES; j++) tops[j] = *top;
    for (long i = 0; i < SPAN; i += LANES)
        for (int j = 0; j < LANES; j++) tops[j] = scores[i + j] > tops[j] ? scores[i + j] : tops[j];
    for (int width = LANES / 2; width; width /= 2)
        for (int j = 0; j < width; j++)
            tops[j] = tops[j + width] > tops[j] ? tops[j + width] : tops[j];
    const float new_top = tops[0], reference = new_top == -INFINITY ? 0.0f : new_top;
    const float shrink = *top == -INFINITY ? 0.0f : fast_exp(*top - reference);
    float sums[LANES] = {0};
    for (long i = 0; i < SPAN; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float weight = fast_exp(scores[i + j] - reference);
            scores[i + j] = weight = scores[i + j] == -INFINITY ? 0.0f : weight;
            sums[j] += weight;
        }
    for (int width = LANES / 2; width; width /= 2)
        for (int j = 0; j < width; j++) sums[j] += sums[j + width];
    if (shrink != 1.0f)
        for (long d = 0; d < padded; d++) out[d] *= shrink;
    *total = *total * shrink + sums[0];
    *top = new_top;
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

/* Take from a token of a tree what is beside its path: scores of keys [from, to) of a span that
 * begins at key `start`, `old` keys of the row being older than the tree. */
static void prune(const Batch *b, long token, float *scores, long start, long from, long to,
                  long old) {
    const long tree = token - b->first_tree;
    if (tree < 0 || tree >= b->tree_tokens) return;
    const uint32_t *words = b->ancestors + tree * b->tree_words;
    for (long key = most(from, old - start); key < to; key++) {
        const long place = start + key - old;
        if (!(words[place / 32] >> place % 32 & 1)) scores[key] = -INFINITY;
    }
}

/* Attend from a tile's queries to one part of their context. q, out: [queries, padded] scratch. */
INLINE void attend(const Call *c, const Tile *t, long head, const float *q, float *out, float *tops,
                   float *totals, const int kv_is_bf16) {
    const Batch *b = c->batch;
    const long queries = t->count * c->group, size = kv_is_bf16 ? 2 : 4;
    const long num_new = b->query_starts[t->row + 1] - b->query_starts[t->row];
    const long position = b->kv_lens[t->row] - num_new + t->first; /* of the tile's first token */
    const int32_t *table = b->tables + t->row * b->table_width;
    const long seen_from = most(t->part * PART, most(0, position - c->window + 1));
    const long seen_to = least((t->part + 1) * PART, position + t->count);
    float scores[most(TILE_QUERIES, c->group) * SPAN];
    for (long start = seen_from / SPAN * SPAN; start < seen_to; start += SPAN) {
        const long low = most(seen_from - start, 0), high = least(seen_to - start, SPAN);
        const char *keys[SPAN + 3], *values[SPAN];
        for (long j = low; j < high; j++) {
            const long slot =
                table[(start + j) / b->block_size] * b->block_size + (start + j) % b->block_size;
            const long at = (slot * b->kv_heads + head) * b->dim * size;
            keys[j] = c->keys + at, values[j] = c->values + at;
        }
        for (int j = 0; j < 3; j++) keys[high + j] = keys[high - 1]; /* fill the last four */
        for (long j = 0; j < low; j++) keys[j] = keys[low];
        for (long key = low / 4 * 4; key < high; key += 4) {
#define SCORE(n) score(c, q + i * c->padded, keys + key, scores + i * SPAN + key, n, kv_is_bf16)
            BY_FOURS(queries, SCORE)
        }
        for (long i = 0; i < queries; i++) {
            const long last = position + i / c->group; /* the newest key that this query sees */
            const long from = most(last - c->window + 1 - start, low),
                       to = least(last + 1 - start, high);
            if (b->tree_tokens)
                prune(b, b->query_starts[t->row] + t->first + i / c->group, scores + i * SPAN,
                      start, from, to, position - t->first);
            soften(scores + i * SPAN, tops + i, totals + i, out + i * c->padded, c->padded, from,
                   to);
        }
#define MIX(n) mix(c, out + i * c->padded, scores + i * SPAN, values, low, high, n, kv_is_bf16)
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
    memset(out, 0, sizeof out);
    memset(buffer, 0, sizeof buffer);
    for (long i = 0; i < queries; i++) {
        const long token = b->query_starts[t->row] + t->first + i / c->group;
        read_head(c, c->q, c->q_stride, token, head * c->group + i % c->group, 1, buffer);
        split(buffer, q + i * width, width, c->scale, kv_is_bf16);
        tops[i] = -INFINITY, totals[i] = 0;
    }
    attend(c, t, head, q, out, tops, totals, kv_is_bf16);
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
