// Shims of operations on units that come into an index.
#include "shim.h"

namespace louiskv {
namespace {

using Optional = std::optional<Tensor>;

void check_long(const Array& array, int64_t num_rows, const char* name) {
  STD_TORCH_CHECK(array.type == Type::i64 && array.size[0] == num_rows, "louiskv: ", name, " must be int64 [N]");
}

Tensor summarise_units(const Tensor& rows, const Tensor& sizes, bool extremes, bool volume) {
  SummariseUnits p;
  p.rows = array_of(rows);
  p.sizes = array_of(sizes);
  p.extremes = extremes;
  p.volume = volume;
  STD_TORCH_CHECK(is_real(p.rows), "louiskv: rows must be float32 or bfloat16");
  check_dense(p.rows, 2, "rows");
  check_index(p.sizes, "sizes");
  STD_TORCH_CHECK(p.sizes.size[0] == p.rows.size[0], "louiskv: sizes do not fit the rows");
  const int32_t dtype = p.rows.type == Type::f32 ? aoti_torch_dtype_float32() : aoti_torch_dtype_bfloat16();
  const Tensor out = empty({p.rows.size[0], p.sizes.size[1], p.rows.size[2] * (extremes ? 2 : 1)}, dtype);
  p.out = array_of(out);
  kernels().summarise_units(p, num_threads());
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> append_units(const Tensor& offsets, const Tensor& sizes,
                                                        const Tensor& counts, const Tensor& num_tokens,
                                                        const Tensor& begin, const Tensor& new_sizes) {
  AppendUnits p;
  p.offsets = array_of(offsets);
  p.sizes = array_of(sizes);
  p.counts = array_of(counts);
  p.num_tokens = array_of(num_tokens);
  p.begin = array_of(begin);
  p.new_sizes = array_of(new_sizes);
  const int64_t num_rows = p.sizes.size[0];
  for (const Array* each : {&p.offsets, &p.sizes, &p.new_sizes}) {
    check_index(*each, "a table");
    STD_TORCH_CHECK(each->size[0] == num_rows, "louiskv: tables of as many rows");
  }
  check_long(p.counts, num_rows, "counts");
  check_long(p.num_tokens, num_rows, "num_tokens");
  check_long(p.begin, num_rows, "begin");
  STD_TORCH_CHECK(p.offsets.size[1] == p.sizes.size[1], "louiskv: offsets do not fit the sizes");
  const auto made = [&] { return empty({num_rows}, aoti_torch_dtype_int64()); };
  const Tensor first = made(), new_units = made(), first_token = made(), new_tokens = made();
  p.first = array_of(first);
  p.new_units = array_of(new_units);
  p.first_token = array_of(first_token);
  p.new_tokens = array_of(new_tokens);
  kernels().append_units(p);
  return {first, new_units, first_token, new_tokens};
}

std::tuple<Tensor, Tensor> keep_runs(const Tensor& slot_place, const Tensor& begin, const Tensor& counts,
                                     const Optional& rooms, int64_t room, const Optional& bias) {
  KeepRuns p;
  p.slot_place = array_of(slot_place);
  p.begin = array_of(begin);
  p.counts = array_of(counts);
  p.rooms = array_of(rooms);
  p.bias = array_of(bias);
  p.room = room;
  const int64_t num_rows = p.slot_place.size[0], num_slots = p.slot_place.size[1];
  STD_TORCH_CHECK(p.slot_place.type == Type::i32, "louiskv: slot_place must be int32");
  check_long(p.begin, num_rows, "begin");
  check_long(p.counts, num_rows, "counts");
  if (p.rooms) check_long(p.rooms, num_rows, "room");
  STD_TORCH_CHECK(!p.bias || (p.bias.size[0] == num_rows && p.bias.size[1] == num_slots),
                  "louiskv: the bias does not fit the slots");
  const Tensor comes = empty({num_rows, num_slots}, aoti_torch_dtype_bool());
  const Tensor token = empty({num_rows, num_slots}, aoti_torch_dtype_int32());
  p.comes = array_of(comes);
  p.token = array_of(token);
  kernels().keep_runs(p);
  return {comes, token};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def("summarise_units(Tensor rows, Tensor sizes, bool extremes, bool volume) -> Tensor");
  library.def(
      "append_units(Tensor(a!) offsets, Tensor(b!) sizes, Tensor(c!) counts, Tensor(d!) num_tokens, "
      "Tensor begin, Tensor new_sizes) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "keep_runs(Tensor(a!) slot_place, Tensor begin, Tensor counts, Tensor? rooms, int room, Tensor(b!)? bias) -> "
      "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) {
  library.impl("summarise_units", TORCH_BOX(&summarise_units));
  library.impl("append_units", TORCH_BOX(&append_units));
  library.impl("keep_runs", TORCH_BOX(&keep_runs));
}

}  // namespace louiskv
