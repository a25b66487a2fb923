// What k-means holds of each row: its keys, its centroids, and which tokens each cluster is the mean of.
#pragma once

#include <cstdlib>
#include <new>

#include "arrays.h"
#include "kmeans_scan.h"

namespace louiskv {
namespace LOUISKV_ISA {
namespace clustering {

constexpr int kBlock = kVectors * kWidth;
// Shortest vector that is made one of length 1.
constexpr float kShortest = 1e-12f;

// Memory for each row, or each thread.
template <typename T>
struct PerRow {
  const int64_t size;
  T* const data;

  PerRow(int64_t num_rows, int64_t size) : size(whole(size)), data(allocate(num_rows * whole(size))) {}
  PerRow(const PerRow&) = delete;
  ~PerRow() { std::free(data); }
  T* operator[](int64_t row) const { return data + row * size; }

 private:
  static T* allocate(int64_t count) {
    const int64_t line = 64, bytes = (count * int64_t(sizeof(T)) + line) / line * line;
    void* memory = std::aligned_alloc(line, bytes);
    if (!memory) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
};

struct Rows {
  const KMeans& problem;
  const int64_t num_rows = problem.keys.size[0], num_tokens = problem.keys.size[1], dim = problem.keys.size[2];
  const int64_t max_clusters = problem.first.size[1];
  const int64_t num_blocks = (num_tokens + kBlock - 1) / kBlock, slots = (max_clusters + kGroup - 1) / kGroup * kGroup;

  PerRow<float> means{num_rows, dim};
  PerRow<float> points{num_rows, num_blocks * dim * kBlock};  // [blocks, D, kBlock], centred
  // Of each token: its cluster, and how near that and the next nearest are.
  PerRow<int32_t> cluster{num_rows, num_blocks * kBlock};
  PerRow<float> nearness{num_rows, num_blocks * kBlock}, next{num_rows, num_blocks * kBlock};
  // All centroids, and those that changed in the last update; `slot` is a cluster's place among these, or -1.
  PerRow<float> all_numbers{num_rows, slots * dim}, all_offsets{num_rows, slots};
  PerRow<float> changed_numbers{num_rows, slots * dim}, changed_offsets{num_rows, slots};
  PerRow<int32_t> all_clusters{num_rows, slots}, changed_clusters{num_rows, slots}, slot{num_rows, slots};
  PerRow<int64_t> num_changed{num_rows, 1};
  // Cluster c is the mean of `size[c]` tokens from `begin[c]` in `order`, where those that clusters move to come last.
  PerRow<int32_t> order{num_rows, num_tokens + max_clusters}, begin{num_rows, slots}, size{num_rows, slots};

  explicit Rows(const KMeans& problem) : problem(problem) {}

  int64_t num_clusters(int64_t row) const {
    return most(0, least(max_clusters, index_at(problem.num_clusters, row * problem.num_clusters.stride[0])));
  }
  int64_t count(int64_t row) const {
    if (num_clusters(row) == 0) return 0;
    return most(0, least(num_tokens, index_at(problem.counts, row * problem.counts.stride[0])));
  }
  Centroids all(int64_t row) const {
    return {all_numbers[row], all_offsets[row], all_clusters[row], num_clusters(row)};
  }
  Centroids changed(int64_t row) const {
    return {changed_numbers[row], changed_offsets[row], changed_clusters[row], *num_changed[row]};
  }
  // Numbers of a token's point, [D] with a stride of kBlock.
  const float* point(int64_t row, int64_t token) const {
    return points[row] + token / kBlock * dim * kBlock + token % kBlock;
  }

  template <typename T>
  const T* key(int64_t row, int64_t token) const {
    return static_cast<const T*>(problem.keys.data) + row * problem.keys.stride[0] + token * problem.keys.stride[1];
  }
  template <typename T>
  Vec part(const T* key, int64_t channel) const {
    return channel + kWidth <= dim ? load(key + channel) : load_part(key + channel, dim - channel);
  }

  // The mean of the keys, which the cosine does without.
  template <typename T>
  void find_mean(int64_t row) {
    constexpr int64_t kPart = 128;
    const int64_t tokens = problem.cosine ? 0 : count(row);
    for (int64_t channel = 0; channel < dim; channel += kWidth) {
      // A sum of sums loses less than one sum.
      Vec sum{};
      for (int64_t first = 0; first < tokens; first += kPart) {
        Vec of_part{};
        for (int64_t token = first; token < least(tokens, first + kPart); ++token)
          of_part += part(key<T>(row, token), channel);
        sum += of_part;
      }
      put(sum / float(most(1, tokens)), means[row] + channel);
    }
  }

  template <typename T>
  void copy_block(int64_t row, int64_t block) {
    float* to = points[row] + block * dim * kBlock;
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      const int64_t token = block * kBlock + lane;
      const bool present = token < count(row);
      for (int64_t channel = 0; channel < dim; ++channel)
        to[channel * kBlock + lane] = present ? to_float(key<T>(row, token)[channel]) - means[row][channel] : 0.0f;
    }
  }

  // Every cluster is the one token that it starts at.
  void start(int64_t row) {
    const int64_t clusters = *num_changed[row] = num_clusters(row);
    for (int64_t c = 0; c < clusters; ++c) {
      const int64_t first = index_at(problem.first, row * problem.first.stride[0] + c * problem.first.stride[1]);
      order[row][c] = static_cast<int32_t>(most(0, least(num_tokens - 1, first)));
      begin[row][c] = slot[row][c] = changed_clusters[row][c] = all_clusters[row][c] = static_cast<int32_t>(c);
      size[row][c] = 1;
    }
    all(row).fill_up(dim);
    changed(row).fill_up(dim);
    std::memset(cluster[row], 0, sizeof(int32_t) * cluster.size);
  }

  // The centroid of a cluster that changed; `mean` is room for it.
  template <typename T>
  void place(int64_t row, int64_t c, float* mean) {
    const int32_t* tokens = order[row] + begin[row][c];
    Vec square{};
    for (int64_t channel = 0; channel < dim; channel += kWidth) {
      const Vec centre = load(means[row] + channel);
      Vec sum{};
      for (int32_t i = 0; i < size[row][c]; ++i) sum += part(key<T>(row, tokens[i]), channel) - centre;
      sum /= float(size[row][c]);
      put(sum, mean + channel);
      square += sum * sum;
    }
    const float norm = std::sqrt(sum_of(square));
    const float scale = problem.cosine ? 1.0f / (norm < kShortest ? kShortest : norm) : 1.0f;
    const auto put_in = [&](Centroids centroids, int64_t slot) {
      centroids.offsets[slot] = problem.cosine ? 0.0f : sum_of(square) * -0.5f;
      for (int64_t channel = 0; channel < dim; ++channel) centroids.put(slot, channel, dim, mean[channel] * scale);
    };
    put_in(all(row), c);
    put_in(changed(row), slot[row][c]);
  }

  void write(int64_t row) {
    int64_t* out = static_cast<int64_t*>(problem.out.data) + row * num_tokens;
    const int64_t tokens = count(row);
    for (int64_t token = 0; token < num_tokens; ++token) out[token] = token < tokens ? cluster[row][token] : -1;
  }
};

}  // namespace clustering
}  // namespace LOUISKV_ISA
}  // namespace louiskv
