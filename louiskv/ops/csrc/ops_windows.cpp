// Shims of operations on windows.
#include "shim.h"

namespace louiskv {
namespace {

void check_long(const Array& array, int64_t num_rows, const char* name) {
  STD_TORCH_CHECK(array.type == Type::i64 && array.size[0] == num_rows, "louiskv: ", name, " must be int64 [N]");
}

void check_starts(const Array& starts) {
  STD_TORCH_CHECK(starts.type == Type::i32, "louiskv: starts must be int32 [N, W]");
  check_dense(starts, 1, "starts");
}

void cut_runs(const Tensor& starts, const Tensor& opened, const Tensor& lengths, const Tensor& boundary,
              int64_t shortest, int64_t longest) {
  CutRuns p;
  p.starts = array_of(starts);
  p.opened = array_of(opened);
  p.lengths = array_of(lengths);
  p.boundary = array_of(boundary);
  p.shortest = shortest;
  p.longest = longest;
  const int64_t num_rows = p.starts.size[0];
  check_starts(p.starts);
  check_long(p.opened, num_rows, "opened");
  check_long(p.lengths, num_rows, "lengths");
  check_where(p.boundary, num_rows);
  STD_TORCH_CHECK(p.starts.size[1] > 0 && longest > 0, "louiskv: a run needs a window");
  kernels().cut_runs(p);
}

Tensor oldest_runs(const Tensor& starts, const Tensor& first, const Tensor& end, int64_t shortest, int64_t longest,
                   int64_t most) {
  OldestRuns p;
  p.starts = array_of(starts);
  p.first = array_of(first);
  p.end = array_of(end);
  p.shortest = shortest;
  p.longest = longest;
  p.most = most;
  const int64_t num_rows = p.starts.size[0];
  check_starts(p.starts);
  check_long(p.first, num_rows, "first");
  check_long(p.end, num_rows, "end");
  const Tensor out = empty({num_rows}, aoti_torch_dtype_int64());
  p.out = array_of(out);
  kernels().oldest_runs(p);
  return out;
}

Tensor room_beside(const Tensor& first, const Tensor& end, int64_t budget, int64_t window, int64_t coming,
                   int64_t taken_by, int64_t most) {
  RoomBeside p;
  p.first = array_of(first);
  p.end = array_of(end);
  p.budget = budget;
  p.window = window;
  p.coming = coming;
  p.taken_by = taken_by;
  p.most = most;
  const int64_t num_rows = p.first.size[0];
  check_long(p.first, num_rows, "first");
  check_long(p.end, num_rows, "end");
  STD_TORCH_CHECK(taken_by > 0, "louiskv: tokens are taken in multiples of something");
  const Tensor out = empty({num_rows}, aoti_torch_dtype_int64());
  p.out = array_of(out);
  kernels().room_beside(p);
  return out;
}

void check_ring(const Array& first, int64_t num_rows, int64_t num_slots, int64_t num_sinks, int64_t window) {
  check_long(first, num_rows, "first");
  STD_TORCH_CHECK(window > 0 && num_sinks >= 0 && num_sinks + window <= num_slots,
                  "louiskv: a window that does not fit the slots");
}

Tensor take_runs(const Tensor& rows, const Tensor& first, const Tensor& taken, int64_t num_sinks, int64_t window,
                 const std::optional<Tensor>& order) {
  TakeRuns p;
  p.rows = array_of(rows);
  p.first = array_of(first);
  p.order = array_of(order);
  p.taken = array_of(taken);
  p.num_sinks = num_sinks;
  p.window = window;
  check_dense(p.rows, 2, "rows");
  check_dense(p.taken, 2, "taken");
  check_ring(p.first, p.rows.size[0], p.rows.size[1], num_sinks, window);
  STD_TORCH_CHECK(p.taken.type == p.rows.type && p.taken.size[0] == p.rows.size[0] && p.taken.size[2] == p.rows.size[2],
                  "louiskv: what is taken does not fit the rows");
  if (p.order) {
    check_index(p.order, "order");
    STD_TORCH_CHECK(p.order.size[0] == p.taken.size[0] && p.order.size[1] == p.taken.size[1],
                    "louiskv: the order does not fit what is taken");
  }
  const Tensor positions = empty({p.taken.size[0], p.taken.size[1]}, aoti_torch_dtype_int32());
  p.positions = array_of(positions);
  kernels().take_runs(p);
  return positions;
}

void release_runs(const Tensor& bias, const Tensor& first, const Tensor& counts, int64_t num_sinks, int64_t window) {
  ReleaseRuns p;
  p.bias = array_of(bias);
  p.first = array_of(first);
  p.counts = array_of(counts);
  p.num_sinks = num_sinks;
  p.window = window;
  check_ring(p.first, p.bias.size[0], p.bias.size[1], num_sinks, window);
  check_long(p.counts, p.bias.size[0], "counts");
  kernels().release_runs(p);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def(
      "cut_runs(Tensor(a!) starts, Tensor(b!) opened, Tensor lengths, Tensor boundary, int shortest, int longest) -> "
      "()");
  library.def(
      "oldest_runs(Tensor starts, Tensor first, Tensor end, int shortest, int longest, int most) -> Tensor");
  library.def(
      "room_beside(Tensor first, Tensor end, int budget, int window, int coming, int taken_by, int most) -> Tensor");
  library.def(
      "take_runs(Tensor rows, Tensor first, Tensor(a!) taken, int num_sinks, int window, Tensor? order) -> Tensor");
  library.def(
      "release_runs(Tensor(a!) bias, Tensor(b!) first, Tensor counts, int num_sinks, int window) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) {
  library.impl("take_runs", TORCH_BOX(&take_runs));
  library.impl("release_runs", TORCH_BOX(&release_runs));
  library.impl("room_beside", TORCH_BOX(&room_beside));
  library.impl("cut_runs", TORCH_BOX(&cut_runs));
  library.impl("oldest_runs", TORCH_BOX(&oldest_runs));
}

}  // namespace louiskv
