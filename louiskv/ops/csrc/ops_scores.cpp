// Shims of scores.
#include "shim.h"

namespace louiskv {
namespace {

using Optional = std::optional<Tensor>;

Tensor floats(std::initializer_list<int64_t> sizes) { return empty(sizes, aoti_torch_dtype_float32()); }

UnitLogits problem_of(const Tensor& query, const Tensor& units, double scaling, const Optional& where) {
  UnitLogits p;
  p.query = array_of(query);
  p.units = array_of(units);
  p.where = array_of(where);
  p.scaling = static_cast<float>(scaling);
  STD_TORCH_CHECK(is_real(p.query) && p.units.size[0] == p.query.size[0], "louiskv: units do not fit the query");
  check_dense(p.units, 2, "units");
  check_where(p.where, p.query.size[0]);
  return p;
}

Tensor run(void (*kernel)(const UnitLogits&, int), UnitLogits& p) {
  const Tensor out = floats({p.query.size[0], p.query.size[1], p.units.size[1]});
  p.out = array_of(out);
  kernel(p, num_threads());
  return out;
}

Tensor dot_logits(const Tensor& query, const Tensor& means, double scaling, const Optional& where) {
  UnitLogits p = problem_of(query, means, scaling, where);
  STD_TORCH_CHECK(is_real(p.units) && p.units.size[2] == p.query.size[2], "louiskv: means do not fit the query");
  return run(kernels().dot_logits, p);
}

Tensor sketch_logits(const Tensor& query, const Tensor& codes, const Tensor& steps, double scaling,
                     const Optional& where) {
  UnitLogits p = problem_of(query, codes, scaling, where);
  p.scales = array_of(steps);
  check_number(p.scales, "steps");
  STD_TORCH_CHECK(p.units.type == Type::i8 && p.units.size[2] == p.query.size[2] &&
                      p.scales.size[0] == p.units.size[0] && p.scales.size[1] == p.units.size[1],
                  "louiskv: codes do not fit the query");
  return run(kernels().dot_logits, p);
}

Tensor bound_logits(const Tensor& query, const Tensor& boxes, double scaling, const Optional& where) {
  UnitLogits p = problem_of(query, boxes, scaling, where);
  STD_TORCH_CHECK(is_real(p.units) && p.units.size[2] == 2 * p.query.size[2], "louiskv: boxes do not fit the query");
  return run(kernels().bound_logits, p);
}

Tensor one_bit_logits(const Tensor& query, const Tensor& bits, const Tensor& scales, double scaling,
                      const Optional& where) {
  UnitLogits p = problem_of(query, bits, scaling, where);
  p.scales = array_of(scales);
  const int64_t dim = p.query.size[2], num_units = p.units.size[1], num_groups = p.scales.size[1];
  check_number(p.scales, "scales");
  check_dense(p.scales, 2, "scales");
  STD_TORCH_CHECK(p.units.type == Type::u8 && p.units.size[2] == (dim + 7) / 8 && p.scales.size[2] == 2 * dim &&
                      p.scales.size[0] == p.units.size[0] &&
                      (num_units == 0 || (num_groups > 0 && num_units % num_groups == 0)),
                  "louiskv: bits do not fit the query");
  return run(kernels().one_bit_logits, p);
}

Tensor score_tokens(const Tensor& query, const Tensor& shares, const Tensor& bits, const Tensor& steps,
                    const Tensor& unit, const Tensor& place, double scaling) {
  ScoreTokens p;
  p.query = array_of(query);
  p.shares = array_of(shares);
  p.bits = array_of(bits);
  p.steps = array_of(steps);
  p.unit = array_of(unit);
  p.place = array_of(place);
  p.scaling = static_cast<float>(scaling);
  const int64_t num_rows = p.query.size[0];
  check_index(p.unit, "unit");
  check_index(p.place, "place");
  check_number(p.steps, "steps");
  check_dense(p.bits, 2, "bits");
  STD_TORCH_CHECK(is_real(p.query) && p.shares.type == Type::f32 && p.bits.type == Type::u8 &&
                      p.bits.size[2] == (p.query.size[2] + 7) / 8 && p.shares.size[1] == p.query.size[1] &&
                      p.steps.size[1] == p.shares.size[2] && p.unit.size[1] == p.place.size[1],
                  "louiskv: shares and bits do not fit the query");
  for (const Array* each : {&p.shares, &p.bits, &p.steps, &p.unit, &p.place})
    STD_TORCH_CHECK(each->size[0] == num_rows, "louiskv: as many rows as the query has");
  const Tensor out = floats({num_rows, p.place.size[1]});
  p.out = array_of(out);
  kernels().score_tokens(p, num_threads());
  return out;
}

void check_units(const Array& logits, const Array& sizes) {
  check_number(logits, "logits");
  check_index(sizes, "sizes");
  STD_TORCH_CHECK(sizes.size[0] == logits.size[0] && sizes.size[1] == logits.size[2],
                  "louiskv: sizes do not fit the logits");
}

Tensor unit_shares(const Tensor& logits, const Tensor& sizes, const Optional& beside) {
  const Array from = array_of(logits), size = array_of(sizes), other = array_of(beside);
  check_units(from, size);
  STD_TORCH_CHECK(!other || (other.size[0] == from.size[0] && other.size[1] == from.size[1]),
                  "louiskv: beside must be [N, G]");
  const Tensor out = floats({from.size[0], from.size[1], from.size[2]});
  kernels().unit_shares(from, size, other, array_of(out), num_threads());
  return out;
}

Tensor agree(const Tensor& logits, const Tensor& sizes, bool softmax, bool log_mean, bool max, const Optional& where) {
  Agree p;
  p.logits = array_of(logits);
  p.sizes = array_of(sizes);
  p.where = array_of(where);
  p.softmax = softmax;
  p.log_mean = log_mean;
  p.max = max;
  check_units(p.logits, p.sizes);
  check_where(p.where, p.logits.size[0]);
  const Tensor out = floats({p.logits.size[0], p.logits.size[2]});
  p.out = array_of(out);
  kernels().agree(p, num_threads());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def("dot_logits(Tensor query, Tensor means, float scaling, Tensor? where) -> Tensor");
  library.def("sketch_logits(Tensor query, Tensor codes, Tensor steps, float scaling, Tensor? where) -> Tensor");
  library.def("bound_logits(Tensor query, Tensor boxes, float scaling, Tensor? where) -> Tensor");
  library.def("one_bit_logits(Tensor query, Tensor bits, Tensor scales, float scaling, Tensor? where) -> Tensor");
  library.def(
      "score_tokens(Tensor query, Tensor shares, Tensor bits, Tensor steps, Tensor unit, Tensor place, float scaling) "
      "-> Tensor");
  library.def("unit_shares(Tensor logits, Tensor sizes, Tensor? beside) -> Tensor");
  library.def("agree(Tensor logits, Tensor sizes, bool softmax, bool log_mean, bool max, Tensor? where) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) {
  library.impl("dot_logits", TORCH_BOX(&dot_logits));
  library.impl("sketch_logits", TORCH_BOX(&sketch_logits));
  library.impl("bound_logits", TORCH_BOX(&bound_logits));
  library.impl("one_bit_logits", TORCH_BOX(&one_bit_logits));
  library.impl("score_tokens", TORCH_BOX(&score_tokens));
  library.impl("unit_shares", TORCH_BOX(&unit_shares));
  library.impl("agree", TORCH_BOX(&agree));
}

}  // namespace louiskv
