// What kernels in CUDA are written in, so that their logic also compiles, and is tested, on a host without CUDA.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define LOUISKV_INLINE __device__ __forceinline__
#define LOUISKV_UNROLL _Pragma("unroll")
#define LOUISKV_ROLL _Pragma("unroll 1")
#else
#define LOUISKV_INLINE inline
#define LOUISKV_UNROLL
#define LOUISKV_ROLL
#endif

namespace louiskv {

// Lanes of a warp.
constexpr int kLanes = 32;

// A word that is read once: it shall not push out of the caches what is read again.
template <typename Word>
LOUISKV_INLINE Word load_once(const Word* at) {
#ifdef __CUDACC__
  return __ldcs(at);
#else
  return *at;
#endif
}

LOUISKV_INLINE uint32_t count_bits(uint32_t bits) {
#ifdef __CUDACC__
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}

// The number of the lowest bit of those that are set, of which there is one.
LOUISKV_INLINE int lowest_bit(uint32_t bits) {
#ifdef __CUDACC__
  return __ffs(bits) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

// How many bits a number has, without leading zeros.
LOUISKV_INLINE int bits_of(uint32_t number) {
#ifdef __CUDACC__
  return 32 - __clz(number);
#else
  return number ? 32 - __builtin_clz(number) : 0;
#endif
}

}  // namespace louiskv
