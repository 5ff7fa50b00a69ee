/* A pass without its Python: recorded calls over fixed buffers, made one after another.
 *
 * A record is a function's number and its arguments as they were, but for its rows: they were
 * recorded as so many per token, and are for as many tokens as there are this time. Attention reads
 * its rows from a `Batch` that its caller keeps up to date.
 */
#include "calls.h"

enum { EMBEDDING, ANGLES, LINEAR, RMS_NORM, SILU_MUL, ATTENTION, LORA, GAIN };

typedef struct {
    long kind;
    const int64_t *ids;
    const char *table;
    char *out;
    long rows, row_bytes, vocab;
} EmbeddingCall;

typedef struct {
    long kind;
    const int64_t *positions;
    const float *frequencies;
    float *cos, *sin;
    long rows, half;
    float amplitude;
} AnglesCall;

typedef struct {
    long kind;
    const void *x, *weight, *bias;
    void *y;
    long rows, inputs, outputs, x_stride;
    int is_bf16;
} LinearCall;

typedef struct {
    long kind;
    const char *x, *residual, *weight;
    char *out, *total;
    long rows, size;
    float eps;
    int is_bf16;
} NormCall;

typedef struct {
    long kind;
    const char *gate_up;
    char *out;
    long rows, size;
    int is_bf16;
} SiluCall;

typedef struct {
    long kind;
    const Batch *batch;
    const void *q, *k, *v;
    void *out, *kv;
    const float *cos, *sin;
    long q_stride, k_stride, v_stride, heads;
    float scale;
    long window;
    int is_bf16;
} AttentionCall;

typedef struct {
    long kind;
    const void *x, *a, *b;
    void *y;
    const int32_t *starts, *rows;
    const float *scales, *shifts;
    const int32_t *ranks, *order, *tiles;
    long num_tiles, inputs, outputs, parts, width, x_stride;
    int is_bf16;
} LoraCall;

typedef struct {
    long kind;
    void *y;
    const float *gain, *shift;
    const int32_t *places, *order, *tiles;
    long num_tiles, outputs;
    int is_bf16;
} GainCall;

static int call(const long *record, long tokens, int threads) {
    switch (*record) {
    case EMBEDDING: {
        const EmbeddingCall *c = (const void *)record;
        return embedding(c->ids, c->table, c->out, tokens * c->rows, c->row_bytes, c->vocab);
    }
    case ANGLES: {
        const AnglesCall *c = (const void *)record;
        angles(c->positions, c->frequencies, c->cos, c->sin, tokens * c->rows, c->half,
               c->amplitude, threads);
        return 0;
    }
    case LINEAR: {
        const LinearCall *c = (const void *)record;
        linear(c->x, c->weight, c->bias, c->y, tokens * c->rows, c->inputs, c->outputs, c->x_stride,
               c->is_bf16, threads);
        return 0;
    }
    case RMS_NORM: {
        const NormCall *c = (const void *)record;
        rms_norm(c->x, c->residual, c->weight, c->out, c->total, tokens * c->rows, c->size, c->eps,
                 c->is_bf16, threads);
        return 0;
    }
    case SILU_MUL: {
        const SiluCall *c = (const void *)record;
        silu_mul(c->gate_up, c->out, tokens * c->rows, c->size, c->is_bf16, threads);
        return 0;
    }
    case LORA: {
        const LoraCall *c = (const void *)record;
        return lora(c->x, c->a, c->b, c->y, c->starts, c->rows, c->scales, c->shifts, c->ranks,
                    c->order, c->tiles, tokens * c->num_tiles, c->inputs, c->outputs, c->parts,
                    c->width, c->x_stride, c->is_bf16, threads);
    }
    case GAIN: {
        const GainCall *c = (const void *)record;
        lora_gain(c->y, c->gain, c->shift, c->places, c->order, c->tiles, tokens * c->num_tiles,
                  c->outputs, c->is_bf16, threads);
        return 0;
    }
    default: {
        const AttentionCall *c = (const void *)record;
        return attention(c->batch, c->q, c->k, c->v, c->out, c->kv, c->cos, c->sin, c->q_stride,
                         c->k_stride, c->v_stride, c->heads, c->scale, c->window, c->is_bf16);
    }
    }
}

/* Make `count` recorded calls for this many tokens; stop at the first that fails. */
EXPORT int replay(const long *const *records, long count, long tokens, int threads) {
    for (long i = 0; i < count; i++) {
        const int failure = call(records[i], tokens, threads);
        if (failure) return failure;
    }
    return 0;
}
