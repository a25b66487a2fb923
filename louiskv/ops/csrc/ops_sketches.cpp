// Shims of operations on sketches, and on tokens in the order of their groups.
#include "shim.h"

namespace louiskv {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor, Tensor> sketch_units(const Tensor& keys, const Tensor& values, const Tensor& sizes,
                                                        bool token_bits) {
  SketchUnits p;
  p.keys = array_of(keys);
  p.values = array_of(values);
  p.sizes = array_of(sizes);
  STD_TORCH_CHECK(is_real(p.keys) && p.values.type == p.keys.type, "louiskv: rows must be float32 or bfloat16");
  check_dense(p.keys, 2, "keys");
  check_dense(p.values, 2, "values");
  check_index(p.sizes, "sizes");
  const int64_t num_rows = p.keys.size[0], num_units = p.sizes.size[1];
  STD_TORCH_CHECK(p.values.size[0] == num_rows && p.values.size[1] == p.keys.size[1] && p.sizes.size[0] == num_rows,
                  "louiskv: keys, values and sizes do not fit");
  const int64_t bytes = (p.keys.size[2] + 7) / 8;
  const Tensor key_codes = empty({num_rows, num_units, p.keys.size[2]}, aoti_torch_dtype_int8());
  const Tensor value_codes = empty({num_rows, num_units, p.values.size[2]}, aoti_torch_dtype_int8());
  const Tensor steps = empty({num_rows, num_units, 3}, aoti_torch_dtype_float16());
  const Tensor bits = empty({token_bits ? num_rows : 0, p.keys.size[1], bytes}, aoti_torch_dtype_uint8());
  p.key_codes = array_of(key_codes);
  p.value_codes = array_of(value_codes);
  p.steps = array_of(steps);
  if (token_bits) p.bits = array_of(bits);
  kernels().sketch_units(p, num_threads());
  return {key_codes, value_codes, steps, bits};
}

void bundle_sketches(const Tensor& key_codes, const Tensor& value_codes, const Tensor& steps, const Tensor& sizes,
                     const Tensor& begin, const Tensor& counts, const Tensor& bundled_keys,
                     const Tensor& bundled_values, const Tensor& bundled_steps, int64_t bundle_size) {
  BundleSketches p;
  p.codes[0] = array_of(key_codes);
  p.codes[1] = array_of(value_codes);
  p.steps = array_of(steps);
  p.sizes = array_of(sizes);
  p.begin = array_of(begin);
  p.counts = array_of(counts);
  p.bundled[0] = array_of(bundled_keys);
  p.bundled[1] = array_of(bundled_values);
  p.bundled_steps = array_of(bundled_steps);
  p.bundle_size = bundle_size;
  const int64_t num_rows = p.sizes.size[0], num_units = p.sizes.size[1], num_bundles = p.bundled_steps.size[1];
  check_index(p.sizes, "sizes");
  for (const Array* each : {&p.begin, &p.counts})
    STD_TORCH_CHECK(each->type == Type::i64 && each->size[0] == num_rows,
                    "louiskv: begin and counts must be int64 [N]");
  for (const Array* each : {&p.steps, &p.bundled_steps})
    STD_TORCH_CHECK(each->type == Type::f16 && each->size[0] == num_rows && each->size[2] == 3,
                    "louiskv: steps must be float16 [N, U, 3]");
  check_dense(p.bundled_steps, 2, "steps");
  for (int which = 0; which < 2; ++which) {
    const Array &of = p.codes[which], &to = p.bundled[which];
    STD_TORCH_CHECK(of.type == Type::i8 && to.type == Type::i8 && of.size[2] == to.size[2] && of.size[0] == num_rows &&
                        to.size[0] == num_rows && of.size[1] >= num_units && to.size[1] == num_bundles,
                    "louiskv: codes must be int8 [N, U, D]");
    check_dense(of, 2, "codes");
    check_dense(to, 2, "codes");
  }
  STD_TORCH_CHECK(bundle_size > 0 && num_bundles * bundle_size <= num_units, "louiskv: more bundles than units");
  kernels().bundle_sketches(p);
}

std::tuple<Tensor, Tensor> group_by_label(const Tensor& labels, int64_t num_labels) {
  const Array from = array_of(labels);
  STD_TORCH_CHECK(from.type == Type::i64, "louiskv: labels must be int64");
  const Tensor order = empty({from.size[0], from.size[1]}, aoti_torch_dtype_int64());
  const Tensor sizes = empty({from.size[0], num_labels}, aoti_torch_dtype_int64());
  kernels().group_by_label(from, num_labels, array_of(order), array_of(sizes));
  return {order, sizes};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def(
      "sketch_units(Tensor keys, Tensor values, Tensor sizes, bool token_bits) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "bundle_sketches(Tensor key_codes, Tensor value_codes, Tensor steps, Tensor sizes, Tensor begin, Tensor counts, "
      "Tensor(a!) bundled_keys, Tensor(b!) bundled_values, Tensor(c!) bundled_steps, int bundle_size) -> ()");
  library.def("group_by_label(Tensor labels, int num_labels) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) {
  library.impl("sketch_units", TORCH_BOX(&sketch_units));
  library.impl("bundle_sketches", TORCH_BOX(&bundle_sketches));
  library.impl("group_by_label", TORCH_BOX(&group_by_label));
}

}  // namespace louiskv
