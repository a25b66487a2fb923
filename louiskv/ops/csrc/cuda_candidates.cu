// The single tokens that come into question, and the best of them, on a GPU: one block a row.
#include "cuda_block.cuh"
#include "cuda_candidates.h"
#include "cuda_launch.cuh"

namespace louiskv {
namespace {

constexpr int kThreadsToList = 1024, kThreadsToChoose = 512;
// Of entries, in the shared memory that every block may have.
constexpr int64_t kMostRoom = 8192;

// `rows` is the list of the first row; `counts` are the units of each.
__global__ void __launch_bounds__(kThreadsToList)
    list_candidates(Candidates rows, const int64_t* counts, int64_t all_units, int32_t* scratch) {
  extern __shared__ int32_t shared[];
  __shared__ uint32_t of_warps[kLanes];
  const int64_t row = blockIdx.x, listed = row * (rows.width + rows.slots);
  Candidates mine = rows;
  mine.take += row * rows.entries;
  mine.offsets += row * rows.entries;
  mine.slot_place += row * rows.slots;
  mine.unit_offsets += row * all_units;
  mine.units = counts[row];
  if (rows.first_entry) mine.first_entry += row * (all_units / rows.stretch);
  mine.place += listed;
  mine.entry += listed;
  mine.resident += listed;
  list_row(mine, scratch ? scratch + row * rows.entries : shared, Block<uint32_t>{of_warps});
}

__global__ void __launch_bounds__(kThreadsToChoose, 2)
    best_tokens(const float* scores, const int32_t* place, const bool* resident, const int64_t* room, float hold,
                int32_t* wanted, int64_t tokens, int64_t num_wanted) {
  __shared__ Scratch<uint32_t> scratch;
  __shared__ uint32_t of_warps[kLanes];
  const int64_t row = blockIdx.x, first = row * tokens;
  const Scored mine = {scores + first, place + first, resident + first, hold, tokens};
  choose_row(mine, room[row], wanted + row * num_wanted, num_wanted, scratch, Block<uint32_t>{of_warps});
}

}  // namespace
}  // namespace louiskv

// Numbers of 4 bytes of scratch memory that each row needs beside what a block has; mostly 0.
LOUISKV_EXPORT int64_t louiskv_list_candidates_scratch(int64_t entries) {
  return entries > louiskv::kMostRoom ? entries : 0;
}

// Of take and offsets [rows, entries], slot_place [rows, slots] and the units of the index, whose offsets are
// [rows, units], counts [rows] and first entries [rows, units / stretch], the list [rows, width + slots]; all
// contiguous. First entries are null where unit u is entry u; scratch as above, null where none is needed.
LOUISKV_EXPORT int louiskv_list_candidates(const int32_t* take, const int32_t* offsets, const int32_t* slot_place,
                                           const int32_t* unit_offsets, const int64_t* counts,
                                           const int32_t* first_entry, int64_t stretch, int32_t* scratch,
                                           int32_t* place, int32_t* entry, bool* resident, int64_t rows,
                                           int64_t entries, int64_t slots, int64_t units, int64_t width, int device,
                                           void* stream) {
  using namespace louiskv;
  if (!rows || !(width + slots)) return cudaSuccess;
  const Candidates first = {take,        offsets, entries, slot_place, slots,    unit_offsets, units,
                            first_entry, stretch, place,   entry,      resident, width};
  return OnDevice(device).run([&] {
    list_candidates<<<rows, kThreadsToList, scratch ? 0 : entries * 4, static_cast<cudaStream_t>(stream)>>>(
        first, counts, units, scratch);
  });
}

// Of scores, places and what is resident [rows, tokens] and room [rows] the places wanted [rows, num_wanted]; all
// contiguous.
LOUISKV_EXPORT int louiskv_best_tokens(const float* scores, const int32_t* place, const bool* resident,
                                       const int64_t* room, float hold, int32_t* wanted, int64_t rows, int64_t tokens,
                                       int64_t num_wanted, int device, void* stream) {
  using namespace louiskv;
  if (!rows || !num_wanted) return cudaSuccess;
  return OnDevice(device).run([&] {
    best_tokens<<<rows, kThreadsToChoose, 0, static_cast<cudaStream_t>(stream)>>>(scores, place, resident, room, hold,
                                                                                  wanted, tokens, num_wanted);
  });
}
