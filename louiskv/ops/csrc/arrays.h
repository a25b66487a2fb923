// Numbers of arrays of any dtype, memory, and work shared among threads.
#pragma once

#include <cstdlib>
#include <type_traits>

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

inline int64_t entry_at(const Array& array, int64_t row, int64_t i) {
  return index_at(array, row * array.stride[0] + i * array.stride[1]);
}

inline void set_index(const Array& array, int64_t row, int64_t i, int64_t value) {
  const int64_t at = row * array.stride[0] + i * array.stride[1];
  if (array.type == Type::i32)
    static_cast<int32_t*>(array.data)[at] = static_cast<int32_t>(value);
  else
    static_cast<int64_t*>(array.data)[at] = value;
}

// A bias of 0 or of -inf.
inline void set_bias(const Array& bias, int64_t at, bool open) {
  switch (bias.type) {
    case Type::f32: static_cast<uint32_t*>(bias.data)[at] = open ? 0 : 0xff800000u; return;
    case Type::bf16: static_cast<uint16_t*>(bias.data)[at] = open ? 0 : 0xff80; return;
    default: static_cast<uint16_t*>(bias.data)[at] = open ? 0 : 0xfc00;
  }
}

// Calls `work` with a null pointer of the type that the indices of an array have.
template <typename Work>
inline void with_index(const Array& array, const Work& work) {
  array.type == Type::i32 ? work(static_cast<int32_t*>(nullptr)) : work(static_cast<int64_t*>(nullptr));
}

// Numbers of an array, `stride` apart from `at` on, as floats.
inline void read_floats(const Array& array, int64_t at, int64_t stride, int64_t count, float* out) {
  const auto read = [&](const auto* from) {
    for (int64_t i = 0; i < count; ++i) out[i] = to_float(from[at + i * stride]);
  };
  switch (array.type) {
    case Type::f32: return read(static_cast<const float*>(array.data));
    case Type::bf16: return read(static_cast<const bf16*>(array.data));
    case Type::f16: return read(static_cast<const f16*>(array.data));
    case Type::i32: return read(static_cast<const int32_t*>(array.data));
    case Type::i64: return read(static_cast<const int64_t*>(array.data));
    default: return read(static_cast<const int8_t*>(array.data));
  }
}

// Queries [N, G, D], scaled, one behind the other, with zeros up to `padded` numbers each.
inline void read_queries(const Array& query, float scaling, int64_t padded, float* out) {
  for (int64_t row = 0; row < query.size[0]; ++row) {
    for (int64_t head = 0; head < query.size[1]; ++head, out += padded) {
      read_floats(query, row * query.stride[0] + head * query.stride[1], query.stride[2], query.size[2], out);
      for (int64_t i = 0; i < padded; ++i) out[i] = i < query.size[2] ? out[i] * scaling : 0.0f;
    }
  }
}

// Asks for numbers that are soon to be read; there need not be any.
template <typename T>
inline void prefetch(const T* row, int64_t dim) {
  const char* at = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < dim * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(at + byte);
}

inline bool asked(const Array& where, int64_t row) {
  return !where || static_cast<const uint8_t*>(where.data)[row * where.stride[0]];
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
  constexpr int64_t kWorthAThread = 128 * 1024;
  return static_cast<int>(most(1, least(num_threads, num_bytes / kWorthAThread)));
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
