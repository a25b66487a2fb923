// The budgeted choice on a GPU: one block a row.
#include "cuda_launch.cuh"
#include "cuda_selection.h"

namespace louiskv {
namespace {

constexpr int kMostThreads = 1024;

// The threads of a block. Between two sums lies a barrier.
template <typename Weight>
struct Block {
  Weight* of_warps;  // [kLanes], shared

  __device__ int rank() const { return threadIdx.x; }
  __device__ int size() const { return blockDim.x; }
  __device__ void barrier() const { __syncthreads(); }
  __device__ bool any(bool flag) const { return __syncthreads_or(flag); }
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
  static __device__ Weight sum_up_to(Weight sum, int lane) {
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2) {
      const Weight other = __shfl_up_sync(0xffffffff, sum, distance);
      if (lane >= distance) sum += other;
    }
    return sum;
  }
};

template <typename Size>
__global__ void __launch_bounds__(kMostThreads)
    select_units(const float* scores, int64_t scores_stride, const Size* sizes, int64_t sizes_stride,
                 const int64_t* budgets, int64_t budget, const bool* where, Size* take, int64_t units) {
  using Weight = typename WeightOf<Size>::Type;
  __shared__ Scratch<Weight> scratch;
  __shared__ Weight of_warps[kLanes];
  const int64_t row = blockIdx.x;
  if (where && !where[row]) return;
  const Row<Size> units_of_row = {scores + row * scores_stride, sizes + row * sizes_stride, take + row * units, units};
  select_row(units_of_row, budgets ? budgets[row] : budget, scratch, Block<Weight>{of_warps});
}

}  // namespace
}  // namespace louiskv

// Scores [rows, units] and sizes [rows, units] of 4 or 8 bytes, strides in elements; take [rows, units] contiguous.
// Budgets [rows], or null for one budget; where [rows], or null for all rows.
LOUISKV_EXPORT int louiskv_select_units(const float* scores, int64_t scores_stride, const void* sizes,
                                        int64_t sizes_stride, int size_bytes, const int64_t* budgets, int64_t budget,
                                        const bool* where, void* take, int64_t rows, int64_t units, int device,
                                        void* stream) {
  using namespace louiskv;
  if (!rows || !units) return cudaSuccess;
  const int threads = units > 8192 ? 1024 : 512;
  const auto launch = [&](auto size) {
    using Size = decltype(size);
    select_units<Size><<<rows, threads, 0, static_cast<cudaStream_t>(stream)>>>(
        scores, scores_stride, static_cast<const Size*>(sizes), sizes_stride, budgets, budget, where,
        static_cast<Size*>(take), units);
  };
  return OnDevice(device).run([&] { size_bytes == 8 ? launch(int64_t{}) : launch(int32_t{}); });
}

// Whether kernels of this library run on a device.
LOUISKV_EXPORT int louiskv_ready(int device) {
  cudaFuncAttributes attributes;
  return louiskv::OnDevice(device).run([&] { cudaFuncGetAttributes(&attributes, louiskv::select_units<int32_t>); });
}

LOUISKV_EXPORT const char* louiskv_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
