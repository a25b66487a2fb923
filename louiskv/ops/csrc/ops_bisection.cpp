// Shim of what puts points in an order in which neighbours are near.
#include "shim.h"

namespace louiskv {
namespace {

Tensor along_widest(const Tensor& points, const Tensor& order, const Tensor& counts, int64_t num_groups,
                    int64_t steps) {
  AlongWidest p;
  p.points = array_of(points);
  p.order = array_of(order);
  p.counts = array_of(counts);
  p.steps = steps;
  STD_TORCH_CHECK(is_real(p.points), "louiskv: points must be float32 or bfloat16");
  check_dense(p.points, 2, "points");
  check_index(p.order, "order");
  check_index(p.counts, "counts");
  const int64_t num_rows = p.points.size[0], width = p.order.size[1];
  STD_TORCH_CHECK(p.order.size[0] == num_rows && p.counts.size[0] == num_rows,
                  "louiskv: points, order and counts do not fit");
  STD_TORCH_CHECK(num_groups > 0 && width % num_groups == 0, "louiskv: an order of ", width, " is not of ", num_groups,
                  " groups");
  const Tensor out = empty({num_rows, num_groups, width / num_groups}, aoti_torch_dtype_float32());
  p.out = array_of(out);
  kernels().along_widest(p, num_threads());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def("along_widest(Tensor points, Tensor order, Tensor counts, int num_groups, int steps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) { library.impl("along_widest", TORCH_BOX(&along_widest)); }

}  // namespace louiskv
