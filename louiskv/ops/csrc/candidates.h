// The single tokens that come into question, and the best of them: exact, in whole numbers.
#pragma once

#include "selecting.h"

namespace louiskv {
namespace LOUISKV_ISA {

// One row of a list: writes places, entries and what is resident.
template <typename I>
struct ListedRow {
  I* place;
  I* entry;
  bool* resident;

  ListedRow(const ListCandidates& p, int64_t row) {
    const int64_t first = row * p.place.size[1];
    place = static_cast<I*>(p.place.data) + first;
    entry = static_cast<I*>(p.entry.data) + first;
    resident = static_cast<bool*>(p.resident.data) + first;
  }
  void put(int64_t at, int64_t its_place, int64_t its_entry, bool is_resident) const {
    place[at] = static_cast<I>(its_place);
    entry[at] = static_cast<I>(its_entry);
    resident[at] = is_resident;
  }
};

// How many of the first `count` ascending numbers of a row are not over one; `stride` apart.
template <typename I>
inline int64_t count_up_to(const I* ascending, int64_t stride, int64_t count, int64_t number) {
  int64_t low = 0;
  // Without a branch: where the half goes on is as good as random.
  while (count > 0) {
    const int64_t half = count / 2, middle = low + half;
    const bool is_right = ascending[middle * stride] <= number;
    low = is_right ? middle + 1 : low;
    count = is_right ? count - half - 1 : half;
  }
  return low;
}

// The entry that unit u of a row is, or -1.
inline int64_t entry_of(const ListCandidates& p, int64_t row, int64_t unit) {
  if (unit < 0 || !p.first_entry) return unit;
  const int64_t stretch = unit / p.stretch;
  const int64_t first = index_at(p.first_entry, row * p.first_entry.stride[0] + stretch * p.first_entry.stride[1]);
  return first < 0 ? -1 : first + unit - stretch * p.stretch;
}

// The tokens taken of a row, entry by entry, and of each entry how many are taken of those before it.
template <typename I>
inline void list_taken(const ListCandidates& p, int64_t row, const ListedRow<I>& listed, int64_t* before) {
  int64_t count = 0, ordinal = 0;
  for (int64_t entry = 0; entry < p.take.size[1]; ++entry) {
    const int64_t taken = index_at(p.take, row * p.take.stride[0] + entry * p.take.stride[1]);
    before[entry] = count;
    count += taken;
    if (taken <= 0 || ordinal >= p.width) continue;
    const int64_t first = index_at(p.offsets, row * p.offsets.stride[0] + entry * p.offsets.stride[1]);
    for (const int64_t end = least(count, p.width), begin = ordinal; ordinal < end; ++ordinal)
      listed.put(ordinal, first + ordinal - begin, entry, false);
  }
  for (; ordinal < p.width; ++ordinal) listed.put(ordinal, -1, 0, false);
}

template <typename I>
inline void list_row(const ListCandidates& p, int64_t row, int64_t* before) {
  const ListedRow<I> listed(p, row);
  list_taken(p, row, listed, before);
  const int64_t num_units = index_at(p.counts, row * p.counts.stride[0]);
  const int64_t stride = p.unit_offsets.stride[1], first_unit = row * p.unit_offsets.stride[0];
  with_index(p.unit_offsets, [&](auto* type) {
    const auto* offsets = static_cast<decltype(type)>(p.unit_offsets.data) + first_unit;
    for (int64_t slot = 0; slot < p.slot_place.size[1]; ++slot) {
      const int64_t place = index_at(p.slot_place, row * p.slot_place.stride[0] + slot * p.slot_place.stride[1]);
      const int64_t unit = place < 0 ? -1 : count_up_to(offsets, stride, num_units, place) - 1;
      const int64_t entry = entry_of(p, row, unit);
      bool is_other = entry >= 0;
      if (is_other) {
        const int64_t within = place - offsets[unit * stride];
        const int64_t taken = index_at(p.take, row * p.take.stride[0] + entry * p.take.stride[1]);
        if (within < taken && before[entry] + within < p.width) {
          listed.resident[before[entry] + within] = true;
          is_other = false;
        }
      }
      listed.put(p.width + slot, is_other ? place : -1, is_other ? entry : 0, is_other);
    }
  });
}

inline void list_candidates(const ListCandidates& p) {
  Scratch<int64_t> before(p.take.size[1]);
  for (int64_t row = 0; row < p.take.size[0]; ++row)
    with_index(p.slot_place, [&](auto* type) { list_row<std::remove_pointer_t<decltype(type)>>(p, row, before); });
}

// The scores of the tokens of a row that there are, as keys, and where they are listed; returns how many they are.
inline int64_t keys_of_row(const BestTokens& p, int64_t row, uint32_t* keys, int32_t* listed) {
  int64_t count = 0;
  for (int64_t i = 0; i < p.place.size[1]; ++i) {
    if (index_at(p.place, row * p.place.stride[0] + i * p.place.stride[1]) < 0) continue;
    const float score = number_at(p.scores, row * p.scores.stride[0] + i * p.scores.stride[1]);
    const bool held = static_cast<const uint8_t*>(
        p.resident.data)[row * p.resident.stride[0] + i * p.resident.stride[1]];
    keys[count] = ordered(held ? score + p.hold : score);
    listed[count++] = static_cast<int32_t>(i);
  }
  return count;
}

template <typename I>
inline void choose_row(const BestTokens& p, int64_t row) {
  const int64_t num_tokens = p.place.size[1], num_wanted = p.out.size[1];
  Scratch<uint32_t> keys(num_tokens);
  Scratch<int32_t> listed(num_tokens), candidates(num_tokens);
  const int64_t count = keys_of_row(p, row, keys, listed), room = index_at(p.room, row * p.room.stride[0]);
  // Nothing is above the greatest key, and all is above the least.
  Crossing at = {room <= 0 ? 0xffffffffu : 0u, 0};
  if (room > 0 && room < count) {
    Scratch<int64_t> ones(num_tokens);
    for (int64_t i = 0; i < count; ++i) ones[i] = 1;
    at = crossing_of(keys, ones, count, room, candidates);
  }
  I* out = static_cast<I*>(p.out.data) + row * num_wanted;
  int64_t written = 0;
  for (int64_t i = 0; i < count && written < num_wanted; ++i) {
    const bool taken = keys[i] > at.key || (keys[i] == at.key && at.left-- > 0);
    if (!taken) continue;
    out[written++] = static_cast<I>(index_at(p.place, row * p.place.stride[0] + listed[i] * p.place.stride[1]));
  }
  for (; written < num_wanted; ++written) out[written] = -1;
}

inline void count_rest(const CountRest& p) {
  const int64_t num_units = p.sizes.size[1];
  for (int64_t row = 0; row < p.sizes.size[0]; ++row) {
    with_index(p.sizes, [&](auto* left) {
      left = static_cast<decltype(left)>(p.out.data) + row * num_units;
      const auto* sizes = static_cast<decltype(left)>(p.sizes.data) + row * p.sizes.stride[0];
      for (int64_t i = 0; i < num_units; ++i) left[i] = sizes[i * p.sizes.stride[1]];
      const int64_t count = index_at(p.counts, row * p.counts.stride[0]);
      with_index(p.unit_offsets, [&](auto* offsets) {
        offsets = static_cast<decltype(offsets)>(p.unit_offsets.data) + row * p.unit_offsets.stride[0];
        for (int64_t slot = 0; slot < p.place.size[1]; ++slot) {
          const int64_t place = index_at(p.place, row * p.place.stride[0] + slot * p.place.stride[1]);
          const int64_t unit = place < 0 ? 0 : count_up_to(offsets, p.unit_offsets.stride[1], count, place);
          if (unit) --left[unit - 1];
        }
      });
    });
  }
}

inline void best_tokens(const BestTokens& p, int num_threads) {
  const int64_t num_rows = p.place.size[0];
  const int num_parts = static_cast<int>(least(parts_for(16 * num_rows * p.place.size[1], num_threads), num_rows));
  in_parts(num_parts, [&](int part) {
    for (int64_t row = part; row < num_rows; row += num_parts)
      with_index(p.place, [&](auto* type) { choose_row<std::remove_pointer_t<decltype(type)>>(p, row); });
  });
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
