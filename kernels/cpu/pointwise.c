/* RMS normalisation, with the residual add in front of it, and the gated activation.
 *
 * Rows are independent; a row's sum is always formed in the same order.
 */
#include "calls.h"

#define LEAST (1 << 14) /* elements that are worth more than the calling thread */
#define PARTS 32        /* partial sums, so that the sum of squares is vector code */

/* out = norm(x + residual) * weight, total = x + residual; without a residual just norm(x). */
INLINE void norm_row(const char *restrict x, const char *restrict residual,
                     const char *restrict weight, char *restrict out, char *restrict total,
                     long size, float eps, const int is_bf16) {
    const char *summed = x;
    if (residual) {
        for (long i = 0; i < size; i++)
            put(total, i, get(x, i, is_bf16) + get(residual, i, is_bf16), is_bf16);
        summed = total;
    }
    float parts[PARTS] = {0};
    long i = 0;
    for (; i + PARTS <= size; i += PARTS)
        for (int j = 0; j < PARTS; j++) {
            float value = get(summed, i + j, is_bf16);
            parts[j] += value * value;
        }
    for (int j = 0; i + j < size; j++) {
        float value = get(summed, i + j, is_bf16);
        parts[j] += value * value;
    }
    float sum = 0;
    for (int j = 0; j < PARTS; j++) sum += parts[j];
    float factor = 1.0f / sqrtf(sum / size + eps);
    for (i = 0; i < size; i++)
        put(out, i, get(summed, i, is_bf16) * factor * get(weight, i, is_bf16), is_bf16);
}

/* x, residual (or NULL), out, total: [rows, size]; weight: [size]. */
EXPORT void rms_norm(const char *x, const char *residual, const char *weight, char *out,
                     char *total, long rows, long size, float eps, int is_bf16, int threads) {
    const long bytes = size * (is_bf16 ? 2 : 4);
#pragma omp parallel for num_threads(team(rows *size, LEAST, threads)) schedule(static)
    for (long row = 0; row < rows; row++) {
        long at = row * bytes;
        const char *r = residual ? residual + at : NULL;
        if (is_bf16) norm_row(x + at, r, weight, out + at, total + at, size, eps, 1);
        else norm_row(x + at, r, weight, out + at, total + at, size, eps, 0);
    }
}

INLINE void silu_row(const char *restrict gate, const char *restrict up, char *restrict out,
                     long size, const int is_bf16) {
    for (long i = 0; i < size; i++) {
        float g = get(gate, i, is_bf16);
        put(out, i, g / (1.0f + fast_exp(-g)) * get(up, i, is_bf16), is_bf16);
    }
}

/* out [rows, size] = silu(gate) * up of gate_up [rows, gate | up]. */
EXPORT void silu_mul(const char *gate_up, char *out, long rows, long size, int is_bf16,
                     int threads) {
    const long bytes = size * (is_bf16 ? 2 : 4);
#pragma omp parallel for num_threads(team(rows *size, LEAST, threads)) schedule(static)
    for (long row = 0; row < rows; row++) {
        const char *gate = gate_up + row * 2 * bytes;
        if (is_bf16) silu_row(gate, gate + bytes, out + row * bytes, size, 1);
        else silu_row(gate, gate + bytes, out + row * bytes, size, 0);
    }
}
