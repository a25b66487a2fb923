// The single tokens of one row that come into question, the best of them, and what is left of its units.
//
// A team of threads does one row: a block on a GPU; threads, or one, on a host. Its size is a power of two up to kBins.
// A row has fewer than 2^31 tokens, and is counted in 32 bits: all threads of a block share what one SM can reckon.
#pragma once

#include "cuda_selection.h"

namespace louiskv {

// The list of one row: `width` tokens of entries, then one for each slot.
struct Candidates {
  const int32_t* take;     // [entries]
  const int32_t* offsets;  // [entries]
  int entries;
  const int32_t* slot_place;  // [slots]
  int slots;
  const int32_t* unit_offsets;  // [units]
  int units;
  const int32_t* first_entry;  // of each stretch of units; null where unit u is entry u
  int stretch;
  int32_t* place;  // [width + slots]
  int32_t* entry;  // [width + slots]
  bool* resident;  // [width + slots]
  int width;

  LOUISKV_INLINE void put(int at, int32_t its_place, int32_t its_entry, bool is_resident) const {
    place[at] = its_place;
    entry[at] = its_entry;
    resident[at] = is_resident;
  }
};

// The greatest power of two that is no more than a number; of 0, 0.
LOUISKV_INLINE int first_step(int count) { return count ? 1 << (bits_of(count) - 1) : 0; }

// How many of some ascending numbers are not over one, by steps from the first of `count` on.
LOUISKV_INLINE int count_up_to(const int32_t* ascending, int count, int step, int number) {
  int at = 0;
  for (; step; step /= 2) {
    if (at + step <= count && ascending[at + step - 1] <= number) at += step;
  }
  return at;
}

// Writes how many tokens are taken of each entry and those before it; returns how many of all.
template <typename Team>
LOUISKV_INLINE uint32_t add_up(const Candidates& row, int32_t* through, const Team& team) {
  uint32_t before = 0, total;
  for (int round = 0; round < row.entries; round += team.size()) {
    const int entry = round + team.rank();
    const uint32_t mine = entry < row.entries ? row.take[entry] : 0;
    const uint32_t here = before + team.sum_before(mine, &total) + mine;
    if (entry < row.entries) through[entry] = static_cast<int32_t>(here);
    before += total;
    team.barrier();
  }
  return before;
}

// The entry that unit u is, or -1.
LOUISKV_INLINE int entry_of(const Candidates& row, int unit) {
  if (unit < 0 || !row.first_entry) return unit;
  const int stretch = unit / row.stretch, first = row.first_entry[stretch];
  return first < 0 ? -1 : first + unit - stretch * row.stretch;
}

// What the reference `list_candidates` says, for one row, with `entries` numbers to work in.
template <typename Team>
LOUISKV_INLINE void list_row(const Candidates& row, int32_t* through, const Team& team) {
  const int total = add_up(row, through, team), step = first_step(row.entries);
  for (int ordinal = team.rank(); ordinal < row.width; ordinal += team.size()) {
    if (ordinal >= total) {
      row.put(ordinal, -1, 0, false);
      continue;
    }
    const int entry = count_up_to(through, row.entries, step, ordinal);
    const int within = ordinal - (entry ? through[entry - 1] : 0);
    row.put(ordinal, row.offsets[entry] + within, entry, false);
  }
  team.barrier();
  const int unit_step = first_step(row.units);
  for (int slot = team.rank(); slot < row.slots; slot += team.size()) {
    const int place = row.slot_place[slot];
    const int unit = place < 0 ? -1 : count_up_to(row.unit_offsets, row.units, unit_step, place) - 1;
    const int entry = entry_of(row, unit);
    bool is_other = entry >= 0;
    if (is_other) {
      const int before = entry ? through[entry - 1] : 0, taken = through[entry] - before;
      const int within = place - row.unit_offsets[unit], ordinal = before + within;
      if (within < taken && ordinal < row.width) {
        row.resident[ordinal] = true;
        is_other = false;
      }
    }
    row.put(row.width + slot, is_other ? place : -1, is_other ? entry : 0, is_other);
  }
}

// The units of one row, and tokens at some places that are taken out of them.
template <typename Size>
struct Left {
  const int32_t* place;  // [places]
  int places;
  const Size* sizes;       // [all_units]
  const int32_t* offsets;  // [units]
  int units, all_units;
  uint32_t* taken;  // [all_units], to work in
  Size* left;       // [all_units]
};

// What the reference `count_rest` says, for one row.
template <typename Size, typename Team>
LOUISKV_INLINE void take_out(const Left<Size>& row, const Team& team) {
  for (int unit = team.rank(); unit < row.all_units; unit += team.size()) row.taken[unit] = 0;
  team.barrier();
  const int step = first_step(row.units);
  for (int i = team.rank(); i < row.places; i += team.size()) {
    const int place = row.place[i];
    const int unit = place < 0 ? 0 : count_up_to(row.offsets, row.units, step, place);
    if (unit) team.add(row.taken + unit - 1, 1u);
  }
  team.barrier();
  for (int unit = team.rank(); unit < row.all_units; unit += team.size())
    row.left[unit] = row.sizes[unit] - static_cast<Size>(row.taken[unit]);
}

// Tokens with scores, each a unit of one; as `Row` is.
struct Scored {
  const float* scores;   // [units]
  const int32_t* place;  // [units]
  const bool* resident;  // [units]
  float hold;
  int units;

  LOUISKV_INLINE Keyed<int32_t> load(int first) const {
    const Four<float> four_scores = load_four(scores, first, units);
    const Four<int32_t> four_places = load_four(place, first, units);
    const Four<bool> four_residents = load_four(resident, first, units);
    Keyed<int32_t> four;
    LOUISKV_UNROLL
    for (int i = 0; i < 4; ++i) {
      four.keys[i] = key_of(four_residents.at[i] ? four_scores.at[i] + hold : four_scores.at[i]);
      four.sizes[i] = first + i < units && four_places.at[i] >= 0;
    }
    return four;
  }
};

// Four at a time are looked at by each thread, so that what it has before is all before what it has.
template <typename Team>
LOUISKV_INLINE void write_best(const Scored& row, Threshold<uint32_t> threshold, int32_t* wanted, uint32_t num_wanted,
                               const Team& team) {
  uint32_t written = 0;
  for (int round = 0; round < row.units; round += 4 * team.size()) {
    const int first = round + 4 * team.rank();
    const Keyed<int32_t> four = row.load(first);
    uint32_t above = 0, tied = 0, num_above = 0, num_tied = 0, total;
    LOUISKV_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (!four.sizes[i]) continue;
      above |= uint32_t{four.keys[i] > threshold.key} << i;
      tied |= uint32_t{four.keys[i] == threshold.key} << i;
      num_above += four.keys[i] > threshold.key;
      num_tied += four.keys[i] == threshold.key;
    }
    if (team.any(tied != 0)) {
      const uint32_t before = team.sum_before(num_tied, &total);
      uint32_t left = threshold.left > before ? threshold.left - before : 0;
      LOUISKV_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (!(tied >> i & 1) || !left) continue;
        above |= 1u << i;
        ++num_above;
        --left;
      }
      threshold.left = threshold.left > total ? threshold.left - total : 0;
      team.barrier();
    }
    uint32_t at = written + team.sum_before(num_above, &total);
    LOUISKV_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (!(above >> i & 1)) continue;
      if (at < num_wanted) wanted[at] = row.place[first + i];
      ++at;
    }
    written += total;
    team.barrier();
  }
  for (uint32_t at = written + team.rank(); at < num_wanted; at += team.size()) wanted[at] = -1;
}

// What the reference `best_tokens` says, for one row.
template <typename Team>
LOUISKV_INLINE void choose_row(const Scored& row, int64_t room, int32_t* wanted, uint32_t num_wanted,
                               Scratch<uint32_t>& scratch, const Team& team) {
  write_best(row, find_threshold(row, room, scratch, team), wanted, num_wanted, team);
}

}  // namespace louiskv
