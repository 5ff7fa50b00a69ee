/* What the CPU kernels share: vectors as wide as the machine's registers, and bfloat16.
 *
 * Written with the compiler's vector extension, so that one text serves AVX-512, AVX2, NEON or
 * plain C; only the bfloat16 dot product has an instruction of its own where the CPU has one.
 * Activations, weights and KV are either float32 or bfloat16 (`is_bf16`); sums are float32 always.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define LANES  (VECTOR_BYTES / 4)
#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

/* How many of `threads` a piece of work gets; below `least` units, waking others takes longer. */
int team(long work, long least, int threads);
/* A helper says that it has begun, with the time at which the piece did. */
void helper_came(int64_t begin);
int64_t now(void); /* in nanoseconds */

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t uvec __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t ivec __attribute__((vector_size(VECTOR_BYTES)));
typedef float vec_in_memory __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));
typedef float quad __attribute__((vector_size(16)));

INLINE vec load(const void *from) { return *(const vec_in_memory *)from; }
INLINE void store(void *to, vec value) { *(vec_in_memory *)to = value; }
INLINE vec spread(float value) { return value - (vec){0}; }

/* The first `bytes` < VECTOR_BYTES from memory, zeros after them; nothing beyond is touched. */
INLINE vec load_part(const void *from, long bytes) {
#if defined(__AVX512BW__)
    return (vec)_mm512_maskz_loadu_epi8((__mmask64)((1ull << bytes) - 1), from);
#else
    vec value = {0};
    memcpy(&value, from, bytes);
    return value;
#endif
}

/* A register of bfloat16 pairs as two of float32: the even elements and the odd ones. */
INLINE vec evens(vec pairs) { return (vec)((uvec)pairs << 16); }
INLINE vec odds(vec pairs) { return (vec)((uvec)pairs & 0xffff0000u); }

/* Two registers of bfloat16 as pairs of an element of each: the even elements, and the odd ones. */
INLINE void interleave(vec first, vec second, vec pairs[2]) {
    const uvec a = (uvec)first, b = (uvec)second;
    pairs[0] = (vec)((a & 0xffffu) | (b << 16));
    pairs[1] = (vec)((a >> 16) | (b & 0xffff0000u));
}

/* sum + a * b: LANES products of float32, or two bfloat16 products in each lane. */
INLINE vec dot(vec sum, vec a, vec b, int is_bf16) {
    if (!is_bf16) return sum + a * b;
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += evens(a) * evens(b);
    return sum + odds(a) * odds(b);
#endif
}

/* The sums over the lanes of four registers. Every one adds its lanes in the same order. */
INLINE quad lane_sums(vec a, vec b, vec c, vec d) {
#if VECTOR_BYTES == 64
    /* Halves, then quarters: what stays in place is blended, which is cheaper than a shuffle. */
#define HALVES(x, y)                                                                               \
    ((vec)_mm512_mask_blend_ps(0xff00, (__m512)x, (__m512)y) +                                     \
     __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23))
#define QUARTERS(x, y)                                                                             \
    ((vec)_mm512_mask_blend_ps(0xf0f0, (__m512)x, (__m512)y) +                                     \
     __builtin_shufflevector(x, y, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27))
    vec ab = HALVES(a, b), cd = HALVES(c, d), all = QUARTERS(ab, cd); /* a c b d, four lanes each */
    all += (vec)_mm512_permute_ps((__m512)all, 0x4e);
    all += (vec)_mm512_permute_ps((__m512)all, 0xb1);
    return __builtin_shufflevector(all, all, 0, 8, 4, 12);
#else
    quad part[4];
    vec whole[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        quad quads[VECTOR_BYTES / 16];
        memcpy(quads, &whole[i], sizeof quads);
        part[i] = quads[0];
        for (int j = 1; j < VECTOR_BYTES / 16; j++) part[i] += quads[j];
    }
    quad ab = __builtin_shufflevector(part[0], part[1], 0, 4, 1, 5) +
              __builtin_shufflevector(part[0], part[1], 2, 6, 3, 7);
    quad cd = __builtin_shufflevector(part[2], part[3], 0, 4, 1, 5) +
              __builtin_shufflevector(part[2], part[3], 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) +
           __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#endif
}

INLINE float widen(bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

/* To the nearest bfloat16, ties to even; NaN stays NaN. */
INLINE bf16 narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value == value ? (bf16)rounded : (bf16)0x7fc0;
}

INLINE float get(const void *from, long index, int is_bf16) {
    return is_bf16 ? widen(((const bf16 *)from)[index]) : ((const float *)from)[index];
}

INLINE void put(void *to, long index, float value, int is_bf16) {
    if (is_bf16) ((bf16 *)to)[index] = narrow(value);
    else ((float *)to)[index] = value;
}

/* Four elements at once, rounded as `narrow` does. */
INLINE void put_quad(void *to, quad value, int is_bf16) {
    if (!is_bf16) {
        memcpy(to, &value, sizeof value);
        return;
    }
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
    __m128bh halves = _mm_cvtneps_pbh((__m128)value);
    memcpy(to, &halves, 8);
#else
    bf16 halves[4] = {narrow(value[0]), narrow(value[1]), narrow(value[2]), narrow(value[3])};
    memcpy(to, halves, sizeof halves);
#endif
}

INLINE vec higher(vec a, vec b) {
#if VECTOR_BYTES == 64
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    for (int j = 0; j < LANES; j++) a[j] = a[j] > b[j] ? a[j] : b[j];
    return a;
#endif
}

INLINE float highest(vec values) {
#if VECTOR_BYTES == 64
    return _mm512_reduce_max_ps((__m512)values);
#else
    float top = values[0];
    for (int j = 1; j < LANES; j++) top = values[j] > top ? values[j] : top;
    return top;
#endif
}

/* A register of float32 to memory, as bfloat16 rounded as `narrow` does. */
INLINE void put_vec(void *to, vec value, int is_bf16) {
    if (!is_bf16) {
        store(to, value);
        return;
    }
#if defined(__AVX512BF16__)
    __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
    memcpy(to, &halves, 32);
#else
    for (int j = 0; j < LANES; j++) put(to, j, value[j], 1);
#endif
}

INLINE float sum(vec values) {
    for (int width = LANES / 2; width; width /= 2)
        for (int j = 0; j < width; j++) values[j] += values[j + width];
    return values[0];
}

/* e^x to about 2 ulp, without a branch, so that a loop over it becomes vector code. */
INLINE float fast_exp(float x) {
    float clamped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves whole numbers */
    float n = (clamped * 1.44269504f + round) - round;
    float r = clamped - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

/* e^x for x <= 0, to about 2 ulp; 0 where that is below 1e-37. NaN stays NaN. */
INLINE vec exp_below(vec x) {
    const float round = 12582912.0f;
    vec n = (x * 1.44269504f + round) - round;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uvec scale = (uvec)(__builtin_convertvector(n, ivec) + 127) << 23;
    return (vec)((uvec)(p * (vec)scale) & ~(uvec)(x <= -85.0f));
}
