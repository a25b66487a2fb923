// The logic of the kernels in CUDA, run by threads of the host.
#include <pthread.h>

#include <thread>
#include <vector>

#include "cuda_candidates.h"
#include "cuda_moving.h"
#include "cuda_slots.h"

namespace louiskv {
namespace {

// What the threads of a team share.
template <typename Weight>
struct Shared {
  explicit Shared(int size) : flags(size), sums(size) { pthread_barrier_init(&barrier, nullptr, size); }
  ~Shared() { pthread_barrier_destroy(&barrier); }
  pthread_barrier_t barrier;
  std::vector<int> flags;
  std::vector<Weight> sums;
};

template <typename Weight>
class Team {
 public:
  Team(Shared<Weight>* shared, int rank) : shared_(shared), rank_(rank) {}
  int rank() const { return rank_; }
  int size() const { return static_cast<int>(shared_->flags.size()); }
  void barrier() const { pthread_barrier_wait(&shared_->barrier); }
  void mark(uint32_t* at, uint32_t bits) const { __atomic_fetch_or(at, bits, __ATOMIC_RELAXED); }
  void unmark(uint32_t* at, uint32_t bits) const { __atomic_fetch_and(at, ~bits, __ATOMIC_RELAXED); }
  void lower(uint32_t* at, uint32_t number) const {
    uint32_t before = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (number < before && !__atomic_compare_exchange_n(at, &before, number, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
      ;
  }
  void raise(uint32_t* at, uint32_t number) const {
    uint32_t before = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (number > before && !__atomic_compare_exchange_n(at, &before, number, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
      ;
  }
  void add(Weight* at, Weight weight) const { __atomic_fetch_add(at, weight, __ATOMIC_RELAXED); }
  bool any(bool flag) const {
    shared_->flags[rank_] = flag;
    barrier();
    int all = 0;
    for (int each : shared_->flags) all |= each;
    barrier();
    return all;
  }
  Weight sum_before(Weight mine, Weight* total) const {
    shared_->sums[rank_] = mine;
    barrier();
    Weight before = 0;
    *total = 0;
    for (int other = 0; other < size(); ++other) {
      if (other < rank_) before += shared_->sums[other];
      *total += shared_->sums[other];
    }
    return before;
  }

 private:
  Shared<Weight>* shared_;
  int rank_;
};

// Calls `each(row, team)` for all rows, one after the other, in all threads of a team.
template <typename Weight, typename Each>
void for_rows(int64_t rows, int threads, const Each& each) {
  Shared<Weight> shared(threads);
  std::vector<std::thread> team;
  for (int rank = 0; rank < threads; ++rank) {
    team.emplace_back([&, rank] {
      const Team<Weight> mine(&shared, rank);
      for (int64_t row = 0; row < rows; ++row) {
        each(row, mine);
        mine.barrier();
      }
    });
  }
  for (std::thread& thread : team) thread.join();
}

template <typename Size>
void select(const float* scores, int64_t stride, const Size* sizes, const int64_t* budgets, Size* take, int64_t rows,
            int64_t units, int threads) {
  using Weight = typename WeightOf<Size>::Type;
  Scratch<Weight> scratch;
  for_rows<Weight>(rows, threads, [&](int64_t row, const Team<Weight>& team) {
    const Row<Size> of_row = {scores + row * stride, sizes + row * stride, take + row * units,
                              static_cast<int>(units)};
    select_row(of_row, budgets[row], scratch, team);
  });
}

// A warp: all lanes look for what to copy, then each copies its part.
template <typename Word, typename Plan>
void copy_group(const Plan& plan, int64_t row, int64_t first, int group, uint32_t words) {
  Copy list[kLanes];
  uint32_t count = 0;
  for (int lane = 0; lane < group; ++lane) count += plan.find(row, first + lane, list + count);
  for (int lane = 0; lane < kLanes; ++lane) copy_listed<Word>(list, count, words, lane);
}

template <typename Plan>
void copy(const Plan& plan, int64_t rows, int64_t slots, int group, int64_t bytes, int word) {
  struct alignas(8) Eight {
    uint32_t at[2];
  };
  struct alignas(16) Sixteen {
    uint32_t at[4];
  };
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < slots; first += group) {
      const uint32_t words = static_cast<uint32_t>(bytes / word);
      switch (word) {
        case 16: copy_group<Sixteen>(plan, row, first, group, words); break;
        case 8: copy_group<Eight>(plan, row, first, group, words); break;
        case 4: copy_group<uint32_t>(plan, row, first, group, words); break;
        case 2: copy_group<uint16_t>(plan, row, first, group, words); break;
        default: copy_group<uint8_t>(plan, row, first, group, words);
      }
    }
  }
}

}  // namespace
}  // namespace louiskv

extern "C" {

void keys_of(const float* scores, uint32_t* keys, int64_t count) {
  for (int64_t i = 0; i < count; ++i) keys[i] = louiskv::key_of(scores[i]);
}

// Scores and sizes [rows, units] of one stride.
void select_units(const float* scores, int64_t stride, const void* sizes, int size_bytes, const int64_t* budgets,
                  void* take, int64_t rows, int64_t units, int threads) {
  if (size_bytes == 8)
    louiskv::select(scores, stride, static_cast<const int64_t*>(sizes), budgets, static_cast<int64_t*>(take), rows,
                    units, threads);
  else
    louiskv::select(scores, stride, static_cast<const int32_t*>(sizes), budgets, static_cast<int32_t*>(take), rows,
                    units, threads);
}

void list_candidates(const int32_t* take, const int32_t* offsets, const int32_t* slot_place,
                     const int32_t* unit_offsets, const int64_t* counts, const int32_t* first_entry, int64_t stretch,
                     int32_t* place, int32_t* entry, bool* resident, int64_t rows, int64_t entries, int64_t slots,
                     int64_t units, int64_t width, int threads) {
  const auto narrow = [](int64_t number) { return static_cast<int>(number); };
  std::vector<int32_t> scratch(entries);
  louiskv::for_rows<uint32_t>(rows, threads, [&](int64_t row, const auto& team) {
    const int64_t first = row * (width + slots);
    const louiskv::Candidates of_row = {take + row * entries,
                                        offsets + row * entries,
                                        narrow(entries),
                                        slot_place + row * slots,
                                        narrow(slots),
                                        unit_offsets + row * units,
                                        narrow(counts[row]),
                                        first_entry ? first_entry + row * (units / stretch) : nullptr,
                                        narrow(stretch),
                                        place + first,
                                        entry + first,
                                        resident + first,
                                        narrow(width)};
    louiskv::list_row(of_row, scratch.data(), team);
  });
}

void count_rest(const int32_t* place, int64_t places, const int32_t* sizes, const int32_t* offsets,
                const int64_t* counts, int32_t* left, int64_t rows, int64_t units, int threads) {
  std::vector<uint32_t> scratch(units, 7);
  louiskv::for_rows<uint32_t>(rows, threads, [&](int64_t row, const auto& team) {
    const int64_t first = row * units;
    const louiskv::Left<int32_t> of_row = {place + row * places,
                                           static_cast<int>(places),
                                           sizes + first,
                                           offsets + first,
                                           static_cast<int>(counts[row]),
                                           static_cast<int>(units),
                                           scratch.data(),
                                           left + first};
    louiskv::take_out(of_row, team);
  });
}

void best_tokens(const float* scores, const int32_t* place, const bool* resident, const int64_t* room, float hold,
                 int32_t* wanted, int64_t rows, int64_t tokens, int64_t num_wanted, int threads) {
  louiskv::Scratch<uint32_t> scratch;
  louiskv::for_rows<uint32_t>(rows, threads, [&](int64_t row, const auto& team) {
    const int64_t first = row * tokens;
    const louiskv::Scored of_row = {scores + first, place + first, resident + first, hold,
                                    static_cast<int>(tokens)};
    louiskv::choose_row(of_row, room[row], wanted + row * num_wanted, num_wanted, scratch, team);
  });
}

void assign_slots(const int32_t* slot_place, const void* wanted, int wanted_bytes, const bool* where, int32_t* place,
                  bool* missing, void* bias, int64_t bias_row, int bias_bytes, int64_t closed, int64_t* counts,
                  int64_t rows, int64_t slots, int64_t num_wanted, int64_t map_words, int threads) {
  const int64_t room = louiskv::places_for(num_wanted);
  std::vector<int32_t> scratch(louiskv::words_for(room));
  std::vector<uint32_t> bits(map_words, 0xffffffff);
  const louiskv::Slots of_all = {slot_place, wanted, wanted_bytes == 8, place, missing, slots, num_wanted};
  const louiskv::Bias biases = {bias, bias_row, bias_bytes, static_cast<uint32_t>(closed)};
  louiskv::for_rows<uint32_t>(rows, threads, [&](int64_t row, const auto& team) {
    const louiskv::Slots of_row = louiskv::row_of(of_all, row);
    if (where && !where[row]) return louiskv::keep_row(of_row, team);
    const louiskv::Held held = louiskv::assign_row(of_row, scratch.data(), room, {bits.data(), static_cast<int>(map_words)}, team);
    louiskv::open_row(of_all, row, biases, team);
    if (team.rank() == 0 && counts) {
      counts[0] += held.chosen;
      counts[1] += held.missing;
    }
  });
}

int word_bytes(uint64_t bits) { return louiskv::word_bytes(bits); }

void fetch_rows(const char* source, int64_t source_row, int64_t source_token, const void* place, int place_bytes,
                const bool* missing, char* target, int64_t target_row, int64_t target_slot, int64_t rows, int64_t slots,
                int64_t token_bytes, int group, int word) {
  const louiskv::Fetch plan = {source,  source_row, source_token, place,       place_bytes == 8,
                               missing, target,     target_row,   target_slot, slots};
  louiskv::copy(plan, rows, slots, group, token_bytes, word);
}

void store_rows(char* target, int64_t capacity, const int64_t* lengths, const char* entries, int64_t entries_row,
                int64_t entries_entry, const int64_t* counts, int64_t rows, int64_t num_new, int64_t entry_bytes,
                int group, int word) {
  const louiskv::Store plan = {target,        capacity, lengths, entries,    entries_row,
                               entries_entry, counts,   num_new, entry_bytes};
  louiskv::copy(plan, rows, num_new, group, entry_bytes, word);
}
}
