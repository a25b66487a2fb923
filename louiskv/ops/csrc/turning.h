// How far queries have turned.
#pragma once

#include "arrays.h"

namespace louiskv {
namespace LOUISKV_ISA {

constexpr float kLeast = 1.17549435e-38f;

template <typename T>
const T* head_of(const Array& array, int64_t row, int64_t head) {
  return static_cast<const T*>(array.data) + row * array.stride[0] + head * array.stride[1];
}

template <typename T>
float cosine(const T* a, const T* b, int64_t dim) {
  Vec product{}, of_a{}, of_b{};
  for (int64_t i = 0; i < dim; i += kWidth) {
    const bool fits = i + kWidth <= dim;
    const Vec x = fits ? load(a + i) : load_part(a + i, dim - i);
    const Vec y = fits ? load(b + i) : load_part(b + i, dim - i);
    product += x * y;
    of_a += x * x;
    of_b += y * y;
  }
  const float norm_a = std::sqrt(sum_of(of_a)), norm_b = std::sqrt(sum_of(of_b));
  // Comparisons that NaN fails leave it NaN.
  const float norms = (norm_a < kLeast ? kLeast : norm_a) * (norm_b < kLeast ? kLeast : norm_b);
  return sum_of(product) / (norms < kLeast ? kLeast : norms);
}

template <typename T>
void cosines(const Array& query, const Array& other, const Array& out) {
  for (int64_t row = 0; row < query.size[0]; ++row)
    for (int64_t head = 0; head < query.size[1]; ++head)
      static_cast<float*>(out.data)[row * query.size[1] + head] =
          cosine(head_of<T>(query, row, head), head_of<T>(other, row, head), query.size[2]);
}

inline void query_cosines(const Array& query, const Array& other, const Array& out) {
  query.type == Type::f32 ? cosines<float>(query, other, out) : cosines<bf16>(query, other, out);
}

template <typename T>
void turned_of(const Turned& p) {
  const int64_t num_heads = p.query.size[1], num_groups = p.fired.size[1], size = num_heads / num_groups;
  Scratch<float> of_groups(num_groups);
  for (int64_t row = 0; row < p.query.size[0]; ++row) {
    float of_all = 0.0f;
    for (int64_t group = 0; group < num_groups; ++group) of_groups[group] = 0.0f;
    for (int64_t head = 0; head < num_heads; ++head) {
      const T* query = head_of<T>(p.query, row, head);
      const T* previous = head_of<T>(p.previous, row, head);
      const float each = cosine(query, previous, p.query.size[2]);
      const float kept = each > 1.0f ? 1.0f : each < -1.0f ? -1.0f : each;
      of_all += kept;
      of_groups[head / size] += kept;
      std::memcpy(const_cast<T*>(previous), query, p.query.size[2] * sizeof(T));
    }
    const float mean = of_all / num_heads, tau = static_cast<const float*>(p.tau.data)[row];
    static_cast<float*>(p.similarity.data)[row] = mean;
    bool* fired = static_cast<bool*>(p.fired.data) + row * num_groups;
    for (int64_t group = 0; group < num_groups; ++group)
      fired[group] = !((p.by_group ? of_groups[group] / size : mean) >= tau);
  }
}

inline void turned(const Turned& p) {
  p.query.type == Type::f32 ? turned_of<float>(p) : turned_of<bf16>(p);
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
