// Shim of k-means.
#include "shim.h"

namespace louiskv {
namespace {

Tensor kmeans(const Tensor& keys, const Tensor& counts, const Tensor& num_clusters, const Tensor& first,
              int64_t iterations, bool cosine) {
  KMeans problem;
  problem.keys = array_of(keys);
  problem.counts = array_of(counts);
  problem.num_clusters = array_of(num_clusters);
  problem.first = array_of(first);
  problem.iterations = iterations;
  problem.cosine = cosine;
  const int64_t num_rows = problem.keys.size[0], num_tokens = problem.keys.size[1];
  STD_TORCH_CHECK(keys.dim() == 3 && (problem.keys.type == Type::f32 || problem.keys.type == Type::bf16),
                  "louiskv: keys [N, T, D] in float32 or bfloat16");
  check_dense(problem.keys, 2, "keys");
  STD_TORCH_CHECK(num_tokens < int64_t(1) << 30, "louiskv: too many tokens");
  for (const Array* each : {&problem.counts, &problem.num_clusters, &problem.first}) {
    check_index(*each, "counts, clusters and first tokens");
    STD_TORCH_CHECK(each->size[0] == num_rows, "louiskv: counts, clusters and first tokens of each row");
  }
  const Tensor out = empty({num_rows, num_tokens}, aoti_torch_dtype_int64());
  problem.out = array_of(out);
  if (num_rows && num_tokens) kernels().kmeans(problem, num_threads());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def(
      "kmeans(Tensor keys, Tensor counts, Tensor num_clusters, Tensor first, int iterations, bool cosine) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) { library.impl("kmeans", TORCH_BOX(&kmeans)); }

}  // namespace louiskv
