// Attention of the query heads of a group over slots, chosen tokens and a rest, in one pass with a running softmax.
//
// Tokens are taken in blocks that stay in the first cache: logits of a block, its weights, its values, so that each key
// and value comes from memory once for all heads. Rows and tokens are one line of work, cut into a part a thread; what
// several threads found for one row is merged at the end.
#pragma once

#include "products.h"

namespace louiskv {
namespace LOUISKV_ISA {

constexpr int kBlock = 32;   // tokens whose logits are held at once
constexpr int kListed = 256;  // tokens listed at once
constexpr int kAhead = 16;     // tokens by which memory is asked for ahead
constexpr int kVecs = 4;      // vectors of values summed at once

// Running softmax of the heads of one row: greatest logit, sum of weights, sum of weighted values.
struct Running {
  float* most;
  float* sum;
  float* out;
  int64_t out_stride;
};

// Open tokens of one row.
template <typename T>
struct Listed {
  const T* key[kListed];
  const T* value[kListed];
  float bias[kListed];
  int count = 0;
};

template <typename T>
inline void prefetch(const T* row, int64_t dim) {
  const char* at = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < dim * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(at + byte);
}

template <typename T, int H, int V, bool kWhole>
inline void add_values(const T* const* value, const float* weights, int count, int64_t at, int64_t dim, float* out,
                       int64_t out_stride) {
  Vec sum[H][V];
  for (int h = 0; h < H; ++h)
    for (int v = 0; v < V; ++v) sum[h][v] = load(out + h * out_stride + at + v * kWidth);
  for (int i = 0; i < count; ++i) {
    for (int v = 0; v < V; ++v) {
      const T* from = value[i] + at + v * kWidth;
      const Vec part = kWhole ? load(from) : load_part(from, dim - at);
      for (int h = 0; h < H; ++h) sum[h][v] += weights[h * kBlock + i] * part;
    }
  }
  for (int h = 0; h < H; ++h)
    for (int v = 0; v < V; ++v) put(sum[h][v], out + h * out_stride + at + v * kWidth);
}

// Takes a block with the logits [H, kBlock] into the running softmax; steps multiply the values, null for ones.
template <typename T, int H>
inline void absorb(const Running& running, int head, float* logits, int count, const T* const* value, int64_t dim,
                   const float* steps) {
  for (int h = 0; h < H; ++h) {
    float* mine = logits + h * kBlock;
    for (int i = count; i < whole(count); ++i) mine[i] = -kInfinity;
    Vec greatest = load(mine);
    for (int i = kWidth; i < count; i += kWidth) greatest = greater(greatest, load(mine + i));
    const float before = running.most[head + h];
    const float most = before > most_of(greatest) ? before : most_of(greatest);
    if (most > before) {
      const float dim_by = before == -kInfinity ? 0.0f : exp_of(before - most);
      float* out = running.out + (head + h) * running.out_stride;
      for (int64_t i = 0; i < running.out_stride; i += kWidth) put(load(out + i) * dim_by, out + i);
      running.sum[head + h] *= dim_by;
      running.most[head + h] = most;
    }
    Vec sum{};
    for (int i = 0; i < count; i += kWidth) {
      const Vec weights = exp_of(load(mine + i) - most);
      sum += weights;
      put(steps ? weights * load(steps + i) : weights, mine + i);
    }
    running.sum[head + h] += sum_of(sum);
  }
  float* out = running.out + head * running.out_stride;
  int64_t at = 0;
  for (; at + kVecs * kWidth <= dim; at += kVecs * kWidth)
    add_values<T, H, kVecs, true>(value, logits, count, at, dim, out, running.out_stride);
  for (; at + kWidth <= dim; at += kWidth)
    add_values<T, H, 1, true>(value, logits, count, at, dim, out, running.out_stride);
  if (at < dim) add_values<T, H, 1, false>(value, logits, count, at, dim, out, running.out_stride);
}

inline void finish_logits(float* logits, int num_heads, int count, float softcap, const float* bias) {
  for (int h = 0; h < num_heads; ++h) {
    for (int i = 0; i < count; i += kWidth) {
      float* at = logits + h * kBlock + i;
      Vec capped = load(at);
      if (softcap != 0.0f) capped = softcap * tanh_of(capped / softcap);
      put(bias ? capped + load(bias + i) : capped, at);
    }
  }
}

template <typename T, int H>
inline void attend_block(const DecodeAttention& problem, const Running& running, const float* query, int64_t query_dim,
                         int head, const Listed<T>& listed, int first, bool biased) {
  const int count = static_cast<int>(least(kBlock, listed.count - first));
  const int64_t dim = problem.query.size[2], value_dim = problem.values.size[2];
  float logits[kHeads * kBlock];
  for (int h = 0; h < H; ++h) put(Vec{}, logits + h * kBlock + whole(count) - kWidth);
  for (int i = 0; i < count; i += 4) {
    for (int ahead = first + i + kAhead; head == 0 && ahead < least(first + i + 4 + kAhead, listed.count); ++ahead) {
      prefetch(listed.key[ahead], dim);
      prefetch(listed.value[ahead], value_dim);
    }
    // What stands behind the last token is another key, or the last once more.
    dots<T, H>(listed.key + first + i, query + head * query_dim, query_dim, dim, logits + i, kBlock);
  }
  finish_logits(logits, H, count, problem.softcap, biased ? listed.bias + first : nullptr);
  absorb<T, H>(running, head, logits, count, listed.value + first, value_dim, nullptr);
}

template <typename T>
inline void attend_listed(const DecodeAttention& problem, const Running& running, const float* query, int64_t query_dim,
                          Listed<T>& listed, bool biased) {
  const int num_heads = static_cast<int>(problem.query.size[1]);
  for (int i = listed.count; i % 4; ++i) listed.key[i] = listed.key[listed.count - 1];
  for (int first = 0; first < listed.count; first += kBlock) {
    by_heads(num_heads, [&](auto tile, int head) {
      attend_block<T, tile.size>(problem, running, query, query_dim, head, listed, first, biased);
    });
  }
  listed.count = 0;
}

// Slots `first` to `last` of a row.
template <typename T>
inline void attend_slots(const DecodeAttention& p, const Running& running, const float* query, int64_t query_dim,
                         int64_t row, int64_t first, int64_t last) {
  const T* keys = static_cast<const T*>(p.keys.data) + row * p.keys.stride[0];
  const T* values = static_cast<const T*>(p.values.data) + row * p.values.stride[0];
  const bool biased = bool(p.bias);
  Listed<T> listed;
  for (int64_t slot = first; slot < last; ++slot) {
    if (biased) {
      const float bias = number_at(p.bias, row * p.bias.stride[0] + slot * p.bias.stride[2]);
      if (bias == -kInfinity) continue;
      listed.bias[listed.count] = bias;
    }
    listed.key[listed.count] = keys + slot * p.keys.stride[1];
    listed.value[listed.count++] = values + slot * p.values.stride[1];
    if (listed.count == kListed) attend_listed(p, running, query, query_dim, listed, biased);
  }
  attend_listed(p, running, query, query_dim, listed, biased);
}

// Chosen tokens `first` to `last` of a row.
template <typename T>
inline void attend_chosen(const DecodeAttention& p, const Running& running, const float* query, int64_t query_dim,
                          int64_t row, int64_t first, int64_t last) {
  const T* rows = static_cast<const T*>(p.rows.data) + row * p.rows.stride[0];
  Listed<T> listed;
  for (int64_t i = first; i < last; ++i) {
    const int64_t place = index_at(p.place, row * p.place.stride[0] + i * p.place.stride[1]);
    if (place < 0) continue;
    listed.key[listed.count] = rows + place * p.rows.stride[1];
    listed.value[listed.count] = listed.key[listed.count] + p.query.size[2];
    if (++listed.count == kListed) attend_listed(p, running, query, query_dim, listed, false);
  }
  attend_listed(p, running, query, query_dim, listed, false);
}

// Entries of the rest, as many as the lists hold.
template <typename V>
struct Entries {
  int64_t entry[kBlock];
  const V* value[kBlock];
  float bias[kBlock], steps[kBlock];
  int count = 0;
};

template <typename V, int H>
inline void attend_entries(const DecodeAttention& p, const Running& running, int64_t row, int head,
                           const Entries<V>& entries) {
  float logits[kHeads * kBlock];
  for (int h = 0; h < H; ++h) {
    put(Vec{}, logits + h * kBlock + whole(entries.count) - kWidth);
    const int64_t from = row * p.logits.stride[0] + (head + h) * p.logits.stride[1];
    for (int i = 0; i < entries.count; ++i)
      logits[h * kBlock + i] = number_at(p.logits, from + entries.entry[i] * p.logits.stride[2]);
  }
  finish_logits(logits, H, entries.count, p.softcap, entries.bias);
  absorb<V, H>(running, head, logits, entries.count, entries.value, p.rest_values.size[2], entries.steps);
}

// Entries `first` to `last` of the rest of a row.
template <typename V>
inline void attend_rest(const DecodeAttention& p, const Running& running, int64_t row, int64_t first, int64_t last) {
  const V* values = static_cast<const V*>(p.rest_values.data) + row * p.rest_values.stride[0];
  const int num_heads = static_cast<int>(p.query.size[1]);
  Entries<V> entries;
  for (int64_t entry = first; entry < last; ++entry) {
    const float bias = number_at(p.rest_bias, row * p.rest_bias.stride[0] + entry * p.rest_bias.stride[2]);
    if (bias != -kInfinity) {
      entries.entry[entries.count] = entry;
      entries.bias[entries.count] = bias;
      entries.steps[entries.count] = number_at(p.steps, row * p.steps.stride[0] + entry * p.steps.stride[2]);
      entries.value[entries.count++] = values + entry * p.rest_values.stride[1];
    }
    if (entries.count < kBlock && entry + 1 < last) continue;
    if (entries.count) {
      by_heads(num_heads, [&](auto tile, int head) { attend_entries<V, tile.size>(p, running, row, head, entries); });
    }
    entries.count = 0;
  }
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
