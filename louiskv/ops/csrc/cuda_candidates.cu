// The single tokens that come into question, the best of them, and what is left of units, on a GPU: one block a row.
#include "cuda_block.cuh"
#include "cuda_candidates.h"
#include "cuda_launch.cuh"

namespace louiskv {
namespace {

constexpr int kThreads = 1024;
// Of entries or units, in the shared memory that every block may have; and all numbers in it.
constexpr int64_t kMostRoom = 8192, kMostWords = 12 * 1024 - 64;

// Where units begin, in shared memory if it has room: to look for a place reads one number after the other.
__device__ const int32_t* near(const int32_t* offsets, int units, int32_t* room) {
  if (!room) return offsets;
  for (int unit = threadIdx.x; unit < units; unit += blockDim.x) room[unit] = offsets[unit];
  return room;
}

int64_t words_near(int64_t units, int64_t used) { return units <= kMostWords - used ? units : 0; }

// `rows` is the list of the first row; `counts` are the units of each. Shared memory holds first what there is no scratch
// for, then `is_near` or not where units begin.
__global__ void __launch_bounds__(kThreads, 1)
    list_candidates(Candidates rows, const int64_t* counts, int64_t all_units, int32_t* scratch, bool is_near) {
  extern __shared__ int32_t shared[];
  __shared__ uint32_t of_warps[kLanes];
  const int64_t row = blockIdx.x, listed = row * (rows.width + rows.slots);
  Candidates mine = rows;
  mine.take += row * rows.entries;
  mine.offsets += row * rows.entries;
  mine.slot_place += row * rows.slots;
  mine.units = static_cast<int>(counts[row]);
  mine.unit_offsets = near(rows.unit_offsets + row * all_units, mine.units,
                           is_near ? shared + (scratch ? 0 : rows.entries) : nullptr);
  if (rows.first_entry) mine.first_entry += row * (all_units / rows.stretch);
  mine.place += listed;
  mine.entry += listed;
  mine.resident += listed;
  list_row(mine, scratch ? scratch + row * rows.entries : shared, Block<uint32_t>{of_warps});
}

__global__ void __launch_bounds__(kThreads, 1)
    best_tokens(const float* scores, const int32_t* place, const bool* resident, const int64_t* room, float hold,
                int32_t* wanted, int64_t tokens, int64_t num_wanted) {
  __shared__ Scratch<uint32_t> scratch;
  __shared__ uint32_t of_warps[kLanes];
  const int64_t row = blockIdx.x, first = row * tokens;
  const Scored mine = {scores + first, place + first, resident + first, hold, static_cast<int>(tokens)};
  choose_row(mine, room[row], wanted + row * num_wanted, num_wanted, scratch, Block<uint32_t>{of_warps});
}

template <typename Size>
__global__ void __launch_bounds__(kThreads, 1)
    count_rest(const int32_t* place, int64_t places, const Size* sizes, const int32_t* offsets, const int64_t* counts,
               uint32_t* scratch, Size* left, int64_t units, bool is_near) {
  extern __shared__ int32_t shared[];
  __shared__ uint32_t of_warps[kLanes];
  const int64_t row = blockIdx.x, first = row * units;
  const int count = static_cast<int>(counts[row]);
  const int32_t* begin = near(offsets + first, count, is_near ? shared + (scratch ? 0 : units) : nullptr);
  uint32_t* taken = scratch ? scratch + first : reinterpret_cast<uint32_t*>(shared);
  const Left<Size> mine = {place + row * places,    static_cast<int>(places), sizes + first, begin, count,
                           static_cast<int>(units), taken,                    left + first};
  take_out(mine, Block<uint32_t>{of_warps});
}

}  // namespace
}  // namespace louiskv

// Numbers of 4 bytes of scratch memory that each row of so many entries or units needs beside what a block has; mostly
// 0.
LOUISKV_EXPORT int64_t louiskv_candidates_scratch(int64_t numbers) {
  return numbers > louiskv::kMostRoom ? numbers : 0;
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
  const auto narrow = [](int64_t number) { return static_cast<int>(number); };
  const Candidates first = {take,          offsets,      narrow(entries), slot_place,      narrow(slots),
                            unit_offsets,  narrow(units), first_entry,    narrow(stretch), place,
                            entry,         resident,     narrow(width)};
  const int64_t used = scratch ? 0 : entries, near_words = words_near(units, used);
  return OnDevice(device).run([&] {
    list_candidates<<<rows, kThreads, 4 * (used + near_words), static_cast<cudaStream_t>(stream)>>>(
        first, counts, units, scratch, near_words > 0);
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
    best_tokens<<<rows, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(scores, place, resident, room, hold,
                                                                                  wanted, tokens, num_wanted);
  });
}

// Of place [rows, places], and of the units of the index sizes of 4 or 8 bytes, offsets [rows, units] and counts
// [rows], what is left [rows, units]; all contiguous. Scratch as above, null where none is needed.
LOUISKV_EXPORT int louiskv_count_rest(const int32_t* place, int64_t places, const void* sizes, int size_bytes,
                                      const int32_t* offsets, const int64_t* counts, void* scratch, void* left,
                                      int64_t rows, int64_t units, int device, void* stream) {
  using namespace louiskv;
  if (!rows || !units) return cudaSuccess;
  const int64_t used = scratch ? 0 : units, near_words = words_near(units, used);
  const auto launch = [&](auto size) {
    using Size = decltype(size);
    count_rest<Size><<<rows, kThreads, 4 * (used + near_words), static_cast<cudaStream_t>(stream)>>>(
        place, places, static_cast<const Size*>(sizes), offsets, counts, static_cast<uint32_t*>(scratch),
        static_cast<Size*>(left), units, near_words > 0);
  };
  return OnDevice(device).run([&] { size_bytes == 8 ? launch(int64_t{}) : launch(int32_t{}); });
}
