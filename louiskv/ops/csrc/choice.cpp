// Which instruction set runs.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace louiskv {

#ifdef LOUISKV_HAS_AVX512
namespace avx512 {
extern const Kernels table;
}
#endif
#ifdef LOUISKV_HAS_AVX2
namespace avx2 {
extern const Kernels table;
}
#endif
namespace portable {
extern const Kernels table;
}

namespace {

const Kernels& choose() {
  const char* asked = std::getenv("LOUISKV_CPU_ISA");
  const auto wanted = [asked](const Kernels& table) { return !asked || !*asked || !std::strcmp(asked, table.name); };
#ifdef LOUISKV_HAS_AVX512
  if (wanted(avx512::table) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return avx512::table;
#endif
#ifdef LOUISKV_HAS_AVX2
  if (wanted(avx2::table) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::table;
#endif
  if (wanted(portable::table)) return portable::table;
  throw std::runtime_error(std::string("LOUISKV_CPU_ISA=") + asked + " is not what this CPU has");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace louiskv
