// What a step leaves behind: the bytes of some values, each behind those of the steps before.
#pragma once

#include "moving.h"

namespace louiskv {
namespace LOUISKV_ISA {

inline void record_step(const RecordStep& p) {
  int64_t& step = *static_cast<int64_t*>(p.step.data);
  for (int which = 0; which < kMostSeries; ++which) {
    const Array &held = p.series[which], &value = p.values[which];
    if (!value) continue;
    int64_t count = 1;
    for (int i = 0; i < 4; ++i) count *= value.size[i];
    std::memcpy(at(held, step * count), value.data, count * bytes_of(value.type));
  }
  ++step;
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
