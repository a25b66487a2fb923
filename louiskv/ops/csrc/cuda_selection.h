// The budgeted choice among the units of one row, by a radix select that weighs units by their sizes.
//
// Scores become keys of 32 bits in the same order. Histograms of the tokens by digits of the key, the highest first,
// give the key of the unit that crosses the budget. Units of greater keys are taken whole, those of this very key in
// their order until the budget is taken. Digits are of the difference to the least key: scores are much alike, and in
// one bin of a histogram threads wait for each other.
//
// A team of threads does one row: a block on a GPU; threads, or one, on a host. Its size is a power of two up to kBins.
#pragma once

#include "cuda_or_host.h"

namespace louiskv {

constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
constexpr uint32_t kGreatestKey = 0xffffffff;

// What tokens are counted in. Sizes of 32 bits are those of places of 32 bits: a row has fewer than 2^31 tokens.
template <typename Size>
struct WeightOf;
template <>
struct WeightOf<int32_t> {
  using Type = uint32_t;
};
template <>
struct WeightOf<int64_t> {
  using Type = unsigned long long;
};

// Units above `key` are taken, and `left` tokens of those at it.
template <typename Weight>
struct Threshold {
  uint32_t key;
  Weight left;
};

template <typename Weight>
struct Scratch {
  Weight bins[kBins];
  Threshold<Weight> found;
  uint32_t least, greatest;  // key
};

// Four units side by side are one load, where the row lies so.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

// Greater for a greater score; both zeros are one, and NaN is the greatest, as in torch's sort.
LOUISKV_INLINE uint32_t key_of(float score) {
  if (score != score) return kGreatestKey;
  union {
    float number;
    uint32_t bits;
  } as = {score + 0.0f};
  return as.bits ^ (as.bits >> 31 ? 0xffffffff : 0x80000000);
}

template <typename T>
LOUISKV_INLINE bool is_aligned(const T* row) {
  return reinterpret_cast<uintptr_t>(row) % sizeof(Four<T>) == 0;
}

// Those past the end are zero.
template <typename T>
LOUISKV_INLINE Four<T> load_four(const T* row, int first, int units) {
  if (is_aligned(row) && first + 4 <= units) return *reinterpret_cast<const Four<T>*>(row + first);
  Four<T> four = {};
  LOUISKV_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (first + i < units) four.at[i] = row[first + i];
  }
  return four;
}

template <typename T>
LOUISKV_INLINE void store_four(const Four<T>& four, T* row, int first, int units) {
  if (is_aligned(row) && first + 4 <= units) {
    *reinterpret_cast<Four<T>*>(row + first) = four;
    return;
  }
  LOUISKV_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (first + i < units) row[first + i] = four.at[i];
  }
}

// Keys and sizes of four units.
template <typename Size>
struct Keyed {
  uint32_t keys[4];
  Size sizes[4];
};

template <typename Size>
struct Row {
  const float* scores;
  const Size* sizes;
  Size* take;
  int units;

  LOUISKV_INLINE Keyed<Size> load(int first) const {
    const Four<float> four_scores = load_four(scores, first, units);
    const Four<Size> four_sizes = load_four(sizes, first, units);
    Keyed<Size> four;
    LOUISKV_UNROLL
    for (int i = 0; i < 4; ++i) {
      four.keys[i] = key_of(four_scores.at[i]);
      four.sizes[i] = four_sizes.at[i];
    }
    return four;
  }
};

// Bits of a key from `low` on, and those from `high` on that are known.
struct Digit {
  uint32_t least, known;
  int high, low;

  LOUISKV_INLINE bool holds(uint32_t key) const { return ((key - least) & above()) == known; }
  LOUISKV_INLINE uint32_t bin_of(uint32_t key) const { return ((key - least) & ~above()) >> low; }

 private:
  LOUISKV_INLINE uint32_t above() const { return high < 32 ? kGreatestKey << high : 0; }
};

// Finds the least and the greatest key of the units that have tokens; returns how many tokens they have.
template <typename Units, typename Weight, typename Team>
LOUISKV_INLINE Weight look_over(const Units& row, Scratch<Weight>& scratch, const Team& team) {
  if (team.rank() == 0) {
    scratch.least = kGreatestKey;
    scratch.greatest = 0;
  }
  team.barrier();
  uint32_t least = kGreatestKey, greatest = 0;
  Weight mine = 0, total;
  for (int first = 4 * team.rank(); first < row.units; first += 4 * team.size()) {
    const auto four = row.load(first);
    LOUISKV_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (four.sizes[i] <= 0) continue;
      least = four.keys[i] < least ? four.keys[i] : least;
      greatest = four.keys[i] > greatest ? four.keys[i] : greatest;
      mine += static_cast<Weight>(four.sizes[i]);
    }
  }
  team.lower(&scratch.least, least);
  team.raise(&scratch.greatest, greatest);
  team.sum_before(mine, &total);
  return total;
}

// Adds the tokens of the units that have a digit to its bins.
template <typename Units, typename Weight, typename Team>
LOUISKV_INLINE void count_tokens(const Units& row, Digit digit, Weight* bins, const Team& team) {
  for (int first = 4 * team.rank(); first < row.units; first += 4 * team.size()) {
    const auto four = row.load(first);
    LOUISKV_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (four.sizes[i] > 0 && digit.holds(four.keys[i]))
        team.add(bins + digit.bin_of(four.keys[i]), static_cast<Weight>(four.sizes[i]));
    }
  }
}

// Finds where `budget` tokens, more than none, are reached.
template <typename Units, typename Weight, typename Team>
LOUISKV_INLINE Threshold<Weight> reach(const Units& row, Weight budget, Scratch<Weight>& scratch, const Team& team) {
  const int share = kBins / team.size(), highest = kBins - 1 - team.rank() * share;
  // All is taken: no key is 0.
  if (look_over(row, scratch, team) <= budget) return {0, 0};
  const uint32_t least = scratch.least;
  // Of the difference to the least key.
  Threshold<Weight> threshold = {0, budget};
  for (int high = bits_of(scratch.greatest - least); high > 0 && threshold.left;) {
    const int low = high > kDigitBits ? high - kDigitBits : 0;
    for (int bin = team.rank(); bin < kBins; bin += team.size()) scratch.bins[bin] = 0;
    team.barrier();
    count_tokens(row, {least, threshold.key, high, low}, scratch.bins, team);
    team.barrier();
    Weight mine = 0, total;
    for (int i = 0; i < share; ++i) mine += scratch.bins[highest - i];
    Weight above = team.sum_before(mine, &total);
    if (above < threshold.left && threshold.left <= above + mine) {
      int bin = highest;
      while (above + scratch.bins[bin] < threshold.left) above += scratch.bins[bin--];
      const uint32_t key = threshold.key | static_cast<uint32_t>(bin) << low;
      // Where a bin is taken whole, what is above the key before it is what is taken.
      const bool is_whole = above + scratch.bins[bin] == threshold.left;
      scratch.found = {is_whole ? key - 1 : key, is_whole ? Weight{0} : threshold.left - above};
    }
    team.barrier();
    threshold = scratch.found;
    high = low;
  }
  return {least + threshold.key, threshold.left};
}

// The same for any budget.
template <typename Units, typename Weight, typename Team>
LOUISKV_INLINE Threshold<Weight> find_threshold(const Units& row, int64_t budget, Scratch<Weight>& scratch,
                                                const Team& team) {
  constexpr uint64_t kMost = static_cast<Weight>(-1);
  // Nothing is above the greatest key, and no tokens of it are taken.
  if (budget <= 0) return {kGreatestKey, 0};
  const uint64_t wanted = budget;
  return reach(row, static_cast<Weight>(wanted < kMost ? wanted : kMost), scratch, team);
}

template <typename Size, typename Weight, typename Team>
LOUISKV_INLINE void take_units(const Row<Size>& row, Threshold<Weight> threshold, const Team& team) {
  // All threads go through all rounds: they have barriers.
  for (int round = 0; round < row.units; round += 4 * team.size()) {
    const int first = round + 4 * team.rank();
    const Keyed<Size> four = row.load(first);
    Four<Size> take = {};
    Weight at_threshold = 0;
    uint32_t ties = 0;
    LOUISKV_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (four.keys[i] > threshold.key) take.at[i] = four.sizes[i];
      if (four.keys[i] == threshold.key && four.sizes[i] > 0) {
        ties |= 1u << i;
        at_threshold += four.sizes[i];
      }
    }
    if (team.any(ties != 0)) {
      Weight total, before = team.sum_before(at_threshold, &total);
      LOUISKV_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (!(ties >> i & 1)) continue;
        const Weight left = threshold.left > before ? threshold.left - before : 0;
        const Weight size = static_cast<Weight>(four.sizes[i]);
        take.at[i] = static_cast<Size>(size < left ? size : left);
        before += size;
      }
      threshold.left = threshold.left > total ? threshold.left - total : 0;
    }
    store_four(take, row.take, first, row.units);
  }
}

// What the reference `select_units` says, for one row.
template <typename Size, typename Weight, typename Team>
LOUISKV_INLINE void select_row(const Row<Size>& row, int64_t budget, Scratch<Weight>& scratch, const Team& team) {
  take_units(row, find_threshold(row, budget, scratch, team), team);
}

}  // namespace louiskv
