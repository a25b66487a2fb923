// Shim of what a step leaves behind.
#include "shim.h"

namespace louiskv {
namespace {

using Optional = std::optional<Tensor>;

void record_step(const Tensor& step, const Optional& first, const Optional& second, const Optional& third,
                 const Optional& of_first, const Optional& of_second, const Optional& of_third) {
  const Optional *series[] = {&first, &second, &third}, *values[] = {&of_first, &of_second, &of_third};
  RecordStep p;
  p.step = array_of(step);
  STD_TORCH_CHECK(p.step.type == Type::i64 && step.numel() == 1, "louiskv: step must be int64 [1]");
  const int64_t number = *static_cast<const int64_t*>(p.step.data);
  for (int which = 0; which < kMostSeries; ++which) {
    if (!*series[which] || !*values[which]) continue;
    const Tensor &held = **series[which], &value = **values[which];
    p.series[which] = array_of(held);
    p.values[which] = array_of(value);
    STD_TORCH_CHECK(held.is_contiguous() && value.is_contiguous() && p.series[which].type == p.values[which].type,
                    "louiskv: a series and its value are contiguous, of one dtype");
    STD_TORCH_CHECK(number >= 0 && number < held.size(0) && held.numel() == held.size(0) * value.numel(),
                    "louiskv: a series has no room for the value");
  }
  kernels().record_step(p);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def(
      "record_step(Tensor(a!) step, Tensor(b!)? first, Tensor(c!)? second, Tensor(d!)? third, Tensor? of_first, "
      "Tensor? of_second, Tensor? of_third) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) { library.impl("record_step", TORCH_BOX(&record_step)); }

}  // namespace louiskv
