// Shims of operations that move or compare few numbers.
#include "shim.h"

namespace louiskv {
namespace {

Tensor query_cosines(const Tensor& query, const Tensor& other) {
  const Array a = array_of(query), b = array_of(other);
  STD_TORCH_CHECK(a.type == b.type && (a.type == Type::f32 || a.type == Type::bf16), "louiskv: queries of one dtype");
  STD_TORCH_CHECK(a.size[0] == b.size[0] && a.size[1] == b.size[1] && a.size[2] == b.size[2],
                  "louiskv: queries of one shape");
  check_dense(a, 2, "query");
  check_dense(b, 2, "other");
  const Tensor out = empty({a.size[0], a.size[1]}, aoti_torch_dtype_float32());
  kernels().query_cosines(a, b, array_of(out));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def("query_cosines(Tensor query, Tensor other) -> Tensor");
  library.def("instruction_sets() -> str");
  library.def("use_instruction_set(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) { library.impl("query_cosines", TORCH_BOX(&query_cosines)); }

STABLE_TORCH_LIBRARY_IMPL(louiskv, CompositeExplicitAutograd, library) {
  library.impl("instruction_sets", TORCH_BOX(&instruction_sets));
  library.impl("use_instruction_set", TORCH_BOX(&use_instruction_set));
}

}  // namespace louiskv
