// Products of rows with the queries of a group: each row is loaded once for several heads.
#pragma once

#include "arrays.h"

namespace louiskv {
namespace LOUISKV_ISA {

// Query heads that share a load; four rows are taken at a time, and their sums must fit the registers.
constexpr int kHeads = kWidth == 16 ? 4 : 2;

template <int H>
struct Tile {
  static constexpr int size = H;
};

// Calls `work(Tile, first head)` for all heads, `kHeads` at a time.
template <typename Work>
inline void by_heads(int num_heads, const Work& work) {
  for (int head = 0; head < num_heads; head += kHeads) {
    switch (least(num_heads - head, kHeads)) {
      case 1: work(Tile<1>(), head); break;
      case 2: work(Tile<2>(), head); break;
      case 3: work(Tile<kWidth == 16 ? 3 : 1>(), head); break;
      default: work(Tile<kHeads>(), head);
    }
  }
}

// Products of four keys with H queries; query h and its logits lie h * query_stride and h * logits_stride further.
template <typename T, int H>
inline void dots(const T* const* key, const float* query, int64_t query_stride, int64_t dim, float* logits,
                 int64_t logits_stride) {
  Vec sum[H][4] = {};
  const T *a = key[0], *b = key[1], *c = key[2], *d = key[3];
  const auto add = [&](Vec of_a, Vec of_b, Vec of_c, Vec of_d, int64_t i) {
    for (int h = 0; h < H; ++h) {
      const Vec mine = load(query + h * query_stride + i);
      sum[h][0] += of_a * mine;
      sum[h][1] += of_b * mine;
      sum[h][2] += of_c * mine;
      sum[h][3] += of_d * mine;
    }
  };
  int64_t i = 0;
  for (; i + kWidth <= dim; i += kWidth) add(load(a + i), load(b + i), load(c + i), load(d + i), i);
  if (const int64_t left = dim - i)
    add(load_part(a + i, left), load_part(b + i, left), load_part(c + i, left), load_part(d + i, left), i);
  for (int h = 0; h < H; ++h) {
    const Four sums = sums_of(sum[h][0], sum[h][1], sum[h][2], sum[h][3]);
    std::memcpy(logits + h * logits_stride, &sums, sizeof(sums));
  }
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
