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
