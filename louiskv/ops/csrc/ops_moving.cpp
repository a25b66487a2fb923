// Shims of operations that move tokens, of those that compare queries, and of the choice of the instruction set.
#include "shim.h"

namespace louiskv {
namespace {

Tensor query_cosines(const Tensor& query, const Tensor& other) {
  const Array a = array_of(query), b = array_of(other);
  STD_TORCH_CHECK(a.type == b.type && is_real(a), "louiskv: queries of one dtype");
  STD_TORCH_CHECK(a.size[0] == b.size[0] && a.size[1] == b.size[1] && a.size[2] == b.size[2],
                  "louiskv: queries of one shape");
  check_dense(a, 2, "query");
  check_dense(b, 2, "other");
  const Tensor out = empty({a.size[0], a.size[1]}, aoti_torch_dtype_float32());
  kernels().query_cosines(a, b, array_of(out));
  return out;
}

Tensor turned(const Tensor& query, const Tensor& previous, const Tensor& similarity, const Tensor& tau,
              int64_t num_groups, bool by_group) {
  Turned p;
  p.query = array_of(query);
  p.previous = array_of(previous);
  p.tau = array_of(tau);
  p.by_group = by_group;
  const Array &a = p.query, &b = p.previous;
  STD_TORCH_CHECK(a.type == b.type && is_real(a), "louiskv: queries of one dtype");
  STD_TORCH_CHECK(a.size[0] == b.size[0] && a.size[1] == b.size[1] && a.size[2] == b.size[2],
                  "louiskv: queries of one shape");
  STD_TORCH_CHECK(num_groups > 0 && a.size[1] % num_groups == 0, "louiskv: heads in whole groups");
  check_dense(a, 2, "query");
  check_dense(b, 2, "previous");
  const Tensor fired = empty({a.size[0], num_groups}, aoti_torch_dtype_bool());
  p.similarity = array_of(similarity);
  p.fired = array_of(fired);
  STD_TORCH_CHECK(p.similarity.type == Type::f32 && p.similarity.size[0] == a.size[0] && p.similarity.stride[0] == 1,
                  "louiskv: similarity must be float32 [B]");
  STD_TORCH_CHECK(p.tau.type == Type::f32 && p.tau.size[0] == a.size[0] && p.tau.stride[0] == 1,
                  "louiskv: tau must be float32 [B]");
  kernels().turned(p);
  return fired;
}

void append_token(const Tensor& rows, const Tensor& bias, const Tensor& lengths, const Tensor& keys,
                  const Tensor& values, int64_t num_sinks, int64_t window) {
  AppendToken p;
  p.rows = array_of(rows);
  p.bias = array_of(bias);
  p.lengths = array_of(lengths);
  p.keys = array_of(keys);
  p.values = array_of(values);
  p.num_sinks = num_sinks;
  p.window = window;
  check_dense(p.rows, 2, "rows");
  check_dense(p.keys, 1, "keys");
  check_dense(p.values, 1, "values");
  const int64_t num_rows = p.rows.size[0];
  STD_TORCH_CHECK(p.keys.type == p.rows.type && p.values.type == p.rows.type && p.lengths.type == Type::i64 &&
                      p.keys.size[0] == num_rows && p.values.size[0] == num_rows && p.lengths.size[0] == num_rows &&
                      p.bias.size[0] == num_rows && p.bias.size[2] == p.rows.size[1] && window > 0 &&
                      num_sinks + window <= p.rows.size[1] && p.keys.size[1] + p.values.size[1] == p.rows.size[2],
                  "louiskv: a token that does not fit the slots");
  kernels().append_token(p);
}

void fetch_rows(const Tensor& source, const Tensor& place, const Tensor& missing, const Tensor& target) {
  const Array from = array_of(source), places = array_of(place), wanted = array_of(missing), to = array_of(target);
  check_dense(from, 2, "source");
  check_dense(to, 2, "target");
  check_index(places, "place");
  const auto fits = [&](const Array& each) { return each.size[0] == to.size[0] && each.size[1] == to.size[1]; };
  STD_TORCH_CHECK(from.type == to.type && from.size[0] == to.size[0] && from.size[2] == to.size[2] && fits(places) &&
                      fits(wanted) && wanted.type == Type::boolean,
                  "louiskv: source and places do not fit the target");
  kernels().fetch_rows(from, places, wanted, to, num_threads());
}

void store_rows(const Tensor& target, const Tensor& lengths, const Tensor& rows, const Tensor& counts) {
  const Array to = array_of(target), begin = array_of(lengths), from = array_of(rows), count = array_of(counts);
  check_index(begin, "lengths");
  check_index(count, "counts");
  STD_TORCH_CHECK(target.is_contiguous(), "louiskv: target must be contiguous");
  STD_TORCH_CHECK(from.type == to.type && from.size[0] == to.size[0] && from.size[2] == to.size[2] &&
                      from.size[3] == to.size[3] && begin.size[0] == to.size[0] && count.size[0] == to.size[0],
                  "louiskv: rows do not fit the target");
  kernels().store_rows(to, begin, from, count);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def("query_cosines(Tensor query, Tensor other) -> Tensor");
  library.def(
      "turned(Tensor query, Tensor(a!) previous, Tensor(b!) similarity, Tensor tau, int num_groups, bool by_group) -> "
      "Tensor");
  library.def(
      "append_token(Tensor(a!) rows, Tensor(b!) bias, Tensor(c!) lengths, Tensor keys, Tensor values, int num_sinks, "
      "int window) -> ()");
  library.def("fetch_rows(Tensor source, Tensor place, Tensor missing, Tensor(a!) target) -> ()");
  library.def("store_rows(Tensor(a!) target, Tensor lengths, Tensor rows, Tensor counts) -> ()");
  library.def("instruction_sets() -> str");
  library.def("use_instruction_set(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) {
  library.impl("query_cosines", TORCH_BOX(&query_cosines));
  library.impl("turned", TORCH_BOX(&turned));
  library.impl("append_token", TORCH_BOX(&append_token));
  library.impl("fetch_rows", TORCH_BOX(&fetch_rows));
  library.impl("store_rows", TORCH_BOX(&store_rows));
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CompositeExplicitAutograd, library) {
  library.impl("instruction_sets", TORCH_BOX(&instruction_sets));
  library.impl("use_instruction_set", TORCH_BOX(&use_instruction_set));
}

}  // namespace louiskv
