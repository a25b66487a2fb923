// How far queries have turned.
#pragma once

#include "vectors.h"

namespace louiskv {
namespace LOUISKV_ISA {

template <typename T>
void cosines(const Array& query, const Array& other, const Array& out) {
  constexpr float kLeast = 1.17549435e-38f;
  const int64_t dim = query.size[2];
  for (int64_t row = 0; row < query.size[0]; ++row) {
    for (int64_t head = 0; head < query.size[1]; ++head) {
      const T* a = static_cast<const T*>(query.data) + row * query.stride[0] + head * query.stride[1];
      const T* b = static_cast<const T*>(other.data) + row * other.stride[0] + head * other.stride[1];
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
      static_cast<float*>(out.data)[row * query.size[1] + head] = sum_of(product) / (norms < kLeast ? kLeast : norms);
    }
  }
}

inline void query_cosines(const Array& query, const Array& other, const Array& out) {
  query.type == Type::f32 ? cosines<float>(query, other, out) : cosines<bf16>(query, other, out);
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
