// What the kernels take, and the table of them that each instruction set has. Knows nothing of torch.
#pragma once

#include <cstdint>
#include <string>

namespace louiskv {

enum class Type : int32_t { f32, bf16, f16, i8, u8, i32, i64, boolean };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// A tensor; strides in elements. `data` is null where there is none.
struct Array {
  void* data = nullptr;
  Type type = Type::f32;
  int64_t size[4] = {1, 1, 1, 1};
  int64_t stride[4] = {0, 0, 0, 0};

  explicit operator bool() const { return data != nullptr; }
};

struct DecodeAttention {
  Array query, keys, values, bias, attention_sinks;
  // What is attended to in place.
  Array rows, place;
  // What is attended to by estimate.
  Array logits, rest_bias, rest_values, steps;
  float scaling = 1.0f;
  // 0 for none.
  float softcap = 0.0f;
  Array out;
};

struct KMeans {
  // [N, T, D], and [N] of each row.
  Array keys, counts, num_clusters;
  // [N, C] tokens at which the clusters start.
  Array first;
  int64_t iterations = 1;
  bool cosine = false;
  // [N, T] int64, dense.
  Array out;
};

struct Kernels {
  const char* name;
  void (*decode_attention)(const DecodeAttention& problem, int num_threads);
  void (*kmeans)(const KMeans& problem, int num_threads);
  // out [B, H] float32, of queries and others [B, H, D].
  void (*query_cosines)(const Array& query, const Array& other, const Array& out);
};

// Of the best instruction set that this CPU has, or the one that LOUISKV_CPU_ISA names.
const Kernels& kernels();
// Those that this CPU has, the best first, with commas between them.
std::string instruction_sets();
// From now on this one; the best for "".
void use_instruction_set(const std::string& name);

}  // namespace louiskv
