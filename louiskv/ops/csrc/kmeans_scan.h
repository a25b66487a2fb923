// The nearest centroids of many tokens at once: one token in each lane, so that nothing is summed across lanes.
#pragma once

#include "vectors.h"

namespace louiskv {
namespace LOUISKV_ISA {
namespace clustering {

// Centroids and vectors of tokens whose products are in registers at once.
constexpr int kGroup = 6;
#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif

// Some centroids of a row, in the order of their clusters: groups of [D, kGroup] floats. What fills up the last group
// is never the nearest.
struct Centroids {
  float* numbers;
  // What is added to the product with a token: minus half the square of a centroid, or 0.
  float* offsets;
  int32_t* clusters;
  int64_t count;

  int64_t num_groups() const { return (count + kGroup - 1) / kGroup; }

  void put(int64_t slot, int64_t channel, int64_t dim, float number) {
    numbers[(slot / kGroup * dim + channel) * kGroup + slot % kGroup] = number;
  }

  void fill_up(int64_t dim) {
    for (int64_t slot = count; slot < num_groups() * kGroup; ++slot) {
      offsets[slot] = -kInfinity;
      clusters[slot] = 0;
      for (int64_t channel = 0; channel < dim; ++channel) put(slot, channel, dim, 0.0f);
    }
  }
};

// How near the nearest centroid is, how near the next, and which cluster the nearest is of.
template <int vectors>
struct Nearest {
  Vec nearness[vectors];
  Vec next[vectors];
  IntVec cluster[vectors];
};

// Of centroids that are as near, the first is taken. A token's numbers do not depend on what stands beside it nor on
// the place of a centroid, to the last bit.
template <int vectors>
inline void find_nearest(const float* points, int64_t dim, const Centroids& centroids, Nearest<vectors>& found) {
  for (int v = 0; v < vectors; ++v) {
    found.nearness[v] = found.next[v] = fill(-kInfinity);
    found.cluster[v] = IntVec{};
  }
  const float* numbers = centroids.numbers;
  for (int64_t group = 0; group < centroids.num_groups(); ++group) {
    const float* offsets = centroids.offsets + group * kGroup;
    const int32_t* clusters = centroids.clusters + group * kGroup;
    Vec sum[kGroup][vectors];
#pragma GCC unroll 6
    for (int j = 0; j < kGroup; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[j][v] = fill(offsets[j]);
    const float* point = points;
    for (int64_t channel = 0; channel < dim; ++channel, numbers += kGroup, point += vectors * kWidth) {
      Vec of_point[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) of_point[v] = load(point + v * kWidth);
#pragma GCC unroll 6
      for (int j = 0; j < kGroup; ++j) {
        const Vec of_centroid = fill(numbers[j]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[j][v] += of_point[v] * of_centroid;
      }
    }
#pragma GCC unroll 6
    for (int j = 0; j < kGroup; ++j) {
      const IntVec cluster = clusters[j] - IntVec{};
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const Vec before = found.nearness[v];
        const IntVec nearer = sum[j][v] > before;
        const Vec lost = nearer ? before : sum[j][v];
        found.nearness[v] = nearer ? sum[j][v] : before;
        found.cluster[v] = nearer ? cluster : found.cluster[v];
        found.next[v] = lost > found.next[v] ? lost : found.next[v];
      }
    }
  }
}

}  // namespace clustering
}  // namespace LOUISKV_ISA
}  // namespace louiskv
