// Sketches: units and their tokens, bundles of units; and tokens in the order of their groups.
#pragma once

#include "arrays.h"

namespace louiskv {
namespace LOUISKV_ISA {

// A vector in 8 bits: what it stands for afterwards takes its place. Returns the step.
inline f16 code_numbers(float* numbers, int64_t dim, int8_t* codes) {
  float top = 0.0f;
  for (int64_t i = 0; i < dim; ++i) top = std::abs(numbers[i]) > top ? std::abs(numbers[i]) : top;
  f16 kept;
  store(top / 127.0f, &kept);
  const float step = to_float(kept), by = step > 0.0f ? step : 1.0f;
  for (int64_t i = 0; i < dim; ++i) {
    // To the nearest whole number, ties to even.
    const float code = (numbers[i] / by + 12582912.0f) - 12582912.0f;
    const float within = code < -127.0f ? -127.0f : code > 127.0f ? 127.0f : code;
    codes[i] = static_cast<int8_t>(within);
    numbers[i] = within * step;
  }
  return kept;
}

// Mean of some tokens, in their dtype.
template <typename T>
void mean_of(const T* rows, int64_t stride, int64_t size, int64_t dim, float* out) {
  for (int64_t i = 0; i < dim; ++i) out[i] = 0.0f;
  for (int64_t token = 0; token < size; ++token, rows += stride)
    for (int64_t i = 0; i < dim; ++i) out[i] += to_float(rows[i]);
  const float count = static_cast<float>(most(1, size));
  for (int64_t i = 0; i < dim; ++i) {
    T rounded;
    store(out[i] / count, &rounded);
    out[i] = to_float(rounded);
  }
}

// Adds to `away` how far a key is from a centre; `bits`, if there are any, say where it is not below.
template <typename T>
void compare_key(const T* key, const float* centre, int64_t dim, float* away, uint8_t* bits) {
  for (int64_t i = 0; i < dim; ++i) away[i] += std::abs(to_float(key[i]) - centre[i]);
  for (int64_t first = 0; bits && first < dim; first += 8) {
    uint8_t byte = 0;
    for (int64_t bit = 0; bit < least(8, dim - first); ++bit)
      byte |= (to_float(key[first + bit]) - centre[first + bit] >= 0.0f) << bit;
    *bits++ = byte;
  }
}

template <typename T>
void sketch_row(const SketchUnits& p, int64_t row, float* mean, float* away) {
  const int64_t dim = p.keys.size[2], value_dim = p.values.size[2], num_units = p.sizes.size[1];
  const T* keys = static_cast<const T*>(p.keys.data) + row * p.keys.stride[0];
  const T* values = static_cast<const T*>(p.values.data) + row * p.values.stride[0];
  uint8_t* bits = p.bits ? static_cast<uint8_t*>(p.bits.data) + row * p.bits.stride[0] : nullptr;
  for (int64_t unit = 0; unit < num_units; ++unit) {
    const int64_t size = entry_at(p.sizes, row, unit), at = row * num_units + unit;
    f16* steps = static_cast<f16*>(p.steps.data) + at * 3;
    mean_of(values, p.values.stride[1], size, value_dim, mean);
    steps[1] = code_numbers(mean, value_dim, static_cast<int8_t*>(p.value_codes.data) + at * value_dim);
    mean_of(keys, p.keys.stride[1], size, dim, mean);
    steps[0] = code_numbers(mean, dim, static_cast<int8_t*>(p.key_codes.data) + at * dim);
    for (int64_t i = 0; i < dim; ++i) away[i] = 0.0f;
    for (int64_t token = 0; token < size; ++token, keys += p.keys.stride[1]) {
      compare_key(keys, mean, dim, away, bits);
      bits += bits ? p.bits.stride[1] : 0;
    }
    float total = 0.0f;
    for (int64_t i = 0; i < dim; ++i) total += away[i];
    store(total / dim / static_cast<float>(most(1, size)), steps + 2);
    values += size * p.values.stride[1];
  }
}

inline void sketch_units(const SketchUnits& p, int num_threads) {
  const int64_t num_rows = p.keys.size[0], widest = most(p.keys.size[2], p.values.size[2]);
  const int64_t num_bytes = num_rows * p.keys.size[1] * (p.keys.size[2] + p.values.size[2]) * 2;
  const int num_parts = static_cast<int>(least(parts_for(num_bytes, num_threads), num_rows));
  in_parts(num_parts, [&](int part) {
    Scratch<float> numbers(2 * widest);
    for (int64_t row = part; row < num_rows; row += num_parts)
      p.keys.type == Type::f32 ? sketch_row<float>(p, row, numbers, numbers + widest)
                               : sketch_row<bf16>(p, row, numbers, numbers + widest);
  });
}

// One of the codes of a bundle, and its step.
inline void bundle_codes(const BundleSketches& p, int which, int64_t row, int64_t bundle, float* mean) {
  const Array &codes = p.codes[which], &bundled = p.bundled[which];
  const int64_t dim = codes.size[2], first = bundle * p.bundle_size;
  for (int64_t i = 0; i < dim; ++i) mean[i] = 0.0f;
  int64_t total = 0;
  for (int64_t unit = first; unit < first + p.bundle_size; ++unit) {
    const int64_t size = entry_at(p.sizes, row, unit);
    if (size <= 0) continue;
    const int8_t* code = static_cast<const int8_t*>(codes.data) + row * codes.stride[0] + unit * codes.stride[1];
    const int64_t at = row * p.steps.stride[0] + unit * p.steps.stride[1] + which * p.steps.stride[2];
    const float step = number_at(p.steps, at);
    for (int64_t i = 0; i < dim; ++i) mean[i] += code[i] * step * static_cast<float>(size);
    total += size;
  }
  for (int64_t i = 0; i < dim; ++i) mean[i] /= static_cast<float>(most(1, total));
  const Array& steps = p.bundled_steps;
  f16* step = static_cast<f16*>(steps.data) + row * steps.stride[0] + bundle * steps.stride[1];
  step[which] = code_numbers(
      mean, dim, static_cast<int8_t*>(bundled.data) + row * bundled.stride[0] + bundle * bundled.stride[1]);
  store(0.0f, step + 2);
}

inline void bundle_sketches(const BundleSketches& p) {
  Scratch<float> mean(most(p.codes[0].size[2], p.codes[1].size[2]));
  for (int64_t row = 0; row < p.bundled_steps.size[0]; ++row) {
    const int64_t count = index_at(p.counts, row * p.counts.stride[0]);
    int64_t bundle = index_at(p.begin, row * p.begin.stride[0]) / p.bundle_size;
    for (; bundle < p.bundled_steps.size[1] && bundle * p.bundle_size < count; ++bundle)
      for (int which = 0; which < 2; ++which) bundle_codes(p, which, row, bundle, mean);
  }
}

inline void group_by_label(const Array& labels, int64_t num_labels, const Array& order, const Array& sizes) {
  const int64_t num_rows = labels.size[0], num_tokens = labels.size[1];
  Scratch<int64_t> place(num_labels + 1);
  for (int64_t row = 0; row < num_rows; ++row) {
    const auto label_of = [&](int64_t token) {
      const int64_t label = entry_at(labels, row, token);
      return label < 0 ? num_labels : label;
    };
    int64_t* size = static_cast<int64_t*>(sizes.data) + row * num_labels;
    for (int64_t label = 0; label <= num_labels; ++label) place[label] = 0;
    for (int64_t token = 0; token < num_tokens; ++token) ++place[label_of(token)];
    int64_t num_groups = 0, before = 0;
    for (int64_t label = 0; label <= num_labels; ++label) {
      const int64_t here = place[label];
      if (here && label < num_labels) size[num_groups++] = here;
      place[label] = before;
      before += here;
    }
    while (num_groups < num_labels) size[num_groups++] = 0;
    int64_t* ordered = static_cast<int64_t*>(order.data) + row * num_tokens;
    for (int64_t token = 0; token < num_tokens; ++token) ordered[place[label_of(token)]++] = token;
  }
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
