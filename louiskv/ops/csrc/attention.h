// Attention of the query heads of a group over slots, chosen tokens and a rest, in one pass with a running softmax.
//
// Tokens are taken in blocks: logits of a block, its weights, its values, so that each key and value comes from memory
// once for up to four heads, and is still in a cache for others. Rows and tokens are one line of work, cut into a part
// a thread; what several threads found for one row is merged at the end.
#pragma once

#include "products.h"

namespace louiskv {
namespace LOUISKV_ISA {

constexpr int kBlock = 128;   // tokens whose logits are held at once
constexpr int kListed = 512;  // tokens listed at once
constexpr int kAhead = 32;    // tokens by which memory is asked for ahead
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

// Adds values times weights to V vectors of the sums from number `at` on; `reach` is how many values can be asked for.
template <typename T, int H, int V, bool kWhole>
inline void add_values(const T* const* value, const float* weights, int count, int reach, int64_t at, int64_t dim,
                       float* out, int64_t out_stride) {
  Vec sum[H][V];
  for (int h = 0; h < H; ++h)
    for (int v = 0; v < V; ++v) sum[h][v] = load(out + h * out_stride + at + v * kWidth);
  for (int i = 0; i < count; ++i) {
    if (i + kAhead < reach) prefetch(value[i + kAhead] + at, V * kWidth);
    for (int v = 0; v < V; ++v) {
      const T* from = value[i] + at + v * kWidth;
      const Vec part = kWhole ? load(from) : load_part(from, dim - at);
      for (int h = 0; h < H; ++h) sum[h][v] += weights[h * kBlock + i] * part;
    }
  }
  for (int h = 0; h < H; ++h)
    for (int v = 0; v < V; ++v) put(sum[h][v], out + h * out_stride + at + v * kWidth);
}

// Takes a block with the logits [H, kBlock] into the running softmax; steps multiply the values, null for ones; of the
// values from the first on `reach` can be asked for ahead.
template <typename T, int H>
inline void absorb(const Running& running, int head, float* logits, int count, const T* const* value, int reach,
                   int64_t dim, const float* steps) {
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
    add_values<T, H, kVecs, true>(value, logits, count, reach, at, dim, out, running.out_stride);
  for (; at + kWidth <= dim; at += kWidth)
    add_values<T, H, 1, true>(value, logits, count, reach, at, dim, out, running.out_stride);
  if (at < dim) add_values<T, H, 1, false>(value, logits, count, reach, at, dim, out, running.out_stride);
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
                         int head, const Listed<T>& listed, int first, bool biased, bool far) {
  const int count = static_cast<int>(least(kBlock, listed.count - first));
  const int64_t dim = problem.query.size[2], value_dim = problem.values.size[2];
  const int reach = far ? listed.count - first : 0;
  float logits[kHeads * kBlock];
  for (int h = 0; h < H; ++h) put(Vec{}, logits + h * kBlock + whole(count) - kWidth);
  for (int i = 0; i < count; i += 4) {
    const int end = head == 0 ? static_cast<int>(least(i + 4 + kAhead, reach)) : 0;
    for (int ahead = i + kAhead; ahead < end; ++ahead) prefetch(listed.key[first + ahead], dim);
    // What stands behind the last token is another key, or the last once more.
    dots<T, H>(listed.key + first + i, query + head * query_dim, query_dim, dim, logits + i, kBlock);
  }
  finish_logits(logits, H, count, problem.softcap, biased ? listed.bias + first : nullptr);
  absorb<T, H>(running, head, logits, count, listed.value + first, reach, value_dim, nullptr);
}

template <typename T>
inline void attend_listed(const DecodeAttention& problem, const Running& running, const float* query, int64_t query_dim,
                          Listed<T>& listed, bool biased, bool far) {
  const int num_heads = static_cast<int>(problem.query.size[1]);
  for (int i = listed.count; i % 4; ++i) listed.key[i] = listed.key[listed.count - 1];
  for (int first = 0; first < listed.count; first += kBlock) {
    by_heads(num_heads, [&](auto tile, int head) {
      attend_block<T, tile.size>(problem, running, query, query_dim, head, listed, first, biased, far);
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
  // What the second cache holds need not be asked for.
  const bool far = p.keys.size[0] * p.keys.size[1] * (p.query.size[2] + p.values.size[2]) * sizeof(T) > (1 << 20);
  Listed<T> listed;
  for (int64_t slot = first; slot < last; ++slot) {
    if (biased) {
      const float bias = number_at(p.bias, row * p.bias.stride[0] + slot * p.bias.stride[2]);
      if (bias == -kInfinity) continue;
      listed.bias[listed.count] = bias;
    }
    listed.key[listed.count] = keys + slot * p.keys.stride[1];
    listed.value[listed.count++] = values + slot * p.values.stride[1];
    if (listed.count == kListed) attend_listed(p, running, query, query_dim, listed, biased, far);
  }
  attend_listed(p, running, query, query_dim, listed, biased, far);
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
    // The first of a list are asked for while it is written, the others while those before them are read.
    if (listed.count < kAhead) prefetch(listed.key[listed.count], p.rows.size[2]);
    if (++listed.count == kListed) attend_listed(p, running, query, query_dim, listed, false, true);
  }
  attend_listed(p, running, query, query_dim, listed, false, true);
}

// Entries of the rest, those that are open.
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
    const float* from =
        static_cast<const float*>(p.logits.data) + row * p.logits.stride[0] + (head + h) * p.logits.stride[1];
    for (int i = 0; i < entries.count; ++i) logits[h * kBlock + i] = from[entries.entry[i] * p.logits.stride[2]];
  }
  finish_logits(logits, H, entries.count, p.softcap, entries.bias);
  absorb<V, H>(running, head, logits, entries.count, entries.value, 0, p.rest_values.size[2], entries.steps);
}

// Entries `first` to `last` of the rest of a row.
template <typename V>
inline void attend_rest(const DecodeAttention& p, const Running& running, int64_t row, int64_t first, int64_t last) {
  const V* values = static_cast<const V*>(p.rest_values.data) + row * p.rest_values.stride[0];
  const int num_heads = static_cast<int>(p.query.size[1]);
  for (; first < last; first += kBlock) {
    const int64_t count = least(kBlock, last - first);
    float left[kBlock] = {}, bias[kBlock], steps[kBlock];
    read_floats(p.num_left, row * p.num_left.stride[0] + first * p.num_left.stride[1], p.num_left.stride[1], count,
                left);
    for (int64_t i = 0; i < count; i += kWidth) put(log_of(load(left + i)), bias + i);
    read_floats(p.steps, row * p.steps.stride[0] + first * p.steps.stride[1], p.steps.stride[1], count, steps);
    Entries<V> entries;
    for (int64_t i = 0; i < count; ++i) {
      // Written in any case, kept where it is open.
      entries.entry[entries.count] = first + i;
      entries.bias[entries.count] = bias[i];
      entries.steps[entries.count] = steps[i];
      entries.value[entries.count] = values + (first + i) * p.rest_values.stride[1];
      entries.count += bias[i] != -kInfinity;
    }
    if (!entries.count) continue;
    by_heads(num_heads, [&](auto tile, int head) { attend_entries<V, tile.size>(p, running, row, head, entries); });
  }
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
