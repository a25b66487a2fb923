// What the slots of one row hold from one selection to the next.
//
// A team of threads does one row: a block on a GPU; threads, or one, on a host. Its size is a power of two.
#pragma once

#include "cuda_or_host.h"

namespace louiskv {

constexpr int32_t kNowhere = 0x7fffffff;

struct Slots {
  const int32_t* before;  // [slots] places held, -1 for none
  const int32_t* wanted;  // [num_wanted] places, -1 for none
  int32_t* place;         // [slots]
  bool* missing;          // [slots]
  int64_t slots, num_wanted;
};

// Room for the places wanted, in order: a power of two of them, at least 32, and a bit for each.
inline int64_t places_for(int64_t num_wanted) {
  int64_t room = 32;
  while (room < num_wanted) room *= 2;
  return room;
}
inline int64_t words_for(int64_t room) { return room + room / 32; }

template <typename Team>
LOUISKV_INLINE void sort(int32_t* places, int64_t room, const Team& team) {
  for (int64_t run = 2; run <= room; run *= 2) {
    for (int64_t stride = run / 2; stride > 0; stride /= 2) {
      for (int64_t pair = team.rank(); pair < room / 2; pair += team.size()) {
        const int64_t first = 2 * pair - (pair & (stride - 1)), second = first + stride;
        const int32_t a = places[first], b = places[second];
        if ((a > b) == !(first & run)) {
          places[first] = b;
          places[second] = a;
        }
      }
      team.barrier();
    }
  }
}

// Write the places wanted in ascending order, those of none at the end.
template <typename Team>
LOUISKV_INLINE void order_wanted(const Slots& row, int32_t* places, int64_t room, const Team& team) {
  bool falls = false;
  for (int64_t i = team.rank(); i < room; i += team.size()) {
    const int32_t place = i < row.num_wanted ? row.wanted[i] : -1;
    const int32_t next = i + 1 < row.num_wanted ? row.wanted[i + 1] : -1;
    places[i] = place < 0 ? kNowhere : place;
    // Mostly they come in order.
    falls |= static_cast<uint32_t>(place) > static_cast<uint32_t>(next);
  }
  if (team.any(falls)) sort(places, room, team);
}

// Where a place stands among the places in order, or where it would.
LOUISKV_INLINE int64_t find_place(const int32_t* places, int64_t room, int32_t place) {
  int64_t at = 0;
  for (int64_t step = room / 2; step > 0; step /= 2) {
    if (places[at + step - 1] < place) at += step;
  }
  return at;
}

// What the reference `assign_slots` says, for one row, with `words_for(room)` words to work in.
template <typename Team>
LOUISKV_INLINE void assign_row(const Slots& row, int32_t* places, int64_t room, const Team& team) {
  uint32_t* held = reinterpret_cast<uint32_t*>(places + room);
  for (int64_t i = team.rank(); i < room / 32; i += team.size()) held[i] = 0;
  order_wanted(row, places, room, team);
  for (int64_t slot = team.rank(); slot < row.slots; slot += team.size()) {
    const int32_t place = row.before[slot];
    const int64_t at = find_place(places, room, place);
    const bool is_kept = place >= 0 && places[at] == place;
    if (is_kept) team.mark(held + at / 32, 1u << at % 32);
    row.place[slot] = is_kept ? place : -1;
  }
  team.barrier();
  // Those that no slot holds move to the front, over those that have been read.
  uint32_t num_missing = 0, total;
  for (int64_t round = 0; round < room; round += team.size()) {
    const int64_t i = round + team.rank();
    const int32_t place = i < room ? places[i] : kNowhere;
    const bool is_missing = place != kNowhere && !(held[i / 32] >> i % 32 & 1);
    const uint32_t before = team.sum_before(is_missing, &total);
    if (is_missing) places[num_missing + before] = place;
    num_missing += total;
    team.barrier();
  }
  uint32_t num_free = 0;
  for (int64_t round = 0; round < row.slots; round += team.size()) {
    const int64_t slot = round + team.rank();
    const bool is_free = slot < row.slots && row.place[slot] < 0;
    const uint32_t ordinal = num_free + team.sum_before(is_free, &total);
    const bool is_filled = is_free && ordinal < num_missing;
    if (is_filled) row.place[slot] = places[ordinal];
    if (slot < row.slots) row.missing[slot] = is_filled;
    num_free += total;
    team.barrier();
  }
}

}  // namespace louiskv
