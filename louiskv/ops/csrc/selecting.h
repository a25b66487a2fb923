// Which units, which places, which slots: exact, in whole numbers.
#pragma once

#include <limits>

#include "arrays.h"

namespace louiskv {
namespace LOUISKV_ISA {

// Scores as whole numbers in the same order; both zeros are one.
inline uint32_t ordered(float score) {
  const uint32_t bits = float_to_bits(score + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

inline void raise_newest(const Array& scores, const Array& counts, int64_t num, const Array& out) {
  constexpr float kRaised = std::numeric_limits<float>::infinity();
  const int64_t num_units = scores.size[1];
  for (int64_t row = 0; row < scores.size[0]; ++row) {
    float* raised = static_cast<float*>(out.data) + row * num_units;
    read_floats(scores, row * scores.stride[0], scores.stride[1], num_units, raised);
    const int64_t count = index_at(counts, row * counts.stride[0]);
    for (int64_t i = most(0, count - num); i < least(count, num_units); ++i) raised[i] = kRaised;
  }
}

// The key at which the budget runs out, and what is left of it for units of that key.
struct Crossing {
  uint32_t key;
  int64_t left;
};

// Finds, digit by digit from the highest, where the sizes of units in descending order reach the budget, which is less
// than all of them together. `candidates` is used up.
inline Crossing crossing_of(const uint32_t* keys, const int64_t* sizes, int64_t num_units, int64_t budget,
                            int32_t* candidates) {
  constexpr int kShifts[] = {21, 10, 0}, kBits[] = {11, 11, 10};
  uint32_t prefix = 0;
  int64_t count = num_units;
  for (int digit = 0; digit < 3; ++digit) {
    int64_t tokens[1 << 11] = {};
    const int shift = kShifts[digit], last = (1 << kBits[digit]) - 1;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t unit = digit ? candidates[i] : i;
      tokens[keys[unit] >> shift & last] += sizes[unit];
    }
    int bin = last;
    for (; bin > 0 && tokens[bin] <= budget; --bin) budget -= tokens[bin];
    prefix |= uint32_t(bin) << shift;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t unit = digit ? candidates[i] : i;
      if ((keys[unit] >> shift & last) == uint32_t(bin)) candidates[kept++] = static_cast<int32_t>(unit);
    }
    count = kept;
  }
  return {prefix, budget};
}

template <typename I>
inline void take_of_row(const SelectUnits& p, int64_t row) {
  const int64_t num_units = p.scores.size[1];
  const I* sizes = static_cast<const I*>(p.sizes.data) + row * p.sizes.stride[0];
  I* take = static_cast<I*>(p.out.data) + row * num_units;
  if (!asked(p.where, row)) {
    // Anything would do, but not all that memory may hold is a number of tokens.
    std::memset(take, 0, sizeof(I) * num_units);
    return;
  }
  const int64_t budget = p.budgets ? index_at(p.budgets, row * p.budgets.stride[0]) : p.budget;
  int64_t total = 0;
  for (int64_t i = 0; i < num_units; ++i) total += take[i] = sizes[i * p.sizes.stride[1]];
  if (total <= budget) return;
  if (budget <= 0) {
    std::memset(take, 0, sizeof(I) * num_units);
    return;
  }
  Scratch<uint32_t> keys(num_units);
  Scratch<int64_t> tokens(num_units);
  Scratch<int32_t> candidates(num_units);
  Scratch<float> scores(num_units);
  read_floats(p.scores, row * p.scores.stride[0], p.scores.stride[1], num_units, scores);
  for (int64_t i = 0; i < num_units; ++i) {
    keys[i] = ordered(scores[i]);
    tokens[i] = take[i];
  }
  Crossing at = crossing_of(keys, tokens, num_units, budget, candidates);
  for (int64_t i = 0; i < num_units; ++i) {
    if (keys[i] > at.key) continue;
    const int64_t taken = keys[i] == at.key ? least(at.left, take[i]) : 0;
    at.left -= taken;
    take[i] = static_cast<I>(taken);
  }
}

inline void select_units(const SelectUnits& p, int num_threads) {
  const int64_t num_rows = p.scores.size[0];
  const int num_parts = static_cast<int>(least(parts_for(16 * num_rows * p.scores.size[1], num_threads), num_rows));
  in_parts(num_parts, [&](int part) {
    for (int64_t row = part; row < num_rows; row += num_parts)
      with_index(p.sizes, [&](auto* type) { take_of_row<std::remove_pointer_t<decltype(type)>>(p, row); });
  });
}

inline void places_of(const Array& take, const Array& offsets, const Array& place, const Array& unit) {
  const int64_t num_units = take.size[1], width = place.size[1];
  for (int64_t row = 0; row < take.size[0]; ++row) {
    int64_t* places = static_cast<int64_t*>(place.data) + row * width;
    int64_t* units = static_cast<int64_t*>(unit.data) + row * width;
    int64_t count = 0;
    for (int64_t i = 0; i < num_units && count < width; ++i) {
      const int64_t taken = least(index_at(take, row * take.stride[0] + i * take.stride[1]), width - count);
      if (taken <= 0) continue;
      const int64_t first = index_at(offsets, row * offsets.stride[0] + i * offsets.stride[1]);
      for (int64_t j = 0; j < taken; ++j, ++count) {
        places[count] = first + j;
        units[count] = i;
      }
    }
    for (; count < width; ++count) {
      places[count] = -1;
      units[count] = num_units - 1;
    }
  }
}

inline void write_slots_of_row(const AssignSlots& p, int64_t row, uint64_t* missing, int64_t num_words,
                               const bool* kept, bool* filled, int64_t* counts) {
  int64_t word = 0;
  for (int64_t i = 0; i < p.slot_place.size[1]; ++i) {
    int64_t place = kept[i] ? entry_at(p.slot_place, row, i) : -1;
    filled[i] = false;
    if (!kept[i]) {
      while (word < num_words && !missing[word]) ++word;
      filled[i] = word < num_words;
      if (filled[i]) {
        place = word * 64 + __builtin_ctzll(missing[word]);
        missing[word] &= missing[word] - 1;
      }
    }
    counts[0] += place >= 0;
    counts[1] += filled[i];
    set_index(p.out, row, i, place);
    if (p.bias) set_bias(p.bias, row * p.bias.stride[0] + i * p.bias.stride[1], place >= 0);
  }
}

// A bit for each place: wanted ones are set, those that a slot holds are cleared, and the others stand in order.
inline void assign_slots(const AssignSlots& p) {
  const int64_t num_slots = p.slot_place.size[1], num_wanted = p.wanted.size[1];
  int64_t greatest = -1, counts[2] = {};
  for (int64_t row = 0; row < p.wanted.size[0]; ++row)
    for (int64_t i = 0; asked(p.where, row) && i < num_wanted; ++i)
      greatest = most(greatest, entry_at(p.wanted, row, i));
  const int64_t num_words = greatest / 64 + 1;
  Scratch<uint64_t> wanted(num_words), missing(num_words);
  Scratch<bool> kept(num_slots);
  for (int64_t row = 0; row < p.wanted.size[0]; ++row) {
    bool* filled = static_cast<bool*>(p.filled.data) + row * num_slots;
    if (!asked(p.where, row)) {
      for (int64_t i = 0; i < num_slots; ++i) set_index(p.out, row, i, entry_at(p.slot_place, row, i));
      std::memset(filled, 0, num_slots);
      continue;
    }
    std::memset(wanted, 0, sizeof(uint64_t) * num_words);
    for (int64_t i = 0; i < num_wanted; ++i) {
      const int64_t place = entry_at(p.wanted, row, i);
      if (place >= 0) wanted[place / 64] |= uint64_t(1) << place % 64;
    }
    std::memcpy(missing, wanted, sizeof(uint64_t) * num_words);
    for (int64_t i = 0; i < num_slots; ++i) {
      const int64_t place = entry_at(p.slot_place, row, i);
      kept[i] = place >= 0 && place <= greatest && (wanted[place / 64] >> place % 64 & 1);
      if (kept[i]) missing[place / 64] &= ~(uint64_t(1) << place % 64);
    }
    write_slots_of_row(p, row, missing, num_words, kept, filled, counts);
  }
  if (!p.counts) return;
  for (int which = 0; which < 2; ++which) static_cast<int64_t*>(p.counts.data)[which] += counts[which];
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
