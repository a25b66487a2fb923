// Numbers of arrays of any dtype, memory, and work shared among threads.
#pragma once

#include <cstdlib>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "vectors.h"

namespace louiskv {
namespace LOUISKV_ISA {

inline float number_at(const Array& array, int64_t at) {
  switch (array.type) {
    case Type::f32: return static_cast<const float*>(array.data)[at];
    case Type::bf16: return to_float(static_cast<const bf16*>(array.data)[at]);
    case Type::f16: return to_float(static_cast<const f16*>(array.data)[at]);
    case Type::i8: return static_cast<const int8_t*>(array.data)[at];
    case Type::i32: return static_cast<const int32_t*>(array.data)[at];
    case Type::i64: return static_cast<const int64_t*>(array.data)[at];
    default: return static_cast<const uint8_t*>(array.data)[at];
  }
}

inline int64_t index_at(const Array& array, int64_t at) {
  return array.type == Type::i32 ? static_cast<const int32_t*>(array.data)[at]
                                 : static_cast<const int64_t*>(array.data)[at];
}

// Memory of a kernel's own, not set.
template <typename T>
struct Scratch {
  T* const data;
  explicit Scratch(int64_t count) : data(static_cast<T*>(std::malloc(sizeof(T) * (count + 1)))) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() { std::free(data); }
  operator T*() const { return data; }
};

// Calls `work(part)` for each of `num_parts` parts, on as many threads if there are so many.
template <typename Work>
inline void in_parts(int num_parts, const Work& work) {
#ifdef _OPENMP
  if (num_parts > 1) {
#pragma omp parallel num_threads(num_parts)
    for (int part = omp_get_thread_num(); part < num_parts; part += omp_get_num_threads()) work(part);
    return;
  }
#endif
  for (int part = 0; part < num_parts; ++part) work(part);
}

// Threads worth starting for work that reads so many bytes.
inline int parts_for(int64_t num_bytes, int num_threads) {
  constexpr int64_t kWorthAThread = 256 * 1024;
  return static_cast<int>(most(1, least(num_threads, num_bytes / kWorthAThread)));
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
