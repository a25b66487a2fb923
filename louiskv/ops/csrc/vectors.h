// Vectors of float32 of the width that the instruction set has, in the vector extension of GCC and Clang.
//
// All of this lies in a namespace of the instruction set and uses no templates of the standard library: the linker
// would merge those of several instruction sets into one, which may then run on a CPU that does not have it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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
typedef uint16_t HalfBitVec __attribute__((vector_size(2 * kWidth)));
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
inline float to_float(bf16 number) { return bits_to_float(uint32_t(number.bits) << 16); }
inline float to_float(f16 number) {
  const uint32_t sign = uint32_t(number.bits & 0x8000) << 16;
  const uint32_t rest = number.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Subnormal numbers come out right too: the product is exact.
  return bits_to_float(sign | float_to_bits(bits_to_float(rest << 13) * 0x1p112f));
}

inline void store(float number, float* at) { *at = number; }
inline void store(float number, bf16* at) {
  uint32_t bits = float_to_bits(number);
  // To the nearest, ties to even; NaN stays NaN.
  at->bits = number != number ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline Vec fill(float number) { return number - Vec{}; }

inline Vec load(const float* at) {
  Vec vec;
  std::memcpy(&vec, at, sizeof(vec));
  return vec;
}
inline Vec load(const bf16* at) {
  HalfBitVec bits;
  std::memcpy(&bits, at, sizeof(bits));
  return (Vec)(__builtin_convertvector(bits, BitVec) << 16);
}
inline Vec load(const int8_t* at) {
  ByteVec bytes;
  std::memcpy(&bytes, at, sizeof(bytes));
  return __builtin_convertvector(__builtin_convertvector(bytes, IntVec), Vec);
}

// The first of a vector's numbers, and zeros behind them.
template <typename T>
inline Vec load_part(const T* at, int64_t count) {
  T part[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = at[i];
  return load(part);
}

inline void put(Vec vec, float* at) { std::memcpy(at, &vec, sizeof(vec)); }

inline float sum_of(Vec vec) {
  typedef float Four __attribute__((vector_size(16)));
#if defined(__AVX512F__)
  typedef float Eight __attribute__((vector_size(32)));
  Eight half = __builtin_shufflevector(vec, vec, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(vec, vec, 8, 9, 10, 11, 12, 13, 14, 15);
  Four four = __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#elif defined(__AVX2__)
  Four four = __builtin_shufflevector(vec, vec, 0, 1, 2, 3) + __builtin_shufflevector(vec, vec, 4, 5, 6, 7);
#else
  Four four = vec;
#endif
  return (four[0] + four[2]) + (four[1] + four[3]);
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
