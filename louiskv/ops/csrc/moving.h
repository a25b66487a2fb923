// Tokens on the way: bytes copied from row to row.
#pragma once

#include "arrays.h"

namespace louiskv {
namespace LOUISKV_ISA {

inline int64_t bytes_of(Type type) {
  switch (type) {
    case Type::f32:
    case Type::i32: return 4;
    case Type::i64: return 8;
    case Type::bf16:
    case Type::f16: return 2;
    default: return 1;
  }
}

inline char* at(const Array& array, int64_t offset) {
  return static_cast<char*>(array.data) + offset * bytes_of(array.type);
}

inline void append_token(const AppendToken& p) {
  const int64_t key_dim = p.keys.size[1], value_dim = p.values.size[1], size = bytes_of(p.rows.type);
  for (int64_t row = 0; row < p.rows.size[0]; ++row) {
    int64_t& length = static_cast<int64_t*>(p.lengths.data)[row * p.lengths.stride[0]];
    const int64_t slot = length < p.num_sinks ? length : p.num_sinks + (length - p.num_sinks) % p.window;
    const int64_t token = row * p.rows.stride[0] + slot * p.rows.stride[1];
    std::memcpy(at(p.rows, token), at(p.keys, row * p.keys.stride[0]), key_dim * size);
    std::memcpy(at(p.rows, token + key_dim), at(p.values, row * p.values.stride[0]), value_dim * size);
    std::memset(at(p.bias, row * p.bias.stride[0] + slot * p.bias.stride[2]), 0, bytes_of(p.bias.type));
    ++length;
  }
}

inline void fetch_rows(const Array& source, const Array& place, const Array& missing, const Array& target,
                       int num_threads) {
  constexpr int64_t kAheadOf = 4;
  const int64_t num_slots = target.size[1], total = target.size[0] * num_slots;
  const int64_t num_bytes = target.size[2] * bytes_of(target.type);
  const auto wanted = [&](int64_t row, int64_t slot) {
    return static_cast<const bool*>(missing.data)[row * missing.stride[0] + slot * missing.stride[1]];
  };
  const auto row_of = [&](int64_t row, int64_t slot) {
    const int64_t token = index_at(place, row * place.stride[0] + slot * place.stride[1]);
    return at(source, row * source.stride[0] + token * source.stride[1]);
  };
  int64_t count = 0;
  for (int64_t i = 0; i < total; ++i) count += wanted(i / num_slots, i % num_slots);
  const int num_parts = parts_for(2 * count * num_bytes, num_threads);
  in_parts(num_parts, [&](int part) {
    const int64_t end = total * (part + 1) / num_parts;
    for (int64_t i = total * part / num_parts; i < end; ++i) {
      const int64_t row = i / num_slots, slot = i % num_slots;
      if (slot + kAheadOf < num_slots && wanted(row, slot + kAheadOf)) {
        const char* next = row_of(row, slot + kAheadOf);
        for (int64_t byte = 0; byte < num_bytes; byte += 64) __builtin_prefetch(next + byte);
      }
      if (wanted(row, slot))
        std::memcpy(at(target, row * target.stride[0] + slot * target.stride[1]), row_of(row, slot), num_bytes);
    }
  });
}

inline void store_rows(const Array& target, const Array& lengths, const Array& rows, const Array& counts) {
  const int64_t size = bytes_of(target.type), inner = target.size[3], middle = target.size[2];
  const bool runs = rows.stride[3] == 1 || inner == 1;
  // All numbers of an entry side by side in both, which the target's are.
  const bool dense = runs && (rows.stride[2] == inner || middle == 1);
  for (int64_t row = 0; row < rows.size[0]; ++row) {
    const int64_t length = index_at(lengths, row * lengths.stride[0]);
    const int64_t count = index_at(counts, row * counts.stride[0]);
    for (int64_t entry = 0; entry < count; ++entry) {
      char* to = at(target, row * target.stride[0] + (length + entry) * target.stride[1]);
      const int64_t from = row * rows.stride[0] + entry * rows.stride[1];
      if (dense) {
        std::memcpy(to, at(rows, from), middle * inner * size);
        continue;
      }
      for (int64_t i = 0; i < middle; ++i) {
        for (int64_t j = 0; j < (runs ? 1 : inner); ++j)
          std::memcpy(to + (i * inner + j) * size, at(rows, from + i * rows.stride[2] + j * rows.stride[3]),
                      runs ? inner * size : size);
      }
    }
  }
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
