// Shims of the choice of units, places and slots.
#include "shim.h"

namespace louiskv {
namespace {

using Optional = std::optional<Tensor>;

int32_t dtype_of(const Array& array) {
  return array.type == Type::i32 ? aoti_torch_dtype_int32() : aoti_torch_dtype_int64();
}

Tensor select_units(const Tensor& scores, const Tensor& sizes, const Optional& budgets, int64_t budget,
                    const Optional& where) {
  SelectUnits p;
  p.scores = array_of(scores);
  p.sizes = array_of(sizes);
  p.budgets = array_of(budgets);
  p.where = array_of(where);
  p.budget = budget;
  check_number(p.scores, "scores");
  check_index(p.sizes, "sizes");
  if (p.budgets) check_index(p.budgets, "budget");
  check_where(p.where, p.scores.size[0]);
  STD_TORCH_CHECK(p.sizes.size[0] == p.scores.size[0] && p.sizes.size[1] == p.scores.size[1],
                  "louiskv: sizes do not fit the scores");
  STD_TORCH_CHECK(!p.budgets || p.budgets.size[0] == p.scores.size[0], "louiskv: a budget for each row");
  const Tensor out = empty({p.scores.size[0], p.scores.size[1]}, dtype_of(p.sizes));
  p.out = array_of(out);
  kernels().select_units(p, num_threads());
  return out;
}

Tensor raise_newest(const Tensor& scores, const Tensor& counts, int64_t num) {
  const Array scored = array_of(scores), count = array_of(counts);
  check_number(scored, "scores");
  check_index(count, "counts");
  STD_TORCH_CHECK(count.size[0] == scored.size[0], "louiskv: counts do not fit the scores");
  const Tensor out = empty({scored.size[0], scored.size[1]}, aoti_torch_dtype_float32());
  kernels().raise_newest(scored, count, num, array_of(out));
  return out;
}

std::tuple<Tensor, Tensor> places_of(const Tensor& take, const Tensor& offsets, int64_t width) {
  const Array taken = array_of(take), begin = array_of(offsets);
  check_index(taken, "take");
  check_index(begin, "offsets");
  STD_TORCH_CHECK(taken.size[0] == begin.size[0] && taken.size[1] == begin.size[1],
                  "louiskv: offsets do not fit what is taken");
  const Tensor place = empty({taken.size[0], width}, aoti_torch_dtype_int64());
  const Tensor unit = empty({taken.size[0], width}, aoti_torch_dtype_int64());
  kernels().places_of(taken, begin, array_of(place), array_of(unit));
  return {place, unit};
}

Tensor assign_slots(const Tensor& slot_place, const Tensor& wanted, const Optional& where, const Tensor& place,
                    const Optional& counts, const Optional& bias) {
  AssignSlots p;
  p.slot_place = array_of(slot_place);
  p.wanted = array_of(wanted);
  p.where = array_of(where);
  p.counts = array_of(counts);
  p.bias = array_of(bias);
  p.out = array_of(place);
  check_index(p.slot_place, "slot_place");
  check_index(p.wanted, "wanted");
  check_where(p.where, p.slot_place.size[0]);
  const auto fits = [&](const Array& each) {
    return each.size[0] == p.slot_place.size[0] && each.size[1] == p.slot_place.size[1];
  };
  STD_TORCH_CHECK(p.wanted.size[0] == p.slot_place.size[0], "louiskv: what is wanted does not fit the slots");
  STD_TORCH_CHECK(p.out.type == p.slot_place.type && fits(p.out) && (!p.bias || fits(p.bias)),
                  "louiskv: what is written does not fit the slots");
  STD_TORCH_CHECK(!p.counts || (p.counts.type == Type::i64 && p.counts.size[0] == 2 && p.counts.stride[0] == 1),
                  "louiskv: counts must be int64 [2]");
  const Tensor filled = empty({p.slot_place.size[0], p.slot_place.size[1]}, aoti_torch_dtype_bool());
  p.filled = array_of(filled);
  kernels().assign_slots(p);
  return filled;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def("select_units(Tensor scores, Tensor sizes, Tensor? budgets, int budget, Tensor? where) -> Tensor");
  library.def("raise_newest(Tensor scores, Tensor counts, int num) -> Tensor");
  library.def("places_of(Tensor take, Tensor offsets, int width) -> (Tensor, Tensor)");
  library.def(
      "assign_slots(Tensor slot_place, Tensor wanted, Tensor? where, Tensor(a!) place, Tensor(b!)? counts, "
      "Tensor(c!)? bias) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) {
  library.impl("select_units", TORCH_BOX(&select_units));
  library.impl("raise_newest", TORCH_BOX(&raise_newest));
  library.impl("places_of", TORCH_BOX(&places_of));
  library.impl("assign_slots", TORCH_BOX(&assign_slots));
}

}  // namespace louiskv
