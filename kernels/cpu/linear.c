/* y = x W^T + b, with the weight read where it lies: [outputs, inputs], row after row.
 *
 * Both operands are rows of `inputs` contiguous elements, so a sum runs along both with whole
 * registers and no weight has to be copied into another order. A tile of TILE_ROWS x TILE_COLUMNS
 * sums stays in registers. Each sum adds its products in one order, whatever the tile, the batch or
 * the number of threads: a row's result has the same bits alone and among others.
 */
#include "calls.h"

#if VECTOR_BYTES == 64 || defined(__aarch64__) /* 32 registers: 24 sums, 4 weights, 1 input */
#define TILE_ROWS 6
#else /* 16 registers */
#define TILE_ROWS 2
#endif
#define TILE_COLUMNS  4
#define LEAST         (1 << 16)   /* products that are worth more than the calling thread */
#define ROWS_IN_L1    (24 << 10)  /* bytes of x that stay while weights pass */
#define L1            (44 << 10)  /* bytes that rows of x and two strips of weights share */
#define WEIGHTS_IN_L2 (384 << 10) /* bytes of W that stay while rows of x pass */

typedef struct {
    const char *x, *weight; /* [rows, inputs] with a row stride; [outputs, inputs] */
    const void *bias;       /* [outputs], or NULL */
    char *y;                /* [rows, outputs] */
    long inputs, outputs, x_stride;
} Linear;

/* Sums of `rows` x `columns` outputs from (row, column) on. */
INLINE void tile(const Linear *l, long row, long column, const int rows, const int columns,
                 const int ahead, const int is_bf16) {
    const int size = is_bf16 ? 2 : 4;
    const long bytes = l->inputs * size;
    const char *x = l->x + row * l->x_stride * size, *w = l->weight + column * bytes;
    const long step = l->x_stride * size;
    vec sums[TILE_ROWS][TILE_COLUMNS] = {0};
    long at = 0;
    for (; at + VECTOR_BYTES <= bytes; at += VECTOR_BYTES) {
        vec weights[TILE_COLUMNS];
        for (int c = 0; c < columns; c++) weights[c] = load(w + c * bytes + at);
        if (ahead)
            for (int c = 0; c < columns; c++)
                __builtin_prefetch(w + (c + TILE_COLUMNS) * bytes + at);
        for (int r = 0; r < rows; r++) {
            vec input = load(x + r * step + at);
            for (int c = 0; c < columns; c++)
                sums[r][c] = dot(sums[r][c], input, weights[c], is_bf16);
        }
    }
    if (at < bytes)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++)
                sums[r][c] = dot(sums[r][c], load_part(x + r * step + at, bytes - at),
                                 load_part(w + c * bytes + at, bytes - at), is_bf16);
    for (int r = 0; r < rows; r++) {
        quad out = lane_sums(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
        if (l->bias)
            for (int c = 0; c < columns; c++) out[c] += get(l->bias, column + c, is_bf16);
        char *y = l->y + ((row + r) * l->outputs + column) * size;
        if (columns == TILE_COLUMNS) put_quad(y, out, is_bf16);
        else
            for (int c = 0; c < columns; c++) put(y, c, out[c], is_bf16);
    }
}

/* The rows [row, end) of `columns` outputs, in tiles. With `ahead` the first asks for the next strip's
 * weights, which come while others compute; a single row is as quick as memory without it. */
INLINE void strip(const Linear *l, long row, long end, long column, const int columns,
                  const int ahead, const int is_bf16) {
    if (row + TILE_ROWS <= end) {
        tile(l, row, column, TILE_ROWS, columns, ahead, is_bf16);
        row += TILE_ROWS;
    }
    for (; row + TILE_ROWS <= end; row += TILE_ROWS)
        tile(l, row, column, TILE_ROWS, columns, 0, is_bf16);
    switch (end - row) {
#if TILE_ROWS > 2
    case 5: tile(l, row, column, 5, columns, 1, is_bf16); break;
    case 4: tile(l, row, column, 4, columns, 1, is_bf16); break;
    case 3: tile(l, row, column, 3, columns, 1, is_bf16); break;
    case 2: tile(l, row, column, 2, columns, 1, is_bf16); break;
#endif
    case 1: tile(l, row, column, 1, columns, 0, is_bf16); break;
    }
}

/* The outputs [first, last) of all rows: one thread's share. */
INLINE void share(const Linear *l, long rows, long first, long last, const int is_bf16) {
    const long bytes = l->inputs * (is_bf16 ? 2 : 4);
    long row_block = ROWS_IN_L1 / bytes / TILE_ROWS * TILE_ROWS;
    if (row_block < TILE_ROWS) row_block = TILE_ROWS;
    long column_block = WEIGHTS_IN_L2 / bytes / TILE_COLUMNS * TILE_COLUMNS;
    if (column_block < TILE_COLUMNS) column_block = TILE_COLUMNS;
    for (long start = first; start < last; start += column_block) {
        long end = start + column_block < last ? start + column_block : last;
        for (long row = 0; row < rows; row += row_block) {
            long row_end = row + row_block < rows ? row + row_block : rows;
            long column = start;
            const int ahead = row == 0 || (row_block + 2 * TILE_COLUMNS) * bytes <= L1;
            for (; column + TILE_COLUMNS <= end; column += TILE_COLUMNS)
                strip(l, row, row_end, column, TILE_COLUMNS, ahead, is_bf16);
            for (; column < end; column++) strip(l, row, row_end, column, 1, ahead, is_bf16);
        }
    }
}

EXPORT void linear(const void *x, const void *weight, const void *bias, void *y, long rows,
                   long inputs, long outputs, long x_stride, int is_bf16, int threads) {
    const Linear l = {x, weight, bias, y, inputs, outputs, x_stride};
    const int shares = team(rows * inputs * outputs, LEAST, threads);
    const int64_t begin = now();
#pragma omp parallel for num_threads(shares) schedule(static)
    for (int thread = 0; thread < shares; thread++) {
        if (thread) helper_came(begin);
        long tiles = (outputs + TILE_COLUMNS - 1) / TILE_COLUMNS;
        long first = tiles * thread / shares * TILE_COLUMNS;
        long last = tiles * (thread + 1) / shares * TILE_COLUMNS;
        if (last > outputs) last = outputs;
        if (is_bf16) share(&l, rows, first, last, 1);
        else share(&l, rows, first, last, 0);
    }
}
