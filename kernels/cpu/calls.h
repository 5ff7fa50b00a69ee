/* What Python may call. A result of 0 is success, 1 no memory, 2 a token id out of range. */
#pragma once
#include "heads.h"

EXPORT int embedding(const int64_t *ids, const char *table, char *out, long rows, long row_bytes,
                     long vocab);
EXPORT void angles(const int64_t *positions, const float *frequencies, float *cos, float *sin,
                   long rows, long half, float amplitude, int threads);
EXPORT void linear(const void *x, const void *weight, const void *bias, void *y, long rows,
                   long inputs, long outputs, long x_stride, int is_bf16, int threads);
EXPORT void rms_norm(const char *x, const char *residual, const char *weight, char *out,
                     char *total, long rows, long size, float eps, int is_bf16, int threads);
EXPORT void silu_mul(const char *gate_up, char *out, long rows, long size, int is_bf16,
                     int threads);
EXPORT int attention(const Batch *b, const void *q, const void *k, const void *v, void *out,
                     void *kv, const float *cos, const float *sin, long q_stride, long k_stride,
                     long v_stride, long heads, float scale, long window, int is_bf16);
EXPORT int lora(const void *x, const void *a, const void *b, void *y, const int32_t *starts,
                const int32_t *rows, const float *scales, const float *shifts,
                const int32_t *ranks, const int32_t *order, const int32_t *tiles, long num_tiles,
                long inputs, long outputs, long parts, long width, long x_stride, int is_bf16,
                int threads);
EXPORT void lora_gain(void *y, const float *gain, const float *shift, const int32_t *places,
                      const int32_t *order, const int32_t *tiles, long num_tiles, long outputs,
                      int is_bf16, int threads);
