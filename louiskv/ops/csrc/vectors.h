// Vectors of float32 of the width that the instruction set has, in the vector extension of GCC and Clang.
//
// All of this lies in a namespace of the instruction set and uses no templates of the standard library: the linker
// would merge those of several instruction sets into one, which may then run on a CPU that does not have it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "kernels.h"

namespace louiskv {
namespace LOUISKV_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntVec __attribute__((vector_size(4 * kWidth)));
typedef uint32_t BitVec __attribute__((vector_size(4 * kWidth)));
typedef int8_t ByteVec __attribute__((vector_size(kWidth)));

constexpr float kInfinity = __builtin_inff();

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t whole(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }

inline float bits_to_float(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, 4);
  return number;
}

inline uint32_t float_to_bits(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, 4);
  return bits;
}

inline float to_float(float number) { return number; }
inline float to_float(int8_t number) { return number; }
inline float to_float(int32_t number) { return static_cast<float>(number); }
inline float to_float(int64_t number) { return static_cast<float>(number); }
inline float to_float(bf16 number) { return bits_to_float(uint32_t(number.bits) << 16); }
inline float to_float(f16 number) {
#ifdef __F16C__
  return _cvtsh_ss(number.bits);
#else
  const uint32_t sign = uint32_t(number.bits & 0x8000) << 16;
  const uint32_t rest = number.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Subnormal numbers come out right too: the product is exact.
  return bits_to_float(sign | float_to_bits(bits_to_float(rest << 13) * 0x1p112f));
#endif
}

inline void store(float number, float* at) { *at = number; }
inline void store(float number, bf16* at) {
  uint32_t bits = float_to_bits(number);
  // To the nearest, ties to even; NaN stays NaN.
  at->bits = number != number ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void store(float number, f16* at) {
#ifdef __F16C__
  at->bits = _cvtss_sh(number, 0);
#else
  const uint32_t bits = float_to_bits(number), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest >= 0x47800000)  // 65,536 and more, infinity, NaN.
    at->bits = uint16_t(sign | (rest > 0x7f800000 ? 0x7e00 : 0x7c00));
  else if (rest < 0x38800000)  // Subnormal: the sum rounds where the last bit will be.
    at->bits = uint16_t(sign | (float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000));
  else
    at->bits = uint16_t(sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13);
#endif
}

inline Vec fill(float number) { return number - Vec{}; }

inline Vec load(const float* at) {
  Vec vec;
  std::memcpy(&vec, at, sizeof(vec));
  return vec;
}

// GCC 12 takes vectors of short numbers apart before it widens them.
inline Vec load(const bf16* at) {
#if defined(__AVX512F__)
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))), 16);
#elif defined(__AVX2__)
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))), 16);
#else
  typedef uint16_t Shorts __attribute__((vector_size(16)));
  Shorts bits{};
  std::memcpy(&bits, at, 2 * kWidth);
  return (Vec)__builtin_shufflevector(Shorts{}, bits, 0, 8, 0, 9, 0, 10, 0, 11);
#endif
}
inline Vec load(const int8_t* at) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
#else
  ByteVec bytes;
  std::memcpy(&bytes, at, sizeof(bytes));
  return __builtin_convertvector(__builtin_convertvector(bytes, IntVec), Vec);
#endif
}

// The first of a vector's numbers, and zeros behind them.
template <typename T>
inline Vec load_part(const T* at, int64_t count) {
  T part[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = at[i];
  return load(part);
}

inline void put(Vec vec, float* at) { std::memcpy(at, &vec, sizeof(vec)); }

typedef float Four __attribute__((vector_size(16)));

// Four sums that together are the sum of all.
inline Four folded(Vec vec) {
#if defined(__AVX512F__)
  typedef float Eight __attribute__((vector_size(32)));
  const Eight half = __builtin_shufflevector(vec, vec, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(vec, vec, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#elif defined(__AVX2__)
  return __builtin_shufflevector(vec, vec, 0, 1, 2, 3) + __builtin_shufflevector(vec, vec, 4, 5, 6, 7);
#else
  return vec;
#endif
}

inline float sum_of(Vec vec) {
  const Four four = folded(vec);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// The sums of four vectors.
inline Four sums_of(Vec a, Vec b, Vec c, Vec d) {
#if defined(__AVX512F__)
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  return folded(_mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee)));
#elif defined(__AVX2__)
  return folded(_mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d)));
#else
  const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#endif
}

inline float most_of(Vec vec) {
  float most = vec[0];
  for (int i = 1; i < kWidth; ++i) most = vec[i] > most ? vec[i] : most;
  return most;
}

inline Vec greater(Vec a, Vec b) { return a > b ? a : b; }

// To 2 units in the last place; 0 under the least normal number, and the greatest number instead of infinity.
inline Vec exp_of(Vec x) {
  const Vec low = fill(-87.33654f), high = fill(88.72283f), half_up = fill(12582912.0f);
  const Vec within = x < low ? low : x > high ? high : x;
  // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
  const Vec shifted = within * 1.44269504f + half_up;
  const Vec power = shifted - half_up;
  const Vec left = within - power * 0.693359375f - power * -2.12194440e-4f;
  Vec sum = fill(1.9875691500e-4f);
  sum = sum * left + 1.3981999507e-3f;
  sum = sum * left + 8.3334519073e-3f;
  sum = sum * left + 4.1665795894e-2f;
  sum = sum * left + 1.6666665459e-1f;
  sum = sum * left + 5.0000001201e-1f;
  sum = sum * (left * left) + left + 1.0f;
  const Vec scaled = (Vec)((BitVec)sum + ((BitVec)shifted << 23));
  return x < low ? Vec{} : scaled;
}

// Of normal numbers, to 2 units in the last place; -inf of 0.
inline Vec log_of(Vec x) {
  const IntVec power = ((IntVec)x - 0x3f3504f3) >> 23;
  const Vec left = (Vec)((IntVec)x - (power << 23)) - 1.0f;
  const Vec square = left * left, exponent = __builtin_convertvector(power, Vec);
  Vec sum = fill(7.0376836292e-2f);
  sum = sum * left - 1.1514610310e-1f;
  sum = sum * left + 1.1676998740e-1f;
  sum = sum * left - 1.2420140846e-1f;
  sum = sum * left + 1.4249322787e-1f;
  sum = sum * left - 1.6668057665e-1f;
  sum = sum * left + 2.0000714765e-1f;
  sum = sum * left - 2.4999993993e-1f;
  sum = sum * left + 3.3333331174e-1f;
  sum = sum * (left * square) + exponent * -2.12194440e-4f - square * 0.5f + left + exponent * 0.693359375f;
  return x > 0.0f ? sum : fill(-kInfinity);
}

inline float exp_of(float x) { return exp_of(fill(x))[0]; }

inline Vec tanh_of(Vec x) { return 1.0f - 2.0f / (exp_of(x + x) + 1.0f); }

}  // namespace LOUISKV_ISA
}  // namespace louiskv
