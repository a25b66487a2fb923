// What the slots hold from one selection to the next, on a GPU: one block a row.
#include "cuda_block.cuh"
#include "cuda_launch.cuh"
#include "cuda_slots.h"

namespace louiskv {
namespace {

constexpr int kMostThreads = 1024;
// Of places in order, in the shared memory that every block may have.
constexpr int64_t kMostRoom = 8192;
// Of all words in it; and of the map, enough for 262,144 places.
constexpr int64_t kMostWords = 12 * 1024 - 64, kMapWords = 8192;

__global__ void __launch_bounds__(kMostThreads, 1)
    assign_slots(Slots of_all, Bias bias, const bool* where, unsigned long long* counts, int32_t* scratch,
                 int64_t words, int64_t room, int map_words) {
  extern __shared__ int32_t shared[];
  __shared__ uint32_t of_warps[kLanes];
  const int64_t row = blockIdx.x;
  const Slots of_row = row_of(of_all, row);
  const Block<uint32_t> team{of_warps};
  if (where && !where[row]) {
    keep_row(of_row, team);
    return;
  }
  // The map comes first, whose words are a multiple of 32.
  const Map map = {reinterpret_cast<uint32_t*>(shared), map_words};
  const Held held = assign_row(of_row, scratch ? scratch + row * words : shared + map_words, room, map, team);
  open_row(of_all, row, bias, team);
  if (counts && threadIdx.x == 0) {
    atomicAdd(counts, held.chosen);
    atomicAdd(counts + 1, held.missing);
  }
}

}  // namespace
}  // namespace louiskv

// Numbers of 4 bytes of scratch memory that each row needs beside what a block has; mostly 0.
LOUISKV_EXPORT int64_t louiskv_assign_slots_scratch(int64_t num_wanted) {
  const int64_t room = louiskv::places_for(num_wanted);
  return room > louiskv::kMostRoom ? louiskv::words_for(room) : 0;
}

// Of slot_place [rows, slots] and wanted [rows, num_wanted], of 4 or 8 bytes each, the new place [rows, slots], and
// which are missing; all contiguous. Rows not in `where` [rows], if that is not null, stay. The bias, if there is one,
// has rows `bias_row` bytes apart and numbers of `bias_bytes`; `closed` is its -inf. Null where nothing is counted.
// Scratch as above, null where none is needed.
LOUISKV_EXPORT int louiskv_assign_slots(const int32_t* slot_place, const void* wanted, int wanted_bytes,
                                        const bool* where, int32_t* scratch, int32_t* place, bool* missing, void* bias,
                                        int64_t bias_row, int bias_bytes, int64_t closed, void* counts, int64_t rows,
                                        int64_t slots, int64_t num_wanted, int device, void* stream) {
  using namespace louiskv;
  if (!rows || !slots) return cudaSuccess;
  const int64_t room = places_for(num_wanted), words = words_for(room);
  const int64_t left = kMostWords - (scratch ? 0 : words), 
                map_words = (left < kMapWords ? left : kMapWords) / 32 * 32;
  const int threads = slots > 256 || room > 256 ? kMostThreads : 256;
  return OnDevice(device).run([&] {
    const Slots of_all = {slot_place, wanted, wanted_bytes == 8, place, missing, slots, num_wanted};
    const Bias biases = {bias, bias_row, bias_bytes, static_cast<uint32_t>(closed)};
    const int64_t bytes = 4 * (map_words + (scratch ? 0 : words));
    assign_slots<<<rows, threads, bytes, static_cast<cudaStream_t>(stream)>>>(
        of_all, biases, where, static_cast<unsigned long long*>(counts), scratch, words, room,
        static_cast<int>(map_words));
  });
}
