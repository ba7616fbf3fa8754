// One vector type for every instruction set: 16 (AVX-512), 8 (AVX2) or 4 (SSE, NEON) float lanes.
//
// Written with GCC/Clang vector extensions, so that a kernel reads like scalar code; intrinsics appear only where
// the extension has no operator. `Wide<G>` functions work on G independent vectors stage by stage: the polynomials
// below have a latency of about forty cycles, and only interleaved chains keep the FMA pipes busy.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define VSSM_LANES 16
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define VSSM_LANES 8
#include <immintrin.h>
#else
#define VSSM_LANES 4
#endif

#define VSSM_INLINE static inline __attribute__((always_inline))
#define VSSM_UNROLL _Pragma("GCC unroll 16")

namespace VSSM_ISA {

constexpr int kLanes = VSSM_LANES;

typedef float vec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint16_t hvec __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

struct bf16 {
  uint16_t bits;
};

VSSM_INLINE vec splat(float x) { return vec{} + x; }
VSSM_INLINE ivec bits(vec x) { ivec r; std::memcpy(&r, &x, sizeof r); return r; }
VSSM_INLINE vec from_bits(ivec x) { vec r; std::memcpy(&r, &x, sizeof r); return r; }

// The second operand wins when either is NaN, so that a NaN in x survives.
VSSM_INLINE vec max(vec bound, vec x) {
#if VSSM_LANES == 16
  return (vec)_mm512_max_ps((__m512)bound, (__m512)x);
#elif VSSM_LANES == 8
  return (vec)_mm256_max_ps((__m256)bound, (__m256)x);
#else
  return bound > x ? bound : x;
#endif
}

VSSM_INLINE vec load(const float* p) { return *(const vec*)p; }
VSSM_INLINE vec load(const bf16* p) { return from_bits(__builtin_convertvector(*(const hvec*)p, ivec) << 16); }
VSSM_INLINE float scalar(const float* p) { return *p; }
VSSM_INLINE float scalar(const bf16* p) {
  uint32_t w = uint32_t(p->bits) << 16;
  float f;
  std::memcpy(&f, &w, 4);
  return f;
}

VSSM_INLINE void store(float* p, vec x) { *(vec*)p = x; }
// Round to nearest even; NaN stays NaN.
VSSM_INLINE void store(bf16* p, vec x) {
  ivec w = bits(x);
  w = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
  w = x == x ? w : (ivec{} + 0x7fc0);
  *(hvec*)p = __builtin_convertvector(w & 0xffff, hvec);
}
VSSM_INLINE void scalar_store(float* p, float x) { *p = x; }
VSSM_INLINE void scalar_store(bf16* p, float x) {
  uint32_t w;
  std::memcpy(&w, &x, 4);
  p->bits = x == x ? uint16_t((w + 0x7fff + ((w >> 16) & 1)) >> 16) : uint16_t(0x7fc0);
}

#if VSSM_LANES == 16
// x <- 2^x for G vectors, any finite or infinite x: 2^x = 2^whole * 2^(k/16) * 2^f with |f| <= 1/32. The middle factor
// comes from a table in one register, which saves three steps of the polynomial; maximum relative error 7e-8. The
// constant and the linear term are exact: a bias near x = 0 would, over thousands of steps of a decay near 1, drift.
alignas(64) constexpr float kRoots[16] = {1.0f, 1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f, 1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f, 1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};

template <int G>
VSSM_INLINE void exp2_wide(vec* x) {
  const __m512 roots = _mm512_load_ps(kRoots);
  const vec magic = splat(786432.0f);  // 1.5 * 2^19: adding it leaves round(16 x) in the low bits
  vec whole[G], q[G], root[G];
  VSSM_UNROLL
  for (int i = 0; i < G; i++) {
    const vec f = (vec)_mm512_reduce_ps((__m512)x[i], 4 << 4);  // x - round(16 x) / 16, 0 for an infinite x
    root[i] = (vec)_mm512_permutexvar_ps((__m512i)bits(x[i] + magic), roots);
    whole[i] = x[i] - f;
    x[i] = f;
  }
  VSSM_UNROLL
  for (int i = 0; i < G; i++) q[i] = splat(5.5502137281e-02f) * x[i] + splat(2.4023428779e-01f);
  VSSM_UNROLL
  for (int i = 0; i < G; i++) q[i] = q[i] * x[i] + splat(6.9314718267e-01f);
  VSSM_UNROLL
  for (int i = 0; i < G; i++) q[i] = root[i] * (q[i] * x[i]) + root[i];
  VSSM_UNROLL
  for (int i = 0; i < G; i++) x[i] = (vec)_mm512_scalef_ps((__m512)q[i], (__m512)whole[i]);
}
#else
// 2^f on [-1/2, 1/2]: the constant term is exactly 1 (maximum relative error 7e-8, mean below 1e-10). A fit with a
// free constant is biased at f = 0, and a long memory (decay near 1 for thousands of steps) turns that into drift.
constexpr float kExp2[6] = {6.9314718803e-01f, 2.4022650922e-01f, 5.5503571043e-02f,
                            9.6180566699e-03f, 1.3390867351e-03f, 1.5461447463e-04f};

// x <- 2^x for G vectors, any finite or infinite x.
template <int G>
VSSM_INLINE void exp2_wide(vec* x) {
  const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vec whole[G], p[G];
  VSSM_UNROLL
  for (int i = 0; i < G; i++) {
    vec t = max(splat(-126.0f), x[i]);
    t = t > 128.0f ? splat(128.0f) : t;  // 2^128 carries into the bits of infinity
    whole[i] = t + magic;
    x[i] = t - (whole[i] - magic);
  }
  VSSM_UNROLL
  for (int i = 0; i < G; i++) p[i] = splat(kExp2[5]) * x[i] + splat(kExp2[4]);
  VSSM_UNROLL
  for (int c = 3; c >= 0; c--) {
    VSSM_UNROLL
    for (int i = 0; i < G; i++) p[i] = p[i] * x[i] + splat(kExp2[c]);
  }
  VSSM_UNROLL
  for (int i = 0; i < G; i++) p[i] = p[i] * x[i] + splat(1.0f);
  VSSM_UNROLL
  for (int i = 0; i < G; i++) x[i] = from_bits(bits(p[i]) + (bits(whole[i]) << 23));
}
#endif

// x <- e^x for G vectors, x <= 0. The range reduction subtracts multiples of ln 2 in two pieces: with a product by
// log2(e) instead, its rounding alone would be |x| * 6e-8 of the result, which shows in small step sizes.
template <int G>
VSSM_INLINE void exp_wide(vec* x) {
  constexpr float log2e = 1.44269504088896340736f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
#if VSSM_LANES == 16
  const __m512 roots = _mm512_load_ps(kRoots);
  const vec magic = splat(786432.0f);  // 1.5 * 2^19, as above
#else
  const vec magic = splat(12582912.0f);  // 1.5 * 2^23
#endif
  vec bounded[G], z[G], whole[G], q[G];
  VSSM_UNROLL
  for (int i = 0; i < G; i++) {
    bounded[i] = max(splat(-87.0f), x[i]);
    z[i] = bounded[i] * log2e + magic;
    whole[i] = z[i] - magic;
    x[i] = (bounded[i] - whole[i] * ln2_high) - whole[i] * ln2_low;  // |x| <= ln(2) / 32, or ln(2) / 2
  }
#if VSSM_LANES == 16
  VSSM_UNROLL
  for (int i = 0; i < G; i++) q[i] = splat(1.0f / 6) * x[i] + splat(0.5f);
  VSSM_UNROLL
  for (int i = 0; i < G; i++) q[i] = q[i] * x[i] + splat(1.0f);
  VSSM_UNROLL
  for (int i = 0; i < G; i++) {
    const vec root = (vec)_mm512_permutexvar_ps((__m512i)bits(z[i]), roots);
    q[i] = root * (q[i] * x[i]) + root;
  }
  VSSM_UNROLL
  for (int i = 0; i < G; i++) x[i] = (vec)_mm512_scalef_ps((__m512)q[i], (__m512)whole[i]);
#else
  VSSM_UNROLL
  for (int i = 0; i < G; i++) q[i] = splat(1.0f / 5040) * x[i] + splat(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    VSSM_UNROLL
    for (int i = 0; i < G; i++) q[i] = q[i] * x[i] + splat(c);
  }
  VSSM_UNROLL
  for (int i = 0; i < G; i++) x[i] = from_bits(bits(q[i]) + (bits(z[i]) << 23));
#endif
}

// x <- sigmoid(x) for G vectors.
template <int G>
VSSM_INLINE void sigmoid_wide(vec* x) {
  vec e[G];
  VSSM_UNROLL
  for (int i = 0; i < G; i++) e[i] = x[i] > 0.0f ? -x[i] : x[i];
  exp_wide<G>(e);
  VSSM_UNROLL
  for (int i = 0; i < G; i++) {
    const vec r = 1.0f / (1.0f + e[i]);
    x[i] = x[i] > 0.0f ? r : e[i] * r;
  }
}

// x <- x * sigmoid(x) for G vectors.
template <int G>
VSSM_INLINE void silu_wide(vec* x) {
  vec gate[G];
  VSSM_UNROLL
  for (int i = 0; i < G; i++) gate[i] = x[i];
  sigmoid_wide<G>(gate);
  VSSM_UNROLL
  for (int i = 0; i < G; i++) x[i] = x[i] * gate[i];
}

// log1p(y) / y on [0, 1], maximum relative error 5e-9: delta of 1e-3 must keep its relative precision.
constexpr float kLog1p[10] = {9.9999999538e-01f, -4.9999903993e-01f, 3.3330004035e-01f,  -2.4954558871e-01f,
                              1.9678117255e-01f, -1.5311863098e-01f, 1.0614264680e-01f,  -5.7064200700e-02f,
                              1.9907160895e-02f, -3.2563784664e-03f};

// x <- softplus(x) = max(x, 0) + log1p(exp(-|x|)) for G vectors, and slope <- its derivative, sigmoid(x), if asked.
template <int G, bool SLOPE>
VSSM_INLINE void softplus_wide(vec* x, vec* slope) {
  vec e[G], p[G];
  VSSM_UNROLL
  for (int i = 0; i < G; i++) e[i] = from_bits(bits(x[i]) | int32_t(0x80000000));
  exp_wide<G>(e);
  VSSM_UNROLL
  for (int i = 0; i < G; i++) p[i] = splat(kLog1p[9]) * e[i] + splat(kLog1p[8]);
  VSSM_UNROLL
  for (int c = 7; c >= 0; c--) {
    VSSM_UNROLL
    for (int i = 0; i < G; i++) p[i] = p[i] * e[i] + splat(kLog1p[c]);
  }
  if (SLOPE) {
    VSSM_UNROLL
    for (int i = 0; i < G; i++) {
      vec r = 1.0f / (1.0f + e[i]);
      slope[i] = x[i] > 0.0f ? r : e[i] * r;
    }
  }
  VSSM_UNROLL
  for (int i = 0; i < G; i++) x[i] = p[i] * e[i] + max(splat(0.0f), x[i]);
}

VSSM_INLINE float sum_lanes(vec x) {
  float total = 0;
  for (int i = 0; i < kLanes; i++) total += x[i];
  return total;
}

#if VSSM_LANES == 16
// The lane sums of 16 vectors at once: a tree of shuffles costs under three operations a value.
VSSM_INLINE void sum_lanes_16(const vec* x, float* out) {
  vec a[8], b[4], c[2];
  VSSM_UNROLL
  for (int i = 0; i < 8; i++) {
    vec s = x[2 * i], t = x[2 * i + 1];
    a[i] = __builtin_shufflevector(s, t, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(s, t, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
  VSSM_UNROLL
  for (int i = 0; i < 4; i++) {
    vec s = a[2 * i], t = a[2 * i + 1];
    b[i] = __builtin_shufflevector(s, t, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(s, t, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  VSSM_UNROLL
  for (int i = 0; i < 2; i++) {
    vec s = b[2 * i], t = b[2 * i + 1];
    c[i] = __builtin_shufflevector(s, t, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           __builtin_shufflevector(s, t, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  store(out, __builtin_shufflevector(c[0], c[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                 __builtin_shufflevector(c[0], c[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31));
}
#endif

VSSM_INLINE void sum_lanes_many(const vec* x, int64_t count, float* out) {
  int64_t i = 0;
#if VSSM_LANES == 16
  for (; i + 16 <= count; i += 16) sum_lanes_16(x + i, out + i);
#endif
  for (; i < count; i++) out[i] = sum_lanes(x[i]);
}

}  // namespace VSSM_ISA
