// Rings of the newest tokens, and the runs into which they are cut.
#pragma once

#include "moving.h"

namespace louiskv {
namespace LOUISKV_ISA {

inline void cut_runs(const CutRuns& p) {
  const int64_t window = p.starts.size[1];
  for (int64_t row = 0; row < p.starts.size[0]; ++row) {
    const int64_t position = index_at(p.lengths, row * p.lengths.stride[0]) - 1;
    int64_t& opened = static_cast<int64_t*>(p.opened.data)[row * p.opened.stride[0]];
    const int64_t begun = position - opened;
    if (begun < 0 || begun % p.longest < p.shortest || !asked(p.boundary, row)) continue;
    static_cast<int32_t*>(p.starts.data)[row * p.starts.stride[0] + position % window] = static_cast<int32_t>(position);
    opened = position;
  }
}

inline void oldest_runs(const OldestRuns& p) {
  const int64_t window = p.starts.size[1];
  for (int64_t row = 0; row < p.starts.size[0]; ++row) {
    const int32_t* starts = static_cast<const int32_t*>(p.starts.data) + row * p.starts.stride[0];
    const int64_t first = index_at(p.first, row * p.first.stride[0]);
    const int64_t held = index_at(p.end, row * p.end.stride[0]) - first;
    const int64_t size = most(1, least(held, p.longest));
    int64_t step = window ? p.shortest : size;
    while (step < size && starts[(first + step) % window] != first + step) ++step;
    static_cast<int64_t*>(p.out.data)[row] = held > p.most ? least(step, size) : 0;
  }
}

inline void room_beside(const RoomBeside& p) {
  for (int64_t row = 0; row < p.first.size[0]; ++row) {
    const int64_t held = index_at(p.end, row * p.end.stride[0]) - index_at(p.first, row * p.first.stride[0]);
    const int64_t room = p.budget - least(most(held, 0) + p.coming, p.window), rest = room % p.taken_by;
    const int64_t whole = room - (rest < 0 ? rest + p.taken_by : rest);
    static_cast<int64_t*>(p.out.data)[row] = least(whole, p.most);
  }
}

// Where the token at a position lies, behind the sinks.
inline int64_t slot_of(int64_t position, int64_t num_sinks, int64_t window) {
  const int64_t place = (position - num_sinks) % window;
  return num_sinks + (place < 0 ? place + window : place);
}

inline void take_runs(const TakeRuns& p) {
  const int64_t width = p.taken.size[1], num_bytes = p.taken.size[2] * bytes_of(p.rows.type);
  for (int64_t row = 0; row < p.rows.size[0]; ++row) {
    const int64_t first = index_at(p.first, row * p.first.stride[0]);
    for (int64_t i = 0; i < width; ++i) {
      const int64_t position = first + (p.order ? entry_at(p.order, row, i) : i);
      const int64_t slot = slot_of(position, p.num_sinks, p.window);
      std::memcpy(at(p.taken, row * p.taken.stride[0] + i * p.taken.stride[1]),
                  at(p.rows, row * p.rows.stride[0] + slot * p.rows.stride[1]), num_bytes);
      static_cast<int32_t*>(p.positions.data)[row * width + i] = static_cast<int32_t>(position);
    }
  }
}

inline void release_runs(const ReleaseRuns& p) {
  for (int64_t row = 0; row < p.bias.size[0]; ++row) {
    int64_t& first = static_cast<int64_t*>(p.first.data)[row * p.first.stride[0]];
    const int64_t count = index_at(p.counts, row * p.counts.stride[0]);
    for (int64_t i = 0; i < count; ++i)
      set_bias(p.bias, row * p.bias.stride[0] + slot_of(first + i, p.num_sinks, p.window) * p.bias.stride[1], false);
    first += count;
  }
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
