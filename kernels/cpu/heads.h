/* What attention is given, and its way in and out: heads read from packed tokens, rotated, written
 * to the cache, and brought back from the order in which registers of the cache split.
 */
#pragma once
#include "vector.h"

#define PAIR (2 * LANES) /* elements handled together: one register of bfloat16, two of float32 */

/* A step's rows and the shape of the cache: the same for all layers. Filled in by the caller. */
typedef struct {
    const int64_t *slots;        /* [tokens] */
    const int32_t *tables;       /* [rows, table_width] block ids */
    const int32_t *query_starts; /* [rows + 1] */
    const int32_t *kv_lens;      /* [rows], new tokens counted */
    long rows, tokens, table_width;
    long num_blocks, block_size, kv_heads, dim;
    long kv_is_bf16, threads;
} Batch;

/* One layer's call. Strides count elements from token to token. */
typedef struct {
    const Batch *batch;
    const char *q, *k, *v;  /* [tokens, heads, dim], [tokens, kv_heads, dim] */
    const float *cos, *sin; /* [tokens, dim / 2], or NULL: do not rotate */
    char *keys, *values;    /* [num_blocks, block_size, kv_heads, dim] */
    char *out;              /* [tokens, heads, dim] */
    long q_stride, k_stride, v_stride, heads, group, padded, window;
    float scale;
    int is_bf16;
} Call;

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long most(long a, long b) { return a > b ? a : b; }

/* A register from `left` bytes of memory, or all that it holds; zeros after them. */
INLINE vec load_left(const char *from, long left) {
    return left >= VECTOR_BYTES ? load(from) : left > 0 ? load_part(from, left) : (vec){0};
}

/* A head as float32, turned by its token's angles (halves convention: d pairs with d + dim / 2). */
INLINE void read_as(const char *from, long dim, const float *cos, const float *sin,
                    float *restrict head, const int is_bf16) {
    if (!cos) {
        for (long d = 0; d < dim; d++) head[d] = get(from, d, is_bf16);
        return;
    }
    const long half = dim / 2;
    for (long d = 0; d < half; d++) {
        const float a = get(from, d, is_bf16), b = get(from, d + half, is_bf16);
        head[d] = a * cos[d] - b * sin[d];
        head[d + half] = b * cos[d] + a * sin[d];
    }
}

static void read_head(const Call *c, const char *rows, long stride, long token, long head, int turn,
                      float *to) {
    const long dim = c->batch->dim, at = token * stride + head * dim;
    const float *cos = turn && c->cos ? c->cos + token * (dim / 2) : NULL;
    const float *sin = cos ? c->sin + token * (dim / 2) : NULL;
    if (c->is_bf16) read_as(rows + at * 2, dim, cos, sin, to, 1);
    else read_as(rows + at * 4, dim, cos, sin, to, 0);
}

static void write_head(const float *restrict head, char *restrict to, long dim, int is_bf16) {
    if (is_bf16)
        for (long d = 0; d < dim; d++) put(to, d, head[d], 1);
    else memcpy(to, head, dim * 4);
}

/* Rotate a token's keys and put keys and values into its slot. */
static void write_token(const Call *c, long token) {
    const Batch *b = c->batch;
    const long bytes = b->dim * (b->kv_is_bf16 ? 2 : 4);
    float buffer[b->dim];
    for (long head = 0; head < b->kv_heads; head++) {
        const long at = (b->slots[token] * b->kv_heads + head) * bytes;
        read_head(c, c->k, c->k_stride, token, head, 1, buffer);
        write_head(buffer, c->keys + at, b->dim, b->kv_is_bf16);
        read_head(c, c->v, c->v_stride, token, head, 0, buffer);
        write_head(buffer, c->values + at, b->dim, b->kv_is_bf16);
    }
}

/* Put `padded` elements in order: of bfloat16, `interleave` has parted even and odd ones. */
INLINE void join(const float *restrict from, float *restrict head, long padded, float factor,
                 int kv_is_bf16) {
    for (long at = 0; at < padded; at += PAIR)
        for (long i = 0; i < LANES; i++) {
            head[at + (kv_is_bf16 ? 2 * i : i)] = from[at + i] * factor;
            head[at + (kv_is_bf16 ? 2 * i + 1 : LANES + i)] = from[at + LANES + i] * factor;
        }
}
