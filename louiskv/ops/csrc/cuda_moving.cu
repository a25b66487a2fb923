// Tokens between the device and host memory that the kernel reads and writes itself: a warp looks after a few slots.
#include "cuda_launch.cuh"
#include "cuda_moving.h"

namespace louiskv {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kLanes;
// What keeps a GPU and its link to the host busy.
constexpr int64_t kEnoughWarps = 4096;
constexpr int64_t kMostBytes = int64_t{1} << 24;

// Each warp does `group` slots of the `slots` of a row, at most as many as it has lanes.
template <typename Word, typename Plan>
__global__ void __launch_bounds__(kThreads)
    copy_tokens(const Plan plan, int64_t num_groups, int64_t groups_in_row, int group, uint32_t words) {
  __shared__ Copy lists[kWarps][kLanes];
  const int lane = threadIdx.x % kLanes;
  const int64_t number = int64_t{blockIdx.x} * kWarps + threadIdx.x / kLanes;
  if (number >= num_groups) return;
  const int64_t row = number / groups_in_row, first = number % groups_in_row * group;
  Copy mine;
  const bool is_wanted = lane < group && plan.find(row, first + lane, &mine);
  const uint32_t wanted = __ballot_sync(0xffffffff, is_wanted);
  if (!wanted) return;
  Copy* list = lists[threadIdx.x / kLanes];
  if (is_wanted) list[__popc(wanted & ((1u << lane) - 1))] = mine;
  __syncwarp();
  copy_listed<Word>(list, __popc(wanted), words, lane);
}

template <typename Plan>
int copy(const Plan& plan, int64_t rows, int64_t slots, int group, int64_t bytes, int word, int device, void* stream) {
  if (!rows || !slots || !bytes) return cudaSuccess;
  if (bytes > kMostBytes) return cudaErrorInvalidValue;
  const int64_t groups_in_row = blocks_for(slots, group), num_groups = rows * groups_in_row;
  const auto launch = [&](auto like) {
    const auto words = static_cast<uint32_t>(bytes / word);
    copy_tokens<decltype(like)><<<blocks_for(num_groups, kWarps), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        plan, num_groups, groups_in_row, group, words);
  };
  return OnDevice(device).run([&] {
    switch (word) {
      case 16: return launch(uint4{});
      case 8: return launch(uint2{});
      case 4: return launch(uint32_t{});
      case 2: return launch(uint16_t{});
      default: return launch(uint8_t{});
    }
  });
}

uint64_t bits_of(const void* address) { return reinterpret_cast<uintptr_t>(address); }

}  // namespace
}  // namespace louiskv

// Tokens of `token_bytes` from the source, in the places [rows, slots] of 4 or 8 bytes each, into the slots of the
// target that are `missing` [rows, slots]. Strides in bytes.
LOUISKV_EXPORT int louiskv_fetch_rows(const void* source, int64_t source_row, int64_t source_token, const void* place,
                                      int place_bytes, const bool* missing, void* target, int64_t target_row,
                                      int64_t target_slot, int64_t rows, int64_t slots, int64_t token_bytes, int device,
                                      void* stream) {
  using namespace louiskv;
  const Fetch plan = {static_cast<const char*>(source), source_row, source_token, place,      place_bytes == 8, missing,
                      static_cast<char*>(target),       target_row, target_slot,  slots};
  // Few tokens of those looked after are missing: where there are warps enough, each looks after many.
  int group = kLanes;
  while (group > 4 && rows * blocks_for(slots, group) < kEnoughWarps) group /= 2;
  const uint64_t bits = bits_of(source) | bits_of(target) | source_row | source_token | target_row | target_slot;
  return copy(plan, rows, slots, group, token_bytes, word_bytes(bits | token_bytes), device, stream);
}

// The first `counts` [rows] of the entries [rows, num_new], of `entry_bytes` each and strides in bytes, into the target
// [rows, capacity], contiguous, behind `lengths` [rows] others.
LOUISKV_EXPORT int louiskv_store_rows(void* target, int64_t capacity, const int64_t* lengths, const void* entries,
                                      int64_t entries_row, int64_t entries_entry, const int64_t* counts, int64_t rows,
                                      int64_t num_new, int64_t entry_bytes, int device, void* stream) {
  using namespace louiskv;
  const Store plan = {static_cast<char*>(target), capacity, lengths, static_cast<const char*>(entries), entries_row,
                      entries_entry,              counts,   num_new, entry_bytes};
  const int word = word_bytes(bits_of(target) | bits_of(entries) | entries_row | entries_entry | entry_bytes);
  // As many entries as a lane copies at once, and no more.
  int group = kLanes;
  while (group > 1 && group * (entry_bytes / word) > kAtOnce * kLanes) group /= 2;
  return copy(plan, rows, num_new, group, entry_bytes, word, device, stream);
}
