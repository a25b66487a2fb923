// K-means whose result is that of comparing every token with every centroid in every pass, to the last bit.
//
// After the first pass a token is compared with those centroids only that changed since the last one: the others are at
// most as near as its next nearest was. Where that does not decide, it is compared with all.
#pragma once

#include "kmeans_rows.h"

namespace louiskv {
namespace LOUISKV_ISA {
namespace clustering {

constexpr float kLeastNormal = 1.17549435e-38f;
// Products in a pass that are worth a thread.
constexpr int64_t kProducts = 2 * 1024 * 1024;

struct Far {
  float distance;
  int32_t token;
};

// The farthest first; of tokens as far, the first.
inline int compare_far(const void* a, const void* b) {
  const Far &x = *static_cast<const Far*>(a), &y = *static_cast<const Far*>(b);
  if (x.distance != y.distance) return x.distance > y.distance ? -1 : 1;
  return x.token < y.token ? -1 : 1;
}

// Tokens of one row that wait for being compared with all centroids.
struct Waiting {
  float* points;  // [D, kWidth]
  int64_t row = 0;
  int32_t tokens[kWidth] = {};
  int count = 0;
};

struct Passes : Rows {
  // The clusters before the last pass.
  PerRow<int32_t> before{num_rows, num_blocks * kBlock};
  // What is sorted where a cluster is empty.
  PerRow<Far> far{num_rows, num_tokens};

  using Rows::Rows;

  void take(int64_t row, int64_t token, int32_t nearest, float how_near, float next_near) {
    cluster[row][token] = nearest;
    nearness[row][token] = how_near;
    next[row][token] = next_near;
  }

  void compare_waiting(Waiting& waiting) {
    if (waiting.count == 0) return;
    Nearest<1> found;
    find_nearest(waiting.points, dim, all(waiting.row), found);
    for (int i = 0; i < waiting.count; ++i)
      take(waiting.row, waiting.tokens[i], found.cluster[0][i], found.nearness[0][i], found.next[0][i]);
    waiting.count = 0;
  }

  void wait(Waiting& waiting, int64_t row, int64_t token) {
    if (waiting.count == kWidth || waiting.row != row) compare_waiting(waiting);
    waiting.row = row;
    for (int64_t channel = 0; channel < dim; ++channel)
      waiting.points[channel * kWidth + waiting.count] = point(row, token)[channel * kBlock];
    waiting.tokens[waiting.count++] = static_cast<int32_t>(token);
  }

  // The nearest of a block's tokens, from the changed centroids and what the last pass found.
  void assign(int64_t row, int64_t block, bool first_pass, Waiting& waiting) {
    const int64_t tokens = least(kBlock, count(row) - block * kBlock);
    if (tokens <= 0 || *num_changed[row] == 0) return;
    Nearest<kVectors> found;
    find_nearest(points[row] + block * dim * kBlock, dim, changed(row), found);
    float near[kBlock], next_near[kBlock];
    int32_t nearest[kBlock];
    std::memcpy(near, found.nearness, sizeof(near));
    std::memcpy(next_near, found.next, sizeof(next_near));
    std::memcpy(nearest, found.cluster, sizeof(nearest));
    for (int64_t lane = 0; lane < tokens; ++lane) {
      const int64_t token = block * kBlock + lane;
      const int32_t own = cluster[row][token];
      const float near_before = nearness[row][token], next_before = next[row][token];
      if (first_pass) {
        take(row, token, nearest[lane], near[lane], next_near[lane]);
      } else if (slot[row][own] >= 0) {
        // What did not change is at most as near as the next was.
        if (near[lane] > next_before)
          take(row, token, nearest[lane], near[lane], next_near[lane] > next_before ? next_near[lane] : next_before);
        else
          wait(waiting, row, token);
      } else if (near[lane] > near_before || (near[lane] == near_before && nearest[lane] < own)) {
        take(row, token, nearest[lane], near[lane], next_near[lane] > near_before ? next_near[lane] : near_before);
      } else if (near[lane] > next_before) {
        next[row][token] = near[lane];
      }
    }
  }

  // Which clusters changed, and the tokens of each in order.
  void tally(int64_t row, bool first_pass) {
    const int64_t tokens = count(row), clusters = num_clusters(row);
    int32_t *in = cluster[row], *was = before[row], *from = begin[row], *sizes = size[row], *place_of = slot[row];
    for (int64_t c = 0; c < clusters; ++c) {
      place_of[c] = first_pass ? 0 : -1;
      sizes[c] = 0;
    }
    for (int64_t token = 0; token < tokens; ++token) {
      ++sizes[in[token]];
      if (!first_pass && in[token] != was[token]) place_of[in[token]] = place_of[was[token]] = 0;
      was[token] = in[token];
    }
    int32_t end = 0, changes = 0;
    int64_t num_empty = 0;
    for (int64_t c = 0; c < clusters; ++c) {
      from[c] = end;
      end += sizes[c];
      num_empty += sizes[c] == 0;
      if (sizes[c] != 0 && place_of[c] < 0) continue;
      place_of[c] = changes;
      changed_clusters[row][changes++] = static_cast<int32_t>(c);
    }
    for (int64_t token = 0; token < tokens; ++token) order[row][from[in[token]]++] = static_cast<int32_t>(token);
    for (int64_t c = 0; c < clusters; ++c) from[c] -= sizes[c];
    *num_changed[row] = changes;
    changed(row).fill_up(dim);
    if (num_empty) move_empty(row);
  }

  // Each empty cluster moves to one of the tokens that are farthest from their centroids.
  void move_empty(int64_t row) {
    const int64_t tokens = count(row);
    Far* farthest = far[row];
    for (int64_t token = 0; token < tokens; ++token) {
      float square = 0.0f;
      for (int64_t channel = 0; channel < dim; ++channel) {
        const float number = point(row, token)[channel * kBlock];
        square += number * number;
      }
      const float norm = std::sqrt(square), near = nearness[row][token];
      const float angle = -near / (norm < kLeastNormal ? kLeastNormal : norm);
      farthest[token] = {problem.cosine ? angle : square - 2.0f * near, static_cast<int32_t>(token)};
    }
    std::qsort(farthest, tokens, sizeof(Far), compare_far);
    int64_t moved = 0;
    for (int64_t c = 0; c < num_clusters(row); ++c) {
      if (size[row][c]) continue;
      begin[row][c] = static_cast<int32_t>(tokens + moved);
      order[row][tokens + moved] = farthest[least(moved, tokens - 1)].token;
      size[row][c] = 1;
      ++moved;
    }
  }

  bool done() const {
    int64_t changes = 0;
    for (int64_t row = 0; row < num_rows; ++row) changes += *num_changed[row];
    return changes == 0;
  }

  // What each of several threads calls once. Which of them does what changes nothing.
  template <typename T>
  void work(float* mean, Waiting& waiting) {
#pragma omp for schedule(dynamic)
    for (int64_t row = 0; row < num_rows; ++row) {
      find_mean<T>(row);
      start(row);
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < num_rows * num_blocks; ++i) copy_block<T>(i / num_blocks, i % num_blocks);
    for (int64_t pass = 0; pass < problem.iterations && !done(); ++pass) {
#pragma omp for schedule(dynamic, 16)
      for (int64_t i = 0; i < num_rows * max_clusters; ++i) {
        const int64_t row = i / max_clusters, place_among = i % max_clusters;
        if (place_among < *num_changed[row]) place<T>(row, changed_clusters[row][place_among], mean);
      }
#pragma omp for schedule(dynamic) nowait
      for (int64_t i = 0; i < num_rows * num_blocks; ++i) assign(i / num_blocks, i % num_blocks, pass == 0, waiting);
      compare_waiting(waiting);
#pragma omp barrier
      if (pass + 1 == problem.iterations) break;
#pragma omp for schedule(dynamic)
      for (int64_t row = 0; row < num_rows; ++row)
        if (*num_changed[row]) tally(row, pass == 0);
    }
#pragma omp for
    for (int64_t row = 0; row < num_rows; ++row) write(row);
  }
};

inline void kmeans(const KMeans& problem, int num_threads) {
  Passes passes(problem);
  const int64_t products = passes.num_rows * passes.num_tokens * passes.max_clusters * passes.dim;
  const int threads = static_cast<int>(most(1, least(num_threads, products / kProducts)));
  const int64_t channels = whole(passes.dim);
  PerRow<float> own(threads, channels + channels * kWidth);
  const auto work = [&](int thread) {
    Waiting waiting{own[thread] + channels};
    problem.keys.type == Type::f32 ? passes.work<float>(own[thread], waiting) : passes.work<bf16>(own[thread], waiting);
  };
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  work(omp_get_thread_num());
#else
  work(0);
#endif
}

}  // namespace clustering
}  // namespace LOUISKV_ISA
}  // namespace louiskv
