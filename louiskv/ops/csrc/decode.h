// One decode step's attention: the work cut into parts, and what the parts found merged.
#pragma once

#include "attention.h"

namespace louiskv {
namespace LOUISKV_ISA {

// Tokens `first` to `last` of a row, which are its slots, then its chosen tokens, then its rest.
template <typename T>
inline void attend_span(const DecodeAttention& p, const Running& running, const float* query, int64_t query_dim,
                        int64_t row, int64_t first, int64_t last) {
  const int64_t num_slots = p.keys.size[1], num_chosen = p.place ? p.place.size[1] : 0;
  const int64_t rest = num_slots + num_chosen;
  attend_slots<T>(p, running, query, query_dim, row, first, least(last, num_slots));
  if (p.place && last > num_slots)
    attend_chosen<T>(p, running, query, query_dim, row, most(first - num_slots, 0), least(last, rest) - num_slots);
  if (!p.logits || last <= rest) return;
  const int64_t from = most(first - rest, 0);
  switch (p.rest_values.type) {
    case Type::i8: attend_rest<int8_t>(p, running, row, from, last - rest); break;
    case Type::bf16: attend_rest<bf16>(p, running, row, from, last - rest); break;
    default: attend_rest<float>(p, running, row, from, last - rest);
  }
}

// Adds what another part found for a head.
inline void merge(const Running& into, const Running& other, int64_t head) {
  const float most = into.most[head] > other.most[head] ? into.most[head] : other.most[head];
  if (most == -kInfinity) return;
  const float mine = exp_of(into.most[head] - most), theirs = exp_of(other.most[head] - most);
  float* out = into.out + head * into.out_stride;
  const float* from = other.out + head * into.out_stride;
  for (int64_t i = 0; i < into.out_stride; i += kWidth) put(load(out + i) * mine + load(from + i) * theirs, out + i);
  into.sum[head] = into.sum[head] * mine + other.sum[head] * theirs;
  into.most[head] = most;
}

template <typename T>
inline void write_out(const DecodeAttention& p, const Running& running, int64_t row) {
  const int64_t num_heads = p.query.size[1], dim = p.out.size[2];
  for (int64_t head = 0; head < num_heads; ++head) {
    float sum = running.sum[head], scale = 1.0f;
    if (p.attention_sinks) {
      const Array& sinks = p.attention_sinks;
      const float sink = number_at(sinks, row * sinks.stride[0] + head * sinks.stride[1]);
      const float most = sink > running.most[head] ? sink : running.most[head];
      scale = exp_of(running.most[head] - most);
      sum = sum * scale + exp_of(sink - most);
    }
    T* out = static_cast<T*>(p.out.data) + (row * num_heads + head) * dim;
    const float* from = running.out + head * running.out_stride;
    for (int64_t i = 0; i < dim; ++i) store(from[i] * (scale / sum), out + i);
  }
}

template <typename T>
inline void decode(const DecodeAttention& p, int num_threads) {
  const int64_t num_rows = p.query.size[0], num_heads = p.query.size[1], dim = p.query.size[2];
  const int64_t num_chosen = p.place ? p.place.size[1] : 0, num_entries = p.logits ? p.logits.size[2] : 0;
  const int64_t span = p.keys.size[1] + num_chosen + num_entries, total = num_rows * span;
  const int64_t query_dim = whole(dim), out_dim = whole(p.out.size[2]);
  const int64_t row_bytes = (dim + p.out.size[2]) * sizeof(T);
  const int num_parts = parts_for(total * row_bytes, num_threads);

  Scratch<float> query(num_rows * num_heads * query_dim);
  read_queries(p.query, p.scaling, query_dim, query);

  // What part t finds for row r lies at r + t: the rows of a part begin no earlier than those of the one before end.
  const int64_t num_found = num_rows + num_parts - 1, found_size = num_heads * (out_dim + 2);
  Scratch<float> found(num_found * found_size);
  const auto running_of = [&](int64_t at) {
    float* mine = found + at * found_size;
    return Running{mine + num_heads * out_dim, mine + num_heads * (out_dim + 1), mine, out_dim};
  };
  for (int64_t i = 0; i < num_found * found_size; ++i) found[i] = 0.0f;
  for (int64_t at = 0; at < num_found; ++at)
    for (int64_t head = 0; head < num_heads; ++head) running_of(at).most[head] = -kInfinity;

  in_parts(num_parts, [&](int part) {
    const int64_t end = total * (part + 1) / num_parts;
    for (int64_t at = total * part / num_parts; at < end;) {
      const int64_t row = at / span, first = at - row * span, last = least(span, end - row * span);
      attend_span<T>(p, running_of(row + part), query + row * num_heads * query_dim, query_dim, row, first, last);
      at = row * span + last;
    }
  });

  for (int64_t row = 0; row < num_rows; ++row) {
    int64_t into = -1;
    for (int part = 0; part < num_parts; ++part) {
      if (total * (part + 1) / num_parts <= row * span || total * part / num_parts >= (row + 1) * span) continue;
      if (into < 0) {
        into = row + part;
        continue;
      }
      for (int64_t head = 0; head < num_heads; ++head) merge(running_of(into), running_of(row + part), head);
    }
    write_out<T>(p, running_of(into < 0 ? row : into), row);
  }
}

inline void decode_attention(const DecodeAttention& problem, int num_threads) {
  problem.query.type == Type::f32 ? decode<float>(problem, num_threads) : decode<bf16>(problem, num_threads);
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
