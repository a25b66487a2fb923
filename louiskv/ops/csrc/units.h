// Units that come into an index: summaries of their tokens, entries of its table, slots.
#pragma once

#include "arrays.h"

namespace louiskv {
namespace LOUISKV_ISA {

// Numbers of a unit, channel by channel, before they are written.
struct Channels {
  float *high, *low, *sum;
};

template <typename T>
void summarise_unit(const SummariseUnits& p, const T* rows, int64_t size, const Channels& of, T* out) {
  const int64_t dim = p.rows.size[2], stride = p.rows.stride[1];
  const float count = static_cast<float>(most(1, size));
  for (int64_t i = 0; i < dim; ++i) {
    of.sum[i] = 0.0f;
    of.high[i] = of.low[i] = size ? to_float(rows[i]) : 0.0f;
  }
  for (int64_t token = 0; p.extremes && token < size; ++token) {
    const T* row = rows + token * stride;
    for (int64_t i = 0; i < dim; ++i) {
      const float number = to_float(row[i]);
      of.high[i] = number > of.high[i] ? number : of.high[i];
      of.low[i] = number < of.low[i] ? number : of.low[i];
    }
  }
  const bool by_sum = !p.extremes || p.volume;
  for (int64_t i = 0; p.volume && i < dim; ++i) of.high[i] = (of.high[i] + of.low[i]) / 2;
  for (int64_t token = 0; by_sum && token < size; ++token) {
    const T* row = rows + token * stride;
    for (int64_t i = 0; i < dim; ++i)
      of.sum[i] += p.volume ? std::abs(to_float(row[i]) - of.high[i]) : to_float(row[i]);
  }
  for (int64_t i = 0; i < dim; ++i) {
    const float mean = of.sum[i] / count;
    if (!p.extremes) {
      store(mean, out + i);
      continue;
    }
    store(p.volume ? of.high[i] + mean : of.high[i], out + i);
    store(p.volume ? of.high[i] - mean : of.low[i], out + dim + i);
  }
}

template <typename T>
void summarise_rows(const SummariseUnits& p, int num_threads) {
  const int64_t num_rows = p.rows.size[0], num_units = p.sizes.size[1], dim = p.rows.size[2];
  const int64_t num_bytes = num_rows * p.rows.size[1] * dim * sizeof(T);
  const int num_parts = static_cast<int>(least(parts_for(num_bytes, num_threads), num_rows));
  in_parts(num_parts, [&](int part) {
    Scratch<float> numbers(3 * dim);
    const Channels of = {numbers, numbers + dim, numbers + 2 * dim};
    for (int64_t row = part; row < num_rows; row += num_parts) {
      const T* rows = static_cast<const T*>(p.rows.data) + row * p.rows.stride[0];
      T* out = static_cast<T*>(p.out.data) + row * p.out.stride[0];
      for (int64_t unit = 0; unit < num_units; ++unit, out += p.out.stride[1]) {
        const int64_t size = entry_at(p.sizes, row, unit);
        summarise_unit(p, rows, size, of, out);
        rows += size * p.rows.stride[1];
      }
    }
  });
}

inline void summarise_units(const SummariseUnits& p, int num_threads) {
  p.rows.type == Type::f32 ? summarise_rows<float>(p, num_threads) : summarise_rows<bf16>(p, num_threads);
}

inline void append_units(const AppendUnits& p) {
  const auto told = [&](const Array& array, int64_t row) -> int64_t& {
    return static_cast<int64_t*>(array.data)[row * array.stride[0]];
  };
  for (int64_t row = 0; row < p.sizes.size[0]; ++row) {
    int64_t &count = told(p.counts, row), &num_tokens = told(p.num_tokens, row);
    int64_t offset = told(p.begin, row);
    told(p.first, row) = count;
    told(p.first_token, row) = num_tokens;
    for (int64_t i = 0; i < p.new_sizes.size[1]; ++i) {
      const int64_t size = entry_at(p.new_sizes, row, i);
      if (size <= 0) break;
      set_index(p.offsets, row, count, offset);
      set_index(p.sizes, row, count, size);
      ++count;
      offset += size;
      num_tokens += size;
    }
    told(p.new_units, row) = count - told(p.first, row);
    told(p.new_tokens, row) = num_tokens - told(p.first_token, row);
  }
}

inline void keep_runs(const KeepRuns& p) {
  const int64_t num_slots = p.slot_place.size[1];
  for (int64_t row = 0; row < p.slot_place.size[0]; ++row) {
    int64_t room = p.room + (p.rooms ? index_at(p.rooms, row * p.rooms.stride[0]) : 0);
    for (int64_t i = 0; i < num_slots; ++i) room -= entry_at(p.slot_place, row, i) >= 0;
    const int64_t begin = index_at(p.begin, row * p.begin.stride[0]);
    const int64_t count = least(room, index_at(p.counts, row * p.counts.stride[0]));
    bool* comes = static_cast<bool*>(p.comes.data) + row * num_slots;
    int32_t* token = static_cast<int32_t*>(p.token.data) + row * num_slots;
    int32_t next = 0;
    for (int64_t i = 0; i < num_slots; ++i) {
      comes[i] = next < count && entry_at(p.slot_place, row, i) < 0;
      token[i] = next;
      if (!comes[i]) continue;
      set_index(p.slot_place, row, i, begin + next++);
      if (p.bias) set_bias(p.bias, row * p.bias.stride[0] + i * p.bias.stride[1], true);
    }
  }
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
