// What every launcher does. A launcher is a C function that answers 0, or the error of CUDA.
#pragma once

#include "cuda_or_host.h"

#define LOUISKV_EXPORT extern "C" __attribute__((visibility("default")))

namespace louiskv {

// Makes a device the current one, and puts back the one that was. CUDA linked into this library is not torch's, and
// need not know which device is current there.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = error_ == cudaSuccess;
    }
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  // Runs what launches a kernel; answers what went wrong, without waiting for the kernel.
  template <typename Launch>
  int run(Launch launch) {
    if (error_ == cudaSuccess) {
      launch();
      error_ = cudaPeekAtLastError();
    }
    // So that the next launch does not find this error.
    if (error_ != cudaSuccess) cudaGetLastError();
    return error_;
  }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_ = cudaSuccess;
};

inline int64_t blocks_for(int64_t items, int64_t each) { return (items + each - 1) / each; }

}  // namespace louiskv
