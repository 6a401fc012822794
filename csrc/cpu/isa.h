// SPDX-License-Identifier: Apache-2.0
// Run-time choice of the instruction set: one binary serves all machines of an architecture.
#pragma once
#include <string>

namespace pyindexnet {

enum class Isa { generic, avx2, avx512 };

// The best instruction set of this processor, or the one that PYINDEXNET_CPU_ISA names.
// Throws std::runtime_error where that is unknown or not supported here.
Isa active_isa();
std::string isa_name(Isa isa);

}  // namespace pyindexnet

// Declares kernel NAME(parameters...) of csrc/cpu/isa in every instruction set and defines select_NAME(), a pointer to it.
#if defined(__x86_64__)
#define PYINDEXNET_ISA_KERNEL(NAME, ...)                                                                           \
  namespace pyindexnet::avx2 {                                                                                     \
  void NAME(__VA_ARGS__);                                                                                          \
  }                                                                                                                \
  namespace pyindexnet::avx512 {                                                                                   \
  void NAME(__VA_ARGS__);                                                                                          \
  }                                                                                                                \
  namespace pyindexnet::generic {                                                                                  \
  void NAME(__VA_ARGS__);                                                                                          \
  }                                                                                                                \
  namespace pyindexnet {                                                                                           \
  inline auto select_##NAME() -> void (*)(__VA_ARGS__) {                                                           \
    return active_isa() == Isa::avx512 ? &avx512::NAME : active_isa() == Isa::avx2 ? &avx2::NAME : &generic::NAME; \
  }                                                                                                                \
  }
#else
#define PYINDEXNET_ISA_KERNEL(NAME, ...)                 \
  namespace pyindexnet::generic {                        \
  void NAME(__VA_ARGS__);                                \
  }                                                      \
  namespace pyindexnet {                                 \
  inline auto select_##NAME() -> void (*)(__VA_ARGS__) { \
    return &generic::NAME;                               \
  }                                                      \
  }
#endif
