/* What a pass begins with: the embedding's rows, and the angles by which heads turn. */
#include "calls.h"

#define LEAST (1 << 10) /* angles that are worth more than the calling thread */

/* out [rows, row_bytes] = the rows of table [vocab, row_bytes] that ids [rows] name. */
EXPORT int embedding(const int64_t *ids, const char *table, char *out, long rows, long row_bytes,
                     long vocab) {
    for (long row = 0; row < rows; row++) {
        if (ids[row] < 0 || ids[row] >= vocab) return 2;
        memcpy(out + row * row_bytes, table + ids[row] * row_bytes, row_bytes);
    }
    return 0;
}

/* cos, sin [rows, half] of positions [rows] times frequencies [half], times amplitude. */
EXPORT void angles(const int64_t *positions, const float *frequencies, float *cos, float *sin,
                   long rows, long half, float amplitude, int threads) {
#pragma omp parallel for num_threads(team(rows *half, LEAST, threads)) schedule(static)
    for (long row = 0; row < rows; row++)
        for (long i = 0; i < half; i++) {
            const float angle = (float)positions[row] * frequencies[i];
            cos[row * half + i] = cosf(angle) * amplitude;
            sin[row * half + i] = sinf(angle) * amplitude;
        }
}
