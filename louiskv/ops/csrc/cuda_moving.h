// Which tokens are copied where, and how the threads of a warp share the copying, in words of up to 16 bytes.
#pragma once

#include "cuda_or_host.h"

namespace louiskv {

// Words that a lane has on their way at once: the host's memory is far.
constexpr int kAtOnce = 4;

// Most bytes, of 1, 2, 4, 8 and 16, that divide all of some addresses, strides and sizes, given as the union of their
// bits.
inline int word_bytes(uint64_t bits) {
  int bytes = 16;
  while (bits % bytes) bytes /= 2;
  return bytes;
}

struct Copy {
  const char* from;
  char* to;
};

// From the pool into the slots that miss a token. Strides in bytes.
struct Fetch {
  const char* source;
  int64_t source_row, source_token;
  const void* place;  // [N, slots] of 4 or 8 bytes
  bool wide;
  const bool* missing;  // [N, slots]
  char* target;
  int64_t target_row, target_slot;
  int64_t slots;

  LOUISKV_INLINE bool find(int64_t row, int64_t slot, Copy* copy) const {
    const int64_t here = row * slots + slot;
    if (slot >= slots || !missing[here]) return false;
    const int64_t token = wide ? static_cast<const int64_t*>(place)[here] : static_cast<const int32_t*>(place)[here];
    *copy = {source + row * source_row + token * source_token, target + row * target_row + slot * target_slot};
    return true;
  }
};

// Entries of a row behind those that the target holds. Strides in bytes.
struct Store {
  char* target;  // [N, capacity] entries
  int64_t capacity;
  const int64_t* lengths;
  const char* entries;
  int64_t entries_row, entries_entry;
  const int64_t* counts;
  int64_t num_new, entry_bytes;

  LOUISKV_INLINE bool find(int64_t row, int64_t entry, Copy* copy) const {
    if (entry >= num_new || entry >= counts[row]) return false;
    *copy = {entries + row * entries_row + entry * entries_entry,
             target + (row * capacity + lengths[row] + entry) * entry_bytes};
    return true;
  }
};

// Copy one lane's part of a list of `count` rows of `words` each.
template <typename Word>
LOUISKV_INLINE void copy_listed(const Copy* list, uint32_t count, uint32_t words, uint32_t lane) {
  const uint32_t total = count * words;
  for (uint32_t first = lane; first < total; first += kAtOnce * kLanes) {
    Word held[kAtOnce];
    Word* to[kAtOnce];
    LOUISKV_UNROLL
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      const uint32_t item = first + i * kLanes, row = item / words, word = item % words;
      to[i] = item < total ? reinterpret_cast<Word*>(list[row].to) + word : nullptr;
      if (to[i]) held[i] = load_once(reinterpret_cast<const Word*>(list[row].from) + word);
    }
    LOUISKV_UNROLL
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      if (to[i]) *to[i] = held[i];
    }
  }
}

}  // namespace louiskv
