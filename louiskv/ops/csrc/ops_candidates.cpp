// Shims of the single tokens that come into question, the best of them, and what is left of units.
#include "shim.h"

namespace louiskv {
namespace {

int32_t dtype_of(const Array& array) {
  return array.type == Type::i32 ? aoti_torch_dtype_int32() : aoti_torch_dtype_int64();
}

std::tuple<Tensor, Tensor, Tensor> list_candidates(const Tensor& take, const Tensor& offsets, const Tensor& slot_place,
                                                   const Tensor& unit_offsets, const Tensor& counts,
                                                   const std::optional<Tensor>& first_entry, int64_t stretch,
                                                   int64_t width) {
  ListCandidates p;
  p.take = array_of(take);
  p.offsets = array_of(offsets);
  p.slot_place = array_of(slot_place);
  p.unit_offsets = array_of(unit_offsets);
  p.counts = array_of(counts);
  p.first_entry = array_of(first_entry);
  p.stretch = stretch;
  p.width = width;
  check_index(p.take, "take");
  check_index(p.offsets, "offsets");
  check_index(p.slot_place, "slot_place");
  check_index(p.unit_offsets, "unit_offsets");
  check_index(p.counts, "counts");
  if (p.first_entry) check_index(p.first_entry, "first_entry");
  const int64_t num_rows = p.take.size[0];
  STD_TORCH_CHECK(p.offsets.size[0] == num_rows && p.offsets.size[1] == p.take.size[1],
                  "louiskv: offsets do not fit what is taken");
  for (const Array* each : {&p.slot_place, &p.unit_offsets, &p.counts})
    STD_TORCH_CHECK(each->size[0] == num_rows, "louiskv: as many rows as take has");
  STD_TORCH_CHECK(stretch > 0 && (!p.first_entry || (p.first_entry.size[0] == num_rows &&
                                                     p.first_entry.size[1] == p.unit_offsets.size[1] / stretch)),
                  "louiskv: first_entry does not fit the units");
  const int64_t num_listed = width + p.slot_place.size[1];
  const Tensor place = empty({num_rows, num_listed}, dtype_of(p.slot_place));
  const Tensor entry = empty({num_rows, num_listed}, dtype_of(p.slot_place));
  const Tensor resident = empty({num_rows, num_listed}, aoti_torch_dtype_bool());
  p.place = array_of(place);
  p.entry = array_of(entry);
  p.resident = array_of(resident);
  kernels().list_candidates(p);
  return {place, entry, resident};
}

Tensor best_tokens(const Tensor& scores, const Tensor& place, const Tensor& resident, const Tensor& room,
                   int64_t num_wanted, double hold) {
  BestTokens p;
  p.scores = array_of(scores);
  p.place = array_of(place);
  p.resident = array_of(resident);
  p.room = array_of(room);
  p.hold = static_cast<float>(hold);
  check_number(p.scores, "scores");
  check_index(p.place, "place");
  check_index(p.room, "room");
  STD_TORCH_CHECK(p.resident.type == Type::boolean, "louiskv: resident must be bool");
  for (const Array* each : {&p.scores, &p.resident})
    STD_TORCH_CHECK(each->size[0] == p.place.size[0] && each->size[1] == p.place.size[1],
                    "louiskv: scores do not fit the places");
  STD_TORCH_CHECK(p.room.size[0] == p.place.size[0], "louiskv: a room for each row");
  const Tensor out = empty({p.place.size[0], num_wanted}, dtype_of(p.place));
  p.out = array_of(out);
  kernels().best_tokens(p, num_threads());
  return out;
}

Tensor count_rest(const Tensor& place, const Tensor& sizes, const Tensor& unit_offsets, const Tensor& counts) {
  CountRest p;
  p.place = array_of(place);
  p.sizes = array_of(sizes);
  p.unit_offsets = array_of(unit_offsets);
  p.counts = array_of(counts);
  check_index(p.place, "place");
  check_index(p.sizes, "sizes");
  check_index(p.unit_offsets, "unit_offsets");
  check_index(p.counts, "counts");
  for (const Array* each : {&p.place, &p.unit_offsets, &p.counts})
    STD_TORCH_CHECK(each->size[0] == p.sizes.size[0], "louiskv: as many rows as there are sizes");
  STD_TORCH_CHECK(p.unit_offsets.size[1] == p.sizes.size[1], "louiskv: offsets do not fit the sizes");
  const Tensor out = empty({p.sizes.size[0], p.sizes.size[1]}, dtype_of(p.sizes));
  p.out = array_of(out);
  kernels().count_rest(p);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def(
      "list_candidates(Tensor take, Tensor offsets, Tensor slot_place, Tensor unit_offsets, Tensor counts, "
      "Tensor? first_entry, int stretch, int width) -> (Tensor, Tensor, Tensor)");
  library.def(
      "best_tokens(Tensor scores, Tensor place, Tensor resident, Tensor room, int num_wanted, float hold) -> Tensor");
  library.def("count_rest(Tensor place, Tensor sizes, Tensor unit_offsets, Tensor counts) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) {
  library.impl("list_candidates", TORCH_BOX(&list_candidates));
  library.impl("best_tokens", TORCH_BOX(&best_tokens));
  library.impl("count_rest", TORCH_BOX(&count_rest));
}

}  // namespace louiskv
