// What the kernels take, and the table of them that each instruction set has. Knows nothing of torch.
#pragma once

#include <cstdint>
#include <string>

namespace louiskv {

enum class Type : int32_t { f32, bf16, f16, i8, u8, i32, i64, boolean };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// A tensor; strides in elements. `data` is null where there is none.
struct Array {
  void* data = nullptr;
  Type type = Type::f32;
  int64_t size[4] = {1, 1, 1, 1};
  int64_t stride[4] = {0, 0, 0, 0};

  explicit operator bool() const { return data != nullptr; }
};

struct DecodeAttention {
  Array query, keys, values, bias, attention_sinks;
  // What is attended to in place.
  Array rows, place;
  // What is attended to by estimate.
  Array logits, num_left, rest_values, steps;
  float scaling = 1.0f;
  // 0 for none.
  float softcap = 0.0f;
  Array out;
};

struct LogSums {
  Array query, keys, bias, attention_sinks;
  float scaling = 1.0f;
  Array out;
};

struct KMeans {
  // [N, T, D], and [N] of each row.
  Array keys, counts, num_clusters;
  // [N, C] tokens at which the clusters start.
  Array first;
  int64_t iterations = 1;
  bool cosine = false;
  // [N, T] int64, dense.
  Array out;
};

struct UnitLogits {
  // Scales are what the logits are multiplied by, or what units share.
  Array query, units, scales, where;
  float scaling = 1.0f;
  Array out;
};

struct ScoreTokens {
  Array query, shares, bits, steps, unit, place;
  float scaling = 1.0f;
  Array out;
};

// By softmax over the units or as they are; the logarithm of the mean, the maximum or the mean.
struct Agree {
  Array logits, sizes, where;
  bool softmax = false, log_mean = false, max = false;
  Array out;
};

// Budgets of the rows, or one for all.
struct SelectUnits {
  Array scores, sizes, budgets, where;
  int64_t budget = 0;
  Array out;
};

// Entries of which tokens are taken, and the table of all units: what is listed of them, and of the slots.
struct ListCandidates {
  Array take, offsets, slot_place;
  Array unit_offsets, counts, first_entry;
  int64_t stretch = 1, width = 0;
  Array place, entry, resident;
};

struct BestTokens {
  Array scores, place, resident, room;
  float hold = 0.0f;
  Array out;
};

struct CountRest {
  Array place, sizes, unit_offsets, counts;
  Array out;
};

// The new places may be written where the old ones are.
struct AssignSlots {
  Array slot_place, wanted, where, counts, bias;
  Array out, filled;
};

// By the mean cosine of each group, or of all heads.
struct Turned {
  Array query, previous, tau;
  bool by_group = false;
  Array similarity, fired;
};

struct CutRuns {
  Array starts, opened, lengths, boundary;
  int64_t shortest = 1, longest = 1;
};

struct OldestRuns {
  Array starts, first, end;
  int64_t shortest = 1, longest = 1, most = 0;
  Array out;
};

constexpr int kMostSeries = 3;

// What there is no series for is null.
struct RecordStep {
  Array step;
  Array series[kMostSeries], values[kMostSeries];
};

// Of a budget for sinks aside, what a window that takes in `coming` tokens more leaves.
struct RoomBeside {
  Array first, end;
  int64_t budget = 0, window = 1, coming = 0, taken_by = 1, most = 0;
  Array out;
};

// Of each row in an order, or, without one, by position.
struct TakeRuns {
  Array rows, first, order;
  int64_t num_sinks = 0, window = 1;
  Array taken, positions;
};

struct ReleaseRuns {
  Array bias, first, counts;
  int64_t num_sinks = 0, window = 1;
};

// The mean, or the extremes, or the middle between them with the mean distance from it.
struct SummariseUnits {
  Array rows, sizes;
  bool extremes = false, volume = false;
  Array out;
};

struct AppendUnits {
  Array offsets, sizes, counts, num_tokens, begin, new_sizes;
  Array first, new_units, first_token, new_tokens;
};

// Bits are of tokens, or none.
struct SketchUnits {
  Array keys, values, sizes;
  Array key_codes, value_codes, steps, bits;
};

// Codes of keys, then of values.
struct BundleSketches {
  Array codes[2], steps, sizes, begin, counts;
  Array bundled[2], bundled_steps;
  int64_t bundle_size = 1;
};

// [N, U, D], [N, W] and [N]; out is [N, groups, W / groups] float32, dense.
struct AlongWidest {
  Array points, order, counts;
  int64_t steps = 1;
  Array out;
};

// Rooms of the rows, or none, and what is added to each.
struct KeepRuns {
  Array slot_place, begin, counts, rooms, bias;
  int64_t room = 0;
  Array comes, token;
};

struct AppendToken {
  Array rows, bias, lengths, keys, values;
  int64_t num_sinks = 0, window = 1;
};

struct Kernels {
  const char* name;
  void (*decode_attention)(const DecodeAttention& problem, int num_threads);
  void (*log_sums)(const LogSums& problem, int num_threads);
  void (*dot_logits)(const UnitLogits& problem, int num_threads);
  void (*bound_logits)(const UnitLogits& problem, int num_threads);
  void (*one_bit_logits)(const UnitLogits& problem, int num_threads);
  void (*score_tokens)(const ScoreTokens& problem, int num_threads);
  void (*unit_shares)(const Array& logits, const Array& sizes, const Array& beside, const Array& out, int num_threads);
  void (*agree)(const Agree& problem, int num_threads);
  void (*raise_newest)(const Array& scores, const Array& counts, int64_t num, const Array& out);
  void (*select_units)(const SelectUnits& problem, int num_threads);
  void (*places_of)(const Array& take, const Array& offsets, const Array& place, const Array& unit);
  void (*list_candidates)(const ListCandidates& problem);
  void (*best_tokens)(const BestTokens& problem, int num_threads);
  void (*count_rest)(const CountRest& problem);
  void (*assign_slots)(const AssignSlots& problem);
  void (*append_token)(const AppendToken& problem);
  void (*fetch_rows)(const Array& source, const Array& place, const Array& missing, const Array& target,
                     int num_threads);
  void (*store_rows)(const Array& target, const Array& lengths, const Array& rows, const Array& counts);
  void (*kmeans)(const KMeans& problem, int num_threads);
  void (*query_cosines)(const Array& query, const Array& other, const Array& out);
  void (*turned)(const Turned& problem);
  void (*record_step)(const RecordStep& problem);
  void (*cut_runs)(const CutRuns& problem);
  void (*oldest_runs)(const OldestRuns& problem);
  void (*room_beside)(const RoomBeside& problem);
  void (*take_runs)(const TakeRuns& problem);
  void (*release_runs)(const ReleaseRuns& problem);
  void (*summarise_units)(const SummariseUnits& problem, int num_threads);
  void (*sketch_units)(const SketchUnits& problem, int num_threads);
  void (*bundle_sketches)(const BundleSketches& problem);
  void (*along_widest)(const AlongWidest& problem, int num_threads);
  void (*group_by_label)(const Array& labels, int64_t num_labels, const Array& order, const Array& sizes);
  void (*append_units)(const AppendUnits& problem);
  void (*keep_runs)(const KeepRuns& problem);
};

// Of the best instruction set that this CPU has, or the one that LOUISKV_CPU_ISA names.
const Kernels& kernels();
// Those that this CPU has, the best first, with commas between them.
std::string instruction_sets();
// From now on this one; the best for "".
void use_instruction_set(const std::string& name);

}  // namespace louiskv
