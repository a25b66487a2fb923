// Which instruction set runs.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

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

// Those that this CPU has, the best first.
std::vector<const Kernels*> found() {
  std::vector<const Kernels*> tables;
#ifdef LOUISKV_HAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    tables.push_back(&avx512::table);
#endif
#ifdef LOUISKV_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&avx2::table);
#endif
  tables.push_back(&portable::table);
  return tables;
}

const Kernels* named(const char* name) {
  for (const Kernels* table : found())
    if (!name || !*name || !std::strcmp(name, table->name)) return table;
  throw std::runtime_error("louiskv: this CPU has " + instruction_sets() + ", not " + name);
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> table{named(std::getenv("LOUISKV_CPU_ISA"))};
  return table;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

std::string instruction_sets() {
  std::string names;
  for (const Kernels* table : found()) names += (names.empty() ? "" : ",") + std::string(table->name);
  return names;
}

void use_instruction_set(const std::string& name) { chosen() = named(name.c_str()); }

}  // namespace louiskv
