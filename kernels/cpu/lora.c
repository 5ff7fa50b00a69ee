/* y += B (A x) for the tokens of each variant, through the rank rows that it goes through.
 *
 * A rank row is a vector of `inputs` for each part of the outputs, and one of `outputs`; a variant
 * names some of them, anywhere. Tokens of a variant come in tiles, so that a row that is read serves
 * all of them. Each sum adds its products in one order, whatever the tile, the batch or the number
 * of threads: a token's result has the same bits alone and among others.
 */
#include <omp.h>
#include <stdlib.h>

#include "calls.h"

#define TILE    16        /* tokens of a tile, at most */
#define TOKENS  4         /* of these in registers at once */
#define RANKS   4         /* rank rows that are multiplied with them at once */
#define COLUMNS 256       /* outputs that one piece of work adds to */
#define LEAST   (1 << 16) /* products that are worth more than the calling thread */

typedef struct {
    const char *x, *a, *b;
    char *y;
    const int32_t *starts, *rows;
    const float *scales, *shifts;
    const int32_t *ranks, *order;
    long inputs, outputs, parts, width, x_stride;
    float *inner; /* [tiles, parts, width, TILE]: A x, scaled */
} Lora;

typedef struct {
    int32_t variant, first, count;
} Tile;

static float *inner_of(const Lora *l, long tile, long part, long rank) {
    return l->inner + ((tile * l->parts + part) * l->width + rank) * TILE;
}

/* RANKS rank rows with `tokens` tokens. */
INLINE void shrink_block(const Lora *l, const char *const *x, const char *const *w,
                         const int tokens, const int is_bf16, quad *out) {
    const long bytes = l->inputs * (is_bf16 ? 2 : 4);
    vec sums[TOKENS][RANKS] = {0};
    long at = 0;
    for (; at + VECTOR_BYTES <= bytes; at += VECTOR_BYTES) {
        vec weights[RANKS];
        for (int r = 0; r < RANKS; r++) weights[r] = load(w[r] + at);
        for (int t = 0; t < tokens; t++) {
            vec input = load(x[t] + at);
            for (int r = 0; r < RANKS; r++)
                sums[t][r] = dot(sums[t][r], input, weights[r], is_bf16);
        }
    }
    if (at < bytes)
        for (int t = 0; t < tokens; t++)
            for (int r = 0; r < RANKS; r++)
                sums[t][r] = dot(sums[t][r], load_part(x[t] + at, bytes - at),
                                 load_part(w[r] + at, bytes - at), is_bf16);
    for (int t = 0; t < tokens; t++)
        out[t] = lane_sums(sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
}

/* The inner products of a tile with the rank rows [rank, rank + RANKS) of one part. */
INLINE void shrink(const Lora *l, const Tile *tile, long number, long part, long rank,
                   const int is_bf16) {
    const int size = is_bf16 ? 2 : 4;
    const long place = tile->variant * l->width, last = l->ranks[tile->variant] - 1;
    const char *w[RANKS];
    for (int r = 0; r < RANKS; r++) {
        const long row = l->rows[place + (rank + r < last ? rank + r : last)];
        w[r] = l->a + (row * l->parts + part) * l->inputs * size;
    }
    for (int first = 0; first < tile->count; first += TOKENS) {
        const int tokens = tile->count - first < TOKENS ? tile->count - first : TOKENS;
        const char *x[TOKENS];
        for (int t = 0; t < tokens; t++)
            x[t] = l->x + l->order[tile->first + first + t] * l->x_stride * size;
        quad sums[TOKENS];
        switch (tokens) {
        case 1: shrink_block(l, x, w, 1, is_bf16, sums); break;
        case 2: shrink_block(l, x, w, 2, is_bf16, sums); break;
        case 3: shrink_block(l, x, w, 3, is_bf16, sums); break;
        default: shrink_block(l, x, w, 4, is_bf16, sums);
        }
        for (int r = 0; r < RANKS && rank + r <= last; r++) {
            float *inner = inner_of(l, number, part, rank + r) + first;
            const float scale = l->scales[place + rank + r], shift = l->shifts[place + rank + r];
            for (int t = 0; t < tokens; t++) inner[t] = sums[t][r] * scale + shift;
        }
    }
}

/* Two registers of float32, the even and the odd elements, as bfloat16 rounded as `narrow` does. */
INLINE vec merge_pairs(vec even, vec odd) {
    uvec halves[2];
    const vec values[2] = {even, odd};
    for (int i = 0; i < 2; i++) {
        const uvec bits = (uvec)values[i], same = (uvec)(values[i] == values[i]);
        const uvec rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
        halves[i] = (rounded & same) | (0x7fc00000u & ~same);
    }
    return (vec)((halves[0] >> 16) | (halves[1] & 0xffff0000u));
}

/* One register of outputs from `at` on, of which `bytes` count, for `tokens` tokens. */
INLINE void expand_block(const Lora *l, const int32_t *rows, const float *inner, long rank,
                         char *const *y, long at, long bytes, const int tokens,
                         const int is_bf16) {
    const long row_bytes = l->outputs * (is_bf16 ? 2 : 4);
    vec evens_of[TOKENS] = {0}, odds_of[TOKENS] = {0};
    for (long r = 0; r < rank; r++) {
        const char *from = l->b + rows[r] * row_bytes + at;
        const vec b = bytes == VECTOR_BYTES ? load(from) : load_part(from, bytes);
        for (int t = 0; t < tokens; t++) {
            const vec factor = spread(inner[r * TILE + t]);
            if (is_bf16) {
                evens_of[t] += factor * evens(b);
                odds_of[t] += factor * odds(b);
            } else evens_of[t] += factor * b;
        }
    }
    for (int t = 0; t < tokens; t++) {
        char *to = y[t] + at;
        vec old = bytes == VECTOR_BYTES ? load(to) : load_part(to, bytes);
        vec sum = is_bf16 ? merge_pairs(evens(old) + evens_of[t], odds(old) + odds_of[t])
                          : old + evens_of[t];
        if (bytes == VECTOR_BYTES) store(to, sum);
        else memcpy(to, &sum, bytes);
    }
}

/* Add to the outputs [begin, end) of a tile's tokens; they lie in one part. */
INLINE void expand(const Lora *l, const Tile *tile, long number, long part, long begin, long end,
                   const int is_bf16) {
    const int size = is_bf16 ? 2 : 4;
    const int32_t *rows = l->rows + tile->variant * l->width;
    const long rank = l->ranks[tile->variant];
    for (int first = 0; first < tile->count; first += TOKENS) {
        const int tokens = tile->count - first < TOKENS ? tile->count - first : TOKENS;
        const float *inner = inner_of(l, number, part, 0) + first;
        char *y[TOKENS];
        for (int t = 0; t < tokens; t++)
            y[t] = l->y + l->order[tile->first + first + t] * l->outputs * size;
        for (long at = begin * size; at < end * size; at += VECTOR_BYTES) {
            const long left = end * size - at, bytes = left < VECTOR_BYTES ? left : VECTOR_BYTES;
            switch (tokens) {
            case 1: expand_block(l, rows, inner, rank, y, at, bytes, 1, is_bf16); break;
            case 2: expand_block(l, rows, inner, rank, y, at, bytes, 2, is_bf16); break;
            case 3: expand_block(l, rows, inner, rank, y, at, bytes, 3, is_bf16); break;
            default: expand_block(l, rows, inner, rank, y, at, bytes, 4, is_bf16);
            }
        }
    }
}

/* The number-th piece of COLUMNS outputs, counted part after part; 0 if there are not so many. */
static int piece(const Lora *l, long number, long *part, long *begin, long *end) {
    for (*part = 0; *part < l->parts; ++*part) {
        const long first = l->starts[*part], last = l->starts[*part + 1];
        const long pieces = (last - first + COLUMNS - 1) / COLUMNS;
        if (number < pieces) {
            *begin = first + number * COLUMNS;
            *end = *begin + COLUMNS < last ? *begin + COLUMNS : last;
            return 1;
        }
        number -= pieces;
    }
    return 0;
}

INLINE void gain_row(char *restrict y, const float *restrict gain, const float *restrict shift,
                     long size, const int is_bf16) {
    if (shift)
        for (long i = 0; i < size; i++)
            put(y, i, get(y, i, is_bf16) * gain[i] + shift[i], is_bf16);
    else
        for (long i = 0; i < size; i++) put(y, i, get(y, i, is_bf16) * gain[i], is_bf16);
}

/* y = gain y + shift (or NULL) for the tokens of each variant that has a place in gain, shift:
 * [places, outputs]; it is negative for those that have none. */
EXPORT void lora_gain(void *y, const float *gain, const float *shift, const int32_t *places,
                      const int32_t *order, const int32_t *tiles, long num_tiles, long outputs,
                      int is_bf16, int threads) {
    const Tile *tile = (const Tile *)tiles;
    long used = 0, tokens = 0;
    for (; used < num_tiles && tile[used].count; used++)
        if (places[tile[used].variant] >= 0) tokens += tile[used].count;
    if (!tokens) return;
    const long bytes = outputs * (is_bf16 ? 2 : 4);
#pragma omp parallel for num_threads(team(tokens *outputs, LEAST, threads)) schedule(static)
    for (long unit = 0; unit < used * TILE; unit++) {
        const Tile t = tile[unit / TILE];
        const long at = places[t.variant] * outputs, number = unit % TILE;
        if (at < 0 || number >= t.count) continue;
        char *row = (char *)y + order[t.first + number] * bytes;
        const float *added = shift ? shift + at : NULL;
        if (is_bf16) gain_row(row, gain + at, added, outputs, 1);
        else gain_row(row, gain + at, added, outputs, 0);
    }
}

static _Thread_local float *kept; /* by each thread that calls, for the next time */
static _Thread_local long kept_size;

EXPORT int lora(const void *x, const void *a, const void *b, void *y, const int32_t *starts,
                const int32_t *rows, const float *scales, const float *shifts,
                const int32_t *ranks, const int32_t *order, const int32_t *tiles, long num_tiles,
                long inputs, long outputs, long parts, long width, long x_stride, int is_bf16,
                int threads) {
    const Tile *tile = (const Tile *)tiles;
    long used = 0, tokens = 0, most = 0, pieces = 0;
    for (; used < num_tiles && tile[used].count; used++) {
        tokens += tile[used].count;
        if (ranks[tile[used].variant] > most) most = ranks[tile[used].variant];
    }
    if (!used || !most) return 0;
    const long size = used * parts * width * TILE;
    if (size > kept_size) {
        free(kept);
        kept_size = 0;
        kept = malloc(size * sizeof(float));
        if (!kept) return 1;
        kept_size = size;
    }
    const Lora l = {x,     a,     b,      y,       starts, rows,  scales,   shifts,
                    ranks, order, inputs, outputs, parts,  width, x_stride, kept};
    for (long part = 0; part < parts; part++)
        pieces += (starts[part + 1] - starts[part] + COLUMNS - 1) / COLUMNS;
    const long blocks = (most + RANKS - 1) / RANKS;
    const int shares = team(tokens * most * (inputs * parts + outputs), LEAST, threads);
    const int64_t start = now();
#pragma omp parallel num_threads(shares)
    {
        if (omp_get_thread_num()) helper_came(start);
#pragma omp for schedule(static)
        for (long unit = 0; unit < used * parts * blocks; unit++) {
            const long number = unit / (parts * blocks), part = unit / blocks % parts;
            const long rank = unit % blocks * RANKS;
            if (rank >= ranks[tile[number].variant]) continue;
            if (is_bf16) shrink(&l, tile + number, number, part, rank, 1);
            else shrink(&l, tile + number, number, part, rank, 0);
        }
#pragma omp for schedule(static)
        for (long unit = 0; unit < used * pieces; unit++) {
            const long number = unit / pieces;
            long part, begin, end;
            if (!piece(&l, unit % pieces, &part, &begin, &end)) continue;
            if (is_bf16) expand(&l, tile + number, number, part, begin, end, 1);
            else expand(&l, tile + number, number, part, begin, end, 0);
        }
    }
    return 0;
}
