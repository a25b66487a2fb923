// What the heads of a group agree on: shares of attention, and one score for each unit.
#pragma once

#include "arrays.h"

namespace louiskv {
namespace LOUISKV_ISA {

// Logarithm of the mean over the heads, of logarithms that lie `stride` apart.
inline Vec log_mean(const float* logs, int64_t stride, int64_t num_heads) {
  Vec greatest = load(logs);
  for (int64_t head = 1; head < num_heads; ++head) greatest = greater(greatest, load(logs + head * stride));
  const Vec base = greatest == -kInfinity ? Vec{} : greatest;
  Vec sum{};
  for (int64_t head = 0; head < num_heads; ++head) sum += exp_of(load(logs + head * stride) - base);
  return greatest + log_of(greatest == -kInfinity ? fill(1.0f) : sum / static_cast<float>(num_heads));
}

// Log-sum-exp over the units, of which there are `weight` tokens each; those without any do not count.
inline float log_sum(const float* logits, const float* weight, int64_t padded) {
  Vec greatest = fill(-kInfinity);
  for (int64_t i = 0; i < padded; i += kWidth)
    greatest = greater(greatest, load(weight + i) > 0.0f ? load(logits + i) : fill(-kInfinity));
  const float most = most_of(greatest);
  if (most == -kInfinity) return most;
  Vec sum{};
  for (int64_t i = 0; i < padded; i += kWidth) {
    const Vec mine = load(weight + i);
    sum += mine > 0.0f ? mine * exp_of(load(logits + i) - most) : Vec{};
  }
  return most + std::log(sum_of(sum));
}

// The logits [G, U] of one row and the sizes of its units, padded with units without tokens.
struct Row {
  const int64_t num_units, padded;
  Scratch<float> logits, sizes;

  Row(const Array& from, const Array& size, int64_t row)
      : num_units(from.size[2]), padded(whole(most(num_units, 1))), logits(from.size[1] * padded), sizes(padded) {
    for (int64_t head = 0; head < from.size[1]; ++head) {
      float* mine = logits + head * padded;
      std::memset(mine + padded - kWidth, 0, sizeof(float) * kWidth);
      read_floats(from, row * from.stride[0] + head * from.stride[1], from.stride[2], num_units, mine);
    }
    std::memset(sizes + padded - kWidth, 0, sizeof(float) * kWidth);
    read_floats(size, row * size.stride[0], size.stride[1], num_units, sizes);
  }
};

constexpr float kLowest = -3.402823466e+38f;

// Units and heads cost an exponential each, which is as much as reading 16 bytes.
inline int parts_for_units(const Array& logits, int num_threads) {
  const int num_parts = parts_for(16 * logits.size[0] * logits.size[1] * logits.size[2], num_threads);
  return static_cast<int>(least(num_parts, logits.size[0]));
}

inline void unit_shares(const Array& logits, const Array& sizes, const Array& beside, const Array& out,
                        int num_threads) {
  const int64_t num_rows = logits.size[0], num_heads = logits.size[1];
  const int num_parts = parts_for_units(logits, num_threads);
  in_parts(num_parts, [&](int part) {
    for (int64_t at = part; at < num_rows; at += num_parts) {
      const Row row(logits, sizes, at);
      for (int64_t head = 0; head < num_heads; ++head) {
        float* mine = row.logits + head * row.padded;
        float total = log_sum(mine, row.sizes, row.padded);
        if (beside) {
          const float other = number_at(beside, at * beside.stride[0] + head * beside.stride[1]);
          const float most = total > other ? total : other, less = total > other ? other : total;
          total = less == -kInfinity ? most : most + std::log1p(std::exp(less - most));
        }
        if (total < kLowest) total = kLowest;
        for (int64_t i = 0; i < row.padded; i += kWidth)
          put(load(row.sizes + i) > 0.0f ? load(mine + i) - total : fill(-kInfinity), mine + i);
        std::memcpy(static_cast<float*>(out.data) + (at * num_heads + head) * row.num_units, mine,
                    sizeof(float) * row.num_units);
      }
    }
  });
}

inline void agree(const Agree& p, int num_threads) {
  const int64_t num_rows = p.logits.size[0], num_heads = p.logits.size[1];
  const int num_parts = parts_for_units(p.logits, num_threads);
  in_parts(num_parts, [&](int part) {
    for (int64_t at = part; at < num_rows; at += num_parts) {
      if (!asked(p.where, at)) continue;
      const Row row(p.logits, p.sizes, at);
      if (p.softmax) {
        for (int64_t head = 0; head < num_heads; ++head) {
          float* mine = row.logits + head * row.padded;
          // Each unit counts as one here, whatever its size.
          Scratch<float> ones(row.padded);
          for (int64_t i = 0; i < row.padded; i += kWidth)
            put(load(row.sizes + i) > 0.0f ? fill(1.0f) : Vec{}, ones + i);
          float total = log_sum(mine, ones, row.padded);
          if (total < kLowest) total = kLowest;
          for (int64_t i = 0; i < row.padded; i += kWidth) put(load(mine + i) - total, mine + i);
        }
      }
      float* scores = row.logits;
      for (int64_t i = 0; i < row.padded; i += kWidth) {
        Vec agreed;
        if (p.log_mean) {
          agreed = log_mean(row.logits + i, row.padded, num_heads);
        } else {
          agreed = load(row.logits + i);
          for (int64_t head = 1; head < num_heads; ++head) {
            const Vec other = load(row.logits + head * row.padded + i);
            agreed = p.max ? greater(agreed, other) : agreed + other;
          }
          if (!p.max) agreed /= static_cast<float>(num_heads);
        }
        put(load(row.sizes + i) > 0.0f ? agreed : fill(-kInfinity), scores + i);
      }
      std::memcpy(static_cast<float*>(p.out.data) + at * row.num_units, scores, sizeof(float) * row.num_units);
    }
  });
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
