// Between torch's stable ABI and the kernels: tensors become arrays, wrong ones are refused.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "kernels.h"

namespace louiskv {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Type type_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Half: return Type::f16;
    case ScalarType::Char: return Type::i8;
    case ScalarType::Byte: return Type::u8;
    case ScalarType::Int: return Type::i32;
    case ScalarType::Long: return Type::i64;
    case ScalarType::Bool: return Type::boolean;
    default: STD_TORCH_CHECK(false, "louiskv: a dtype that no kernel knows");
  }
}

inline Array array_of(const Tensor& tensor) {
  Array array;
  int64_t dim;
  int64_t *sizes, *strides;
  aoti_torch_get_dim(tensor.get(), &dim);
  aoti_torch_get_sizes(tensor.get(), &sizes);
  aoti_torch_get_strides(tensor.get(), &strides);
  aoti_torch_get_data_ptr(tensor.get(), &array.data);
  STD_TORCH_CHECK(dim <= 4, "louiskv: a tensor of ", dim, " dimensions");
  array.type = type_of(tensor.scalar_type());
  for (int64_t i = 0; i < dim; ++i) {
    array.size[i] = sizes[i];
    array.stride[i] = strides[i];
  }
  return array;
}

inline Array array_of(const std::optional<Tensor>& tensor) { return tensor ? array_of(*tensor) : Array(); }

// The macro that torch has for this changed its name between its versions.
inline void check(AOTITorchError code) { STD_TORCH_CHECK(code == 0, "louiskv: torch refused a call"); }

inline Tensor empty(std::initializer_list<int64_t> sizes, int32_t dtype) {
  int64_t strides[4], stride = 1;
  const int64_t dim = sizes.size();
  for (int64_t i = dim - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= sizes.begin()[i];
  }
  AtenTensorHandle handle;
  check(aoti_torch_empty_strided(dim, sizes.begin(), strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// A first dimension of 1 stands for all rows.
inline Array spread(Array array) {
  if (array.size[0] == 1) array.stride[0] = 0;
  return array;
}

inline int num_threads() {
  uint32_t num_threads;
  check(torch_get_num_threads(&num_threads));
  return static_cast<int>(num_threads);
}

inline void check_index(const Array& array, const char* name) {
  STD_TORCH_CHECK(array.type == Type::i32 || array.type == Type::i64, "louiskv: ", name, " must be int32 or int64");
}

inline bool is_real(const Array& array) { return array.type == Type::f32 || array.type == Type::bf16; }

// Real numbers, or whole ones that stand for them.
inline void check_number(const Array& array, const char* name) {
  STD_TORCH_CHECK(array.type != Type::u8 && array.type != Type::boolean, "louiskv: ", name, " must be numbers");
}

inline void check_where(const Array& where, int64_t num_rows) {
  STD_TORCH_CHECK(!where || (where.type == Type::boolean && where.size[0] == num_rows),
                  "louiskv: where must be bool [N]");
}

inline void check_dense(const Array& array, int last, const char* name) {
  STD_TORCH_CHECK(array.size[last] <= 1 || array.stride[last] == 1, "louiskv: the last dimension of ", name,
                  " must be dense");
}

}  // namespace louiskv
