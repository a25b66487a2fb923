// Logits of units by their summaries, and of single tokens by their signs.
#pragma once

#include "agreeing.h"
#include "products.h"

namespace louiskv {
namespace LOUISKV_ISA {

constexpr int64_t kUnitsAhead = 24;  // units by which memory is asked for ahead
constexpr int64_t kUnits = 64;  // units that all heads have done before the next

// Calls `work(row, first, last)` for spans of the columns of rows that are asked for, shared among threads.
template <typename Work>
inline void by_spans(int64_t num_rows, int64_t num_columns, const Array& where, int num_parts, const Work& work) {
  const int64_t total = num_rows * num_columns;
  in_parts(num_parts, [&](int part) {
    const int64_t end = total * (part + 1) / num_parts;
    for (int64_t at = total * part / num_parts; at < end;) {
      const int64_t row = at / num_columns, last = least(num_columns, end - row * num_columns);
      if (asked(where, row)) work(row, at - row * num_columns, last);
      at = row * num_columns + last;
    }
  });
}

template <typename T, int H>
inline void unit_products(const T* units, int64_t stride, const float* query, int64_t query_dim, int64_t dim, int head,
                          int64_t first, int64_t last, float* out, int64_t out_stride) {
  for (int64_t unit = first; unit < last; unit += 4) {
    const T* four[4];
    for (int64_t i = 0; i < 4; ++i) {
      four[i] = units + least(unit + i, last - 1) * stride;
      // Four rows at a time are no order in which memory comes by itself.
      if (head == 0) prefetch(units + (unit + i + kUnitsAhead) * stride, dim);
    }
    if (unit + 4 <= last) {
      dots<T, H>(four, query, query_dim, dim, out + unit, out_stride);
      continue;
    }
    float part[H * 4];
    dots<T, H>(four, query, query_dim, dim, part, 4);
    for (int h = 0; h < H; ++h)
      for (int64_t i = 0; unit + i < last; ++i) out[h * out_stride + unit + i] = part[h * 4 + i];
  }
}

// Of summaries [N, U, dim] with queries that are ready; steps, if there are, multiply the logits.
template <typename T>
inline void product_logits(const UnitLogits& p, const float* query, int64_t query_dim, int64_t dim, int num_threads) {
  const int64_t num_rows = p.query.size[0], num_heads = p.query.size[1], num_units = p.units.size[1];
  float* out = static_cast<float*>(p.out.data);
  const int num_parts = parts_for(num_rows * num_units * dim * sizeof(T), num_threads);
  by_spans(num_rows, num_units, p.where, num_parts, [&](int64_t row, int64_t begin, int64_t end) {
    const T* units = static_cast<const T*>(p.units.data) + row * p.units.stride[0];
    for (int64_t first = begin; first < end; first += kUnits) {
      const int64_t last = least(first + kUnits, end);
      float* mine = out + row * num_heads * num_units;
      by_heads(static_cast<int>(num_heads), [&](auto tile, int head) {
        unit_products<T, tile.size>(units, p.units.stride[1], query + (row * num_heads + head) * query_dim, query_dim,
                                    dim, head, first, last, mine + head * num_units, num_units);
      });
      if (!p.scales) continue;
      float steps[kUnits];
      read_floats(p.scales, row * p.scales.stride[0] + first * p.scales.stride[1], p.scales.stride[1], last - first,
                  steps);
      for (int64_t head = 0; head < num_heads; ++head)
        for (int64_t i = first; i < last; ++i) mine[head * num_units + i] *= steps[i - first];
    }
  });
}

inline void by_product(const UnitLogits& p, const float* query, int64_t query_dim, int64_t dim, int num_threads) {
  switch (p.units.type) {
    case Type::f32: return product_logits<float>(p, query, query_dim, dim, num_threads);
    case Type::bf16: return product_logits<bf16>(p, query, query_dim, dim, num_threads);
    default: return product_logits<int8_t>(p, query, query_dim, dim, num_threads);
  }
}

inline void dot_logits(const UnitLogits& p, int num_threads) {
  const int64_t dim = p.query.size[2], padded = whole(dim);
  Scratch<float> query(p.query.size[0] * p.query.size[1] * padded);
  read_queries(p.query, p.scaling, padded, query);
  by_product(p, query, padded, dim, num_threads);
}

// Positive numbers of a query meet the greatest key, negative ones the least.
inline void bound_logits(const UnitLogits& p, int num_threads) {
  const int64_t dim = p.query.size[2], padded = whole(2 * dim), num_queries = p.query.size[0] * p.query.size[1];
  Scratch<float> query(num_queries * padded);
  read_queries(p.query, p.scaling, padded, query);
  for (int64_t i = 0; i < num_queries * padded; i += padded) {
    for (int64_t j = 0; j < dim; ++j) {
      const float number = query[i + j];
      query[i + j] = number > 0.0f ? number : 0.0f;
      query[i + dim + j] = number > 0.0f ? 0.0f : number;
    }
  }
  by_product(p, query, padded, 2 * dim, num_threads);
}

// Numbers of a vector whose bit is set, the first in the lowest bit; 0 for the others.
inline Vec where_set(uint32_t bits, Vec vec) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), vec);
#else
  BitVec mine;
  for (int i = 0; i < kWidth; ++i) mine[i] = 1u << i;
  return ((bits - BitVec{}) & mine) != 0 ? vec : Vec{};
#endif
}

inline uint32_t some_bits(const uint8_t* bits, int64_t at, int64_t num_bytes) {
  const uint32_t byte = bits[at / 8];
  if (kWidth == 4) return byte >> at % 8 & 15;
  return kWidth == 16 && at / 8 + 1 < num_bytes ? byte | uint32_t(bits[at / 8 + 1]) << 8 : byte;
}

// For four rows of bits and H lists of numbers, the sums of the numbers whose bit is set; list h and its sums lie
// h * stride and h * out_stride further, and numbers behind the last channel are 0.
template <int H>
inline void sums_where_set(const uint8_t* const* bits, const float* numbers, int64_t stride, int64_t dim, float* out,
                           int64_t out_stride) {
  const int64_t num_bytes = (dim + 7) / 8;
  Vec sum[H][4] = {};
  for (int64_t i = 0; i < dim; i += kWidth) {
    uint32_t mine[4];
    for (int r = 0; r < 4; ++r) mine[r] = some_bits(bits[r], i, num_bytes);
    for (int h = 0; h < H; ++h) {
      const Vec part = load(numbers + h * stride + i);
      for (int r = 0; r < 4; ++r) sum[h][r] += where_set(mine[r], part);
    }
  }
  for (int h = 0; h < H; ++h) {
    const Four sums = sums_of(sum[h][0], sum[h][1], sum[h][2], sum[h][3]);
    std::memcpy(out + h * out_stride, &sums, sizeof(sums));
  }
}

inline float sum_of(const float* numbers, int64_t padded) {
  Vec sum{};
  for (int64_t i = 0; i < padded; i += kWidth) sum += load(numbers + i);
  return sum_of(sum);
}

// q.(+-scale + middle), of groups of units that share scale and middle: the signed sum is twice that of the set bits
// less that of all.
inline void one_bit_logits(const UnitLogits& p, int num_threads) {
  const int64_t num_rows = p.query.size[0], num_heads = p.query.size[1], dim = p.query.size[2], padded = whole(dim);
  const int64_t num_units = p.units.size[1], shared = num_units ? num_units / p.scales.size[1] : 1;
  float* out = static_cast<float*>(p.out.data);
  Scratch<float> query(num_rows * num_heads * padded);
  read_queries(p.query, p.scaling, padded, query);
  const int num_parts = parts_for(num_rows * num_units * dim, num_threads);
  by_spans(num_rows, num_units, p.where, num_parts, [&](int64_t row, int64_t begin, int64_t end) {
    Scratch<float> scales(2 * dim), spread(num_heads * padded), middle(num_heads);
    const uint8_t* bits = static_cast<const uint8_t*>(p.units.data) + row * p.units.stride[0];
    for (int64_t unit = begin; unit < end;) {
      const int64_t group = unit / shared, last = least(end, (group + 1) * shared);
      read_floats(p.scales, row * p.scales.stride[0] + group * p.scales.stride[1], 1, 2 * dim, scales);
      for (int64_t head = 0; head < num_heads; ++head) {
        const float* mine = query + (row * num_heads + head) * padded;
        float moved = 0.0f;
        for (int64_t i = 0; i < padded; ++i) spread[head * padded + i] = i < dim ? mine[i] * scales[i] : 0.0f;
        for (int64_t i = 0; i < dim; ++i) moved += mine[i] * scales[dim + i];
        middle[head] = moved - sum_of(spread + head * padded, padded);
      }
      for (; unit < last; unit += 4) {
        const uint8_t* four[4];
        for (int64_t i = 0; i < 4; ++i) four[i] = bits + least(unit + i, last - 1) * p.units.stride[1];
        by_heads(static_cast<int>(num_heads), [&](auto tile, int head) {
          float sums[kHeads * 4];
          sums_where_set<tile.size>(four, spread + head * padded, padded, dim, sums, 4);
          for (int h = 0; h < tile.size; ++h) {
            float* mine = out + (row * num_heads + head + h) * num_units + unit;
            for (int64_t i = 0; i < least(4, last - unit); ++i) mine[i] = 2.0f * sums[h * 4 + i] + middle[head + h];
          }
        });
      }
      unit = last;
    }
  });
}

inline void score_tokens(const ScoreTokens& p, int num_threads) {
  const int64_t num_rows = p.query.size[0], num_heads = p.query.size[1], dim = p.query.size[2], padded = whole(dim);
  const int64_t num_tokens = p.place.size[1];
  Scratch<float> query(num_rows * num_heads * padded), all(num_rows * num_heads);
  read_queries(p.query, p.scaling, padded, query);
  for (int64_t i = 0; i < num_rows * num_heads; ++i) all[i] = sum_of(query + i * padded, padded);
  const int num_parts = parts_for(num_rows * num_tokens * num_heads * dim, num_threads);
  by_spans(num_rows, num_tokens, Array(), num_parts, [&](int64_t row, int64_t begin, int64_t end) {
    const uint8_t* bits = static_cast<const uint8_t*>(p.bits.data) + row * p.bits.stride[0];
    const float* shares = static_cast<const float*>(p.shares.data) + row * p.shares.stride[0];
    float* out = static_cast<float*>(p.out.data) + row * num_tokens;
    Scratch<float> block(num_heads * kWidth);
    for (int64_t first = begin; first < end; first += kWidth) {
      const int64_t count = least(kWidth, end - first);
      float steps[kWidth];
      int64_t units[kWidth];
      const uint8_t* tokens[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) {
        const int64_t token = first + least(i, count - 1);
        units[i] = index_at(p.unit, row * p.unit.stride[0] + token * p.unit.stride[1]);
        steps[i] = number_at(p.steps, row * p.steps.stride[0] + units[i] * p.steps.stride[1]);
        const int64_t place = index_at(p.place, row * p.place.stride[0] + token * p.place.stride[1]);
        tokens[i] = bits + most(place, 0) * p.bits.stride[1];
      }
      by_heads(static_cast<int>(num_heads), [&](auto tile, int head) {
        const float* mine = query + (row * num_heads + head) * padded;
        for (int i = 0; i < kWidth; i += 4)
          sums_where_set<tile.size>(tokens + i, mine, padded, dim, block + head * kWidth + i, kWidth);
      });
      for (int64_t head = 0; head < num_heads; ++head) {
        float* mine = block + head * kWidth;
        for (int64_t i = 0; i < kWidth; ++i)
          mine[i] = shares[head * p.shares.stride[1] + units[i] * p.shares.stride[2]] +
                    steps[i] * (2.0f * mine[i] - all[row * num_heads + head]);
      }
      float agreed[kWidth];
      put(log_mean(block, kWidth, num_heads), agreed);
      std::memcpy(out + first, agreed, sizeof(float) * count);
    }
  });
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
