// What the slots of one row hold from one selection to the next.
//
// A team of threads does one row: a block on a GPU; threads, or one, on a host. Its size is a power of two.
#pragma once

#include "cuda_or_host.h"

namespace louiskv {

constexpr int32_t kNowhere = 0x7fffffff;
// Words of the least map.
constexpr int kSmallMap = 1024;

// Places wanted are of 4 or 8 bytes. The new places may be written where the old ones are.
struct Slots {
  const int32_t* before;  // [slots] places held, -1 for none
  const void* wanted;     // [num_wanted] places, -1 for none
  bool wide;
  int32_t* place;  // [slots]
  bool* missing;   // [slots]
  int64_t slots, num_wanted;

  LOUISKV_INLINE int32_t want(int64_t i) const {
    if (i >= num_wanted) return -1;
    return wide ? static_cast<int32_t>(static_cast<const int64_t*>(wanted)[i]) : static_cast<const int32_t*>(wanted)[i];
  }
};

// One of many rows.
LOUISKV_INLINE Slots row_of(const Slots& all, int64_t row) {
  Slots one = all;
  one.before += row * all.slots;
  one.wanted = static_cast<const char*>(all.wanted) + row * all.num_wanted * (all.wide ? 8 : 4);
  one.place += row * all.slots;
  one.missing += row * all.slots;
  return one;
}

// What is added to the logits of slots: 0, or -inf where they are empty.
struct Bias {
  void* data;  // [rows, slots], null for none
  int64_t row_bytes;
  int bytes;        // 2 or 4, of a number
  uint32_t closed;  // the bits of -inf
};

// Opens the slots of a row that hold a token, each in the thread that wrote its place.
template <typename Team>
LOUISKV_INLINE void open_row(const Slots& all, int64_t row, const Bias& bias, const Team& team) {
  if (!bias.data) return;
  const int32_t* place = all.place + row * all.slots;
  char* at = static_cast<char*>(bias.data) + row * bias.row_bytes;
  LOUISKV_ROLL
  for (int slot = team.rank(); slot < static_cast<int>(all.slots); slot += team.size()) {
    const uint32_t bits = place[slot] < 0 ? bias.closed : 0;
    if (bias.bytes == 4)
      reinterpret_cast<uint32_t*>(at)[slot] = bits;
    else
      reinterpret_cast<uint16_t*>(at)[slot] = static_cast<uint16_t>(bits);
  }
}

// How many tokens the slots of a row hold, and how many of them are missing.
struct Held {
  uint32_t chosen, missing;
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

// A bit for each place up to some number.
struct Map {
  uint32_t* bits;  // [words]
  int words;

  LOUISKV_INLINE bool reaches(int32_t place) const { return place < 32 * words; }
  LOUISKV_INLINE bool has(int32_t place) const { return bits[place / 32] >> place % 32 & 1; }
};

// Where a place stands among the places in order, or where it would.
LOUISKV_INLINE int64_t find_place(const int32_t* places, int64_t room, int32_t place) {
  int64_t at = 0;
  for (int64_t step = room / 2; step > 0; step /= 2) {
    if (places[at + step - 1] < place) at += step;
  }
  return at;
}

// What a row holds whose slots do not change.
template <typename Team>
LOUISKV_INLINE void keep_row(const Slots& row, const Team& team) {
  LOUISKV_ROLL
  for (int64_t slot = team.rank(); slot < row.slots; slot += team.size()) {
    row.place[slot] = row.before[slot];
    row.missing[slot] = false;
  }
}

// Leaves in the slots what is wanted among the places wanted, which are in order. Those that no slot holds move to the
// front, and how many they are is returned.
template <typename Team>
LOUISKV_INLINE uint32_t keep_in_order(const Slots& row, int32_t* places, int64_t room, const Team& team) {
  uint32_t* held = reinterpret_cast<uint32_t*>(places + room);
  for (int64_t i = team.rank(); i < room / 32; i += team.size()) held[i] = 0;
  team.barrier();
  for (int64_t slot = team.rank(); slot < row.slots; slot += team.size()) {
    const int32_t place = row.before[slot];
    const int64_t at = find_place(places, room, place);
    const bool is_kept = place >= 0 && places[at] == place;
    if (is_kept) team.mark(held + at / 32, 1u << at % 32);
    row.place[slot] = is_kept ? place : -1;
  }
  team.barrier();
  uint32_t num_missing = 0, total;
  LOUISKV_ROLL
  for (int64_t round = 0; round < room; round += team.size()) {
    const int64_t i = round + team.rank();
    const int32_t place = i < room ? places[i] : kNowhere;
    const bool is_missing = place != kNowhere && !(held[i / 32] >> i % 32 & 1);
    const uint32_t before = team.sum_before(is_missing, &total);
    // Over those that have been read.
    if (is_missing) places[num_missing + before] = place;
    num_missing += total;
    team.barrier();
  }
  return num_missing;
}

// The same for places in any order, all of which the map reaches.
template <typename Team>
LOUISKV_INLINE uint32_t keep_by_map(const Slots& row, int32_t* places, const Map& map, const Team& team) {
  LOUISKV_ROLL
  for (int word = team.rank(); word < map.words; word += team.size()) map.bits[word] = 0;
  team.barrier();
  LOUISKV_ROLL
  for (int i = team.rank(); i < static_cast<int>(row.num_wanted); i += team.size()) {
    const int32_t place = row.want(i);
    if (place >= 0) team.mark(map.bits + place / 32, 1u << place % 32);
  }
  team.barrier();
  LOUISKV_ROLL
  for (int slot = team.rank(); slot < static_cast<int>(row.slots); slot += team.size()) {
    const int32_t place = row.before[slot];
    const bool is_kept = place >= 0 && map.reaches(place) && map.has(place);
    if (is_kept) team.unmark(map.bits + place / 32, 1u << place % 32);
    row.place[slot] = is_kept ? place : -1;
  }
  team.barrier();
  uint32_t num_missing = 0, total;
  LOUISKV_ROLL
  for (int round = 0; round < map.words; round += team.size()) {
    const int word = round + team.rank();
    uint32_t bits = word < map.words ? map.bits[word] : 0;
    uint32_t at = num_missing + team.sum_before(count_bits(bits), &total);
    LOUISKV_ROLL
    for (; bits; bits &= bits - 1) places[at++] = 32 * word + lowest_bit(bits);
    num_missing += total;
    team.barrier();
  }
  return num_missing;
}

// What the reference `assign_slots` says, for one row, with `words_for(room)` words to work in. A map, which may be of
// no words, saves sorting.
template <typename Team>
LOUISKV_INLINE Held assign_row(const Slots& row, int32_t* places, int64_t room, const Map& map, const Team& team) {
  bool falls = false;
  int32_t furthest = -1;
  LOUISKV_ROLL
  for (int64_t i = team.rank(); i < room; i += team.size()) {
    const int32_t place = row.want(i), next = row.want(i + 1);
    places[i] = place < 0 ? kNowhere : place;
    // Of whole units they come in order.
    falls |= static_cast<uint32_t>(place) > static_cast<uint32_t>(next);
    furthest = place > furthest ? place : furthest;
  }
  uint32_t num_missing, total;
  if (!team.any(falls)) {
    num_missing = keep_in_order(row, places, room, team);
  } else if (!team.any(!map.reaches(furthest))) {
    // No more of the map than the places need, or twice as much.
    Map part = {map.bits, kSmallMap};
    while (part.words < map.words && team.any(!part.reaches(furthest))) part.words *= 2;
    if (part.words > map.words) part.words = map.words;
    num_missing = keep_by_map(row, places, part, team);
  } else {
    sort(places, room, team);
    num_missing = keep_in_order(row, places, room, team);
  }
  uint32_t num_free = 0;
  const int slots = static_cast<int>(row.slots);
  LOUISKV_ROLL
  for (int round = 0; round < slots; round += team.size()) {
    const int slot = round + team.rank();
    const bool is_free = slot < slots && row.place[slot] < 0;
    const uint32_t ordinal = num_free + team.sum_before(is_free, &total);
    const bool is_filled = is_free && ordinal < num_missing;
    if (is_filled) row.place[slot] = places[ordinal];
    if (slot < slots) row.missing[slot] = is_filled;
    num_free += total;
    team.barrier();
  }
  const uint32_t num_filled = num_free < num_missing ? num_free : num_missing;
  return {slots - num_free + num_filled, num_filled};
}

}  // namespace louiskv
