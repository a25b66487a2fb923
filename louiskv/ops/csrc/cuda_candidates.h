// The single tokens of one row that come into question, the best of them, and what is left of its units.
//
// A team of threads does one row: a block on a GPU; threads, or one, on a host. Its size is a power of two up to kBins.
#pragma once

#include "cuda_selection.h"

namespace louiskv {

// The list of one row: `width` tokens of entries, then one for each slot.
struct Candidates {
  const int32_t* take;     // [entries]
  const int32_t* offsets;  // [entries]
  int64_t entries;
  const int32_t* slot_place;  // [slots]
  int64_t slots;
  const int32_t* unit_offsets;  // [units]
  int64_t units;
  const int32_t* first_entry;  // of each stretch of units; null where unit u is entry u
  int64_t stretch;
  int32_t* place;  // [width + slots]
  int32_t* entry;  // [width + slots]
  bool* resident;  // [width + slots]
  int64_t width;

  LOUISKV_INLINE void put(int64_t at, int32_t its_place, int64_t its_entry, bool is_resident) const {
    place[at] = its_place;
    entry[at] = static_cast<int32_t>(its_entry);
    resident[at] = is_resident;
  }
};

// How many of some ascending numbers are not over one.
LOUISKV_INLINE int64_t count_up_to(const int32_t* ascending, int64_t count, int64_t number) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (ascending[middle] <= number)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Writes how many tokens are taken of each entry and those before it; returns how many of all.
template <typename Team>
LOUISKV_INLINE uint32_t add_up(const Candidates& row, int32_t* through, const Team& team) {
  uint32_t before = 0, total;
  for (int64_t round = 0; round < row.entries; round += team.size()) {
    const int64_t entry = round + team.rank();
    const uint32_t mine = entry < row.entries ? row.take[entry] : 0;
    const uint32_t here = before + team.sum_before(mine, &total) + mine;
    if (entry < row.entries) through[entry] = static_cast<int32_t>(here);
    before += total;
    team.barrier();
  }
  return before;
}

// The entry that unit u is, or -1.
LOUISKV_INLINE int64_t entry_of(const Candidates& row, int64_t unit) {
  if (unit < 0 || !row.first_entry) return unit;
  const int64_t stretch = unit / row.stretch, first = row.first_entry[stretch];
  return first < 0 ? -1 : first + unit - stretch * row.stretch;
}

// What the reference `list_candidates` says, for one row, with `entries` numbers to work in.
template <typename Team>
LOUISKV_INLINE void list_row(const Candidates& row, int32_t* through, const Team& team) {
  const int64_t total = add_up(row, through, team);
  for (int64_t ordinal = team.rank(); ordinal < row.width; ordinal += team.size()) {
    if (ordinal >= total) {
      row.put(ordinal, -1, 0, false);
      continue;
    }
    const int64_t entry = count_up_to(through, row.entries, ordinal);
    const int64_t within = ordinal - (through[entry] - row.take[entry]);
    row.put(ordinal, static_cast<int32_t>(row.offsets[entry] + within), entry, false);
  }
  team.barrier();
  for (int64_t slot = team.rank(); slot < row.slots; slot += team.size()) {
    const int32_t place = row.slot_place[slot];
    const int64_t unit = place < 0 ? -1 : count_up_to(row.unit_offsets, row.units, place) - 1;
    const int64_t entry = entry_of(row, unit);
    bool is_other = entry >= 0;
    if (is_other) {
      const int64_t within = place - row.unit_offsets[unit], taken = row.take[entry];
      const int64_t ordinal = through[entry] - taken + within;
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
  int64_t places;
  const Size* sizes;       // [all_units]
  const int32_t* offsets;  // [units]
  int64_t units, all_units;
  uint32_t* taken;  // [all_units], to work in
  Size* left;       // [all_units]
};

// What the reference `count_rest` says, for one row.
template <typename Size, typename Team>
LOUISKV_INLINE void take_out(const Left<Size>& row, const Team& team) {
  for (int64_t unit = team.rank(); unit < row.all_units; unit += team.size()) row.taken[unit] = 0;
  team.barrier();
  for (int64_t i = team.rank(); i < row.places; i += team.size()) {
    const int32_t place = row.place[i];
    const int64_t unit = place < 0 ? 0 : count_up_to(row.offsets, row.units, place);
    if (unit) team.add(row.taken + unit - 1, 1u);
  }
  team.barrier();
  for (int64_t unit = team.rank(); unit < row.all_units; unit += team.size())
    row.left[unit] = row.sizes[unit] - static_cast<Size>(row.taken[unit]);
}

// Tokens with scores, each a unit of one; as `Row` is.
struct Scored {
  const float* scores;   // [units]
  const int32_t* place;  // [units]
  const bool* resident;  // [units]
  float hold;
  int64_t units;

  LOUISKV_INLINE Keyed<int32_t> load(int64_t first) const {
    const Four<float> four_scores = load_four(scores, first, units, is_aligned(scores));
    Keyed<int32_t> four;
    LOUISKV_UNROLL
    for (int i = 0; i < 4; ++i) {
      const bool is_there = first + i < units && place[first + i] >= 0;
      const bool is_held = is_there && resident[first + i];
      four.keys[i] = key_of(is_held ? four_scores.at[i] + hold : four_scores.at[i]);
      four.sizes[i] = is_there;
    }
    return four;
  }
};

// Four at a time are looked at by each thread, so that what it has before is all before what it has.
template <typename Team>
LOUISKV_INLINE void write_best(const Scored& row, Threshold<uint32_t> threshold, int32_t* wanted, int64_t num_wanted,
                               const Team& team) {
  uint32_t written = 0;
  // A row has fewer than 2^31 tokens.
  for (int round = 0; round < static_cast<int>(row.units); round += 4 * team.size()) {
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
  for (int64_t at = written + team.rank(); at < num_wanted; at += team.size()) wanted[at] = -1;
}

// What the reference `best_tokens` says, for one row.
template <typename Team>
LOUISKV_INLINE void choose_row(const Scored& row, int64_t room, int32_t* wanted, int64_t num_wanted,
                               Scratch<uint32_t>& scratch, const Team& team) {
  write_best(row, find_threshold(row, room, scratch, team), wanted, num_wanted, team);
}

}  // namespace louiskv
