// A block as the team of threads that the kernels' logic is written for.
#pragma once

#include "cuda_or_host.h"

namespace louiskv {

// The threads of a block. Between two sums lies a barrier.
template <typename Weight>
struct Block {
  Weight* of_warps;  // [kLanes], shared

  __device__ int rank() const { return threadIdx.x; }
  __device__ int size() const { return blockDim.x; }
  __device__ void barrier() const { __syncthreads(); }
  __device__ bool any(bool flag) const { return __syncthreads_or(flag); }
  __device__ void mark(uint32_t* at, uint32_t bits) const { atomicOr(at, bits); }
  __device__ void unmark(uint32_t* at, uint32_t bits) const { atomicAnd(at, ~bits); }
  __device__ void lower(uint32_t* at, uint32_t number) const {
    const uint32_t least = ~greatest_of_warp(~number);
    if (threadIdx.x % kLanes == 0) atomicMin(at, least);
  }
  __device__ void raise(uint32_t* at, uint32_t number) const {
    const uint32_t greatest = greatest_of_warp(number);
    if (threadIdx.x % kLanes == 0) atomicMax(at, greatest);
  }
  __device__ void add(uint32_t* at, uint32_t weight) const { atomicAdd(at, weight); }
  // Shared memory adds 32 bits by itself, 64 bits in a loop: so in halves, with a carry.
  __device__ void add(unsigned long long* at, unsigned long long weight) const {
    uint32_t* halves = reinterpret_cast<uint32_t*>(at);
    const uint32_t low = static_cast<uint32_t>(weight), before = atomicAdd(halves, low);
    const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < before);
    if (high) atomicAdd(halves + 1, high);
  }

  // The sum over the threads of lower rank, and over all.
  __device__ Weight sum_before(Weight mine, Weight* total) const {
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, warps = blockDim.x / kLanes;
    const Weight here = sum_up_to(mine, lane);
    if (lane == kLanes - 1) of_warps[warp] = here;
    __syncthreads();
    const Weight up_to_warp = sum_up_to(lane < warps ? of_warps[lane] : Weight{0}, lane);
    *total = __shfl_sync(0xffffffff, up_to_warp, kLanes - 1);
    const Weight before_warp = __shfl_sync(0xffffffff, up_to_warp, warp ? warp - 1 : 0);
    return (warp ? before_warp : Weight{0}) + here - mine;
  }

 private:
  static __device__ uint32_t greatest_of_warp(uint32_t number) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xffffffff, number);
#else
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2)
      number = max(number, __shfl_xor_sync(0xffffffff, number, distance));
    return number;
#endif
  }
  static __device__ Weight sum_up_to(Weight sum, int lane) {
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2) {
      const Weight other = __shfl_up_sync(0xffffffff, sum, distance);
      if (lane >= distance) sum += other;
    }
    return sum;
  }
};

}  // namespace louiskv
