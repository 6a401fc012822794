// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace pyindexnet {

namespace {

bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::generic:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && supported(Isa::avx2);
  }
#endif
  return isa == Isa::generic;
}

Isa choose() {
  const char* wanted = std::getenv("PYINDEXNET_CPU_ISA");
  for (const Isa isa : {Isa::avx512, Isa::avx2, Isa::generic}) {
    if (wanted && *wanted) {
      if (isa_name(isa) != wanted) continue;
      if (!supported(isa)) throw std::runtime_error("PYINDEXNET_CPU_ISA: this processor does not support " + isa_name(isa));
      return isa;
    }
    if (supported(isa)) return isa;
  }
  throw std::runtime_error(std::string("PYINDEXNET_CPU_ISA must be generic, avx2 or avx512, got ") + wanted);
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

std::string isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "generic";
}

}  // namespace pyindexnet
