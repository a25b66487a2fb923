// How much the query heads of a group attend to some keys altogether.
#pragma once

#include "products.h"

namespace louiskv {
namespace LOUISKV_ISA {

// Keys that are open, and what is added to their logits, up to a whole vector; returns how many there are.
template <typename T>
inline int64_t open_keys(const LogSums& p, int64_t row, const T** open, float* bias) {
  const T* keys = static_cast<const T*>(p.keys.data) + row * p.keys.stride[0];
  int64_t count = 0;
  for (int64_t slot = 0; slot < p.keys.size[1]; ++slot) {
    const float added = number_at(p.bias, row * p.bias.stride[0] + slot * p.bias.stride[2]);
    if (added == -kInfinity) continue;
    open[count] = keys + slot * p.keys.stride[1];
    bias[count++] = added;
  }
  for (int64_t i = count; i % 4; ++i) open[i] = open[count - 1];
  for (int64_t i = count; i % kWidth; ++i) bias[i] = -kInfinity;
  return count;
}

// Log-sum-exp of logits with their bias, and of one more.
inline float log_sum(const float* logits, const float* bias, int64_t count, float one_more) {
  Vec greatest = fill(one_more);
  for (int64_t i = 0; i < count; i += kWidth) greatest = greater(greatest, load(logits + i) + load(bias + i));
  const float most = most_of(greatest);
  if (most == -kInfinity) return most;
  Vec sum{};
  for (int64_t i = 0; i < count; i += kWidth) sum += exp_of(load(logits + i) + load(bias + i) - most);
  return most + std::log(sum_of(sum) + exp_of(one_more - most));
}

template <typename T>
inline void log_sums_of_row(const LogSums& p, int64_t row, const float* query, int64_t padded) {
  const int64_t num_heads = p.query.size[1], room = whole(p.keys.size[1]) + kWidth;
  Scratch<const T*> open(room);
  Scratch<float> bias(room), logits(num_heads * room);
  const int64_t count = open_keys<T>(p, row, open, bias);
  // What stands behind the last logit is added to as well.
  if (count) {
    for (int64_t head = 0; head < num_heads; ++head) put(Vec{}, logits + head * room + whole(count) - kWidth);
  }
  for (int64_t i = 0; i < count; i += 4) {
    by_heads(static_cast<int>(num_heads), [&](auto tile, int head) {
      dots<T, tile.size>(open + i, query + head * padded, padded, p.query.size[2], logits + head * room + i, room);
    });
  }
  for (int64_t head = 0; head < num_heads; ++head) {
    const Array& sinks = p.attention_sinks;
    const float sink = sinks ? number_at(sinks, row * sinks.stride[0] + head * sinks.stride[1]) : -kInfinity;
    static_cast<float*>(p.out.data)[row * num_heads + head] = log_sum(logits + head * room, bias, count, sink);
  }
}

inline void log_sums(const LogSums& p, int num_threads) {
  const int64_t num_rows = p.query.size[0], num_heads = p.query.size[1], padded = whole(p.query.size[2]);
  Scratch<float> query(num_rows * num_heads * padded);
  read_queries(p.query, p.scaling, padded, query);
  const int64_t num_bytes = num_rows * p.keys.size[1] * p.query.size[2] * (p.keys.type == Type::f32 ? 4 : 2);
  const int num_parts = static_cast<int>(least(parts_for(num_bytes, num_threads), num_rows));
  in_parts(num_parts, [&](int part) {
    for (int64_t row = part; row < num_rows; row += num_parts) {
      const float* mine = query + row * num_heads * padded;
      p.keys.type == Type::f32 ? log_sums_of_row<float>(p, row, mine, padded)
                               : log_sums_of_row<bf16>(p, row, mine, padded);
    }
  });
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
