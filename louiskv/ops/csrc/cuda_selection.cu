// The budgeted choice on a GPU: one block a row.
#include "cuda_block.cuh"
#include "cuda_launch.cuh"
#include "cuda_selection.h"

namespace louiskv {
namespace {

constexpr int kMostThreads = 1024;

template <typename Size>
__global__ void __launch_bounds__(kMostThreads, 1)
    select_units(const float* scores, int64_t scores_stride, const Size* sizes, int64_t sizes_stride,
                 const int64_t* budgets, int64_t budget, const bool* where, Size* take, int64_t units) {
  using Weight = typename WeightOf<Size>::Type;
  __shared__ Scratch<Weight> scratch;
  __shared__ Weight of_warps[kLanes];
  const int64_t row = blockIdx.x;
  if (where && !where[row]) return;
  const Row<Size> units_of_row = {scores + row * scores_stride, sizes + row * sizes_stride, take + row * units,
                                  static_cast<int>(units)};
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
  const int threads = units > 2048 ? 1024 : 512;
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
