// What the slots hold from one selection to the next, on a GPU: one block a row.
#include "cuda_block.cuh"
#include "cuda_launch.cuh"
#include "cuda_slots.h"

namespace louiskv {
namespace {

constexpr int kMostThreads = 1024;
// Of places in order, in the shared memory that every block may have.
constexpr int64_t kMostRoom = 8192;

__global__ void __launch_bounds__(kMostThreads)
    assign_slots(const int32_t* slot_place, const int32_t* wanted, int32_t* scratch, int64_t words, int64_t room,
                 int32_t* place, bool* missing, int64_t slots, int64_t num_wanted) {
  extern __shared__ int32_t shared[];
  __shared__ uint32_t of_warps[kLanes];
  const int64_t row = blockIdx.x, first = row * slots;
  const Slots of_row = {slot_place + first, wanted + row * num_wanted, place + first, missing + first,
                        slots,              num_wanted};
  assign_row(of_row, scratch ? scratch + row * words : shared, room, Block<uint32_t>{of_warps});
}

}  // namespace
}  // namespace louiskv

// Numbers of 4 bytes of scratch memory that each row needs beside what a block has; mostly 0.
LOUISKV_EXPORT int64_t louiskv_assign_slots_scratch(int64_t num_wanted) {
  const int64_t room = louiskv::places_for(num_wanted);
  return room > louiskv::kMostRoom ? louiskv::words_for(room) : 0;
}

// Of slot_place [rows, slots] and wanted [rows, num_wanted] the new place [rows, slots], and which are missing; all
// contiguous. Scratch as above, null where none is needed.
LOUISKV_EXPORT int louiskv_assign_slots(const int32_t* slot_place, const int32_t* wanted, int32_t* scratch,
                                        int32_t* place, bool* missing, int64_t rows, int64_t slots, int64_t num_wanted,
                                        int device, void* stream) {
  using namespace louiskv;
  if (!rows || !slots) return cudaSuccess;
  const int64_t room = places_for(num_wanted), words = words_for(room);
  const int threads = slots > 1024 || room > 1024 ? kMostThreads : 256;
  return OnDevice(device).run([&] {
    assign_slots<<<rows, threads, scratch ? 0 : words * 4, static_cast<cudaStream_t>(stream)>>>(
        slot_place, wanted, scratch, words, room, place, missing, slots, num_wanted);
  });
}
