// SPDX-License-Identifier: Apache-2.0
// str arguments of operators. TORCH_BOX's own conversion to std::string leaks one at every call (pytorch/pytorch#191340): 48
// bytes, which also keep glibc from ever reusing the memory of outputs next to them. So we take the handle as it comes.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

namespace pyindexnet {

// Owned by the operator that gets it.
struct StringArgument {
  StringHandle handle;
};

// The text; frees the handle. To be called once, before anything that may throw.
inline std::string take(StringArgument argument) {
  size_t length = 0;
  const char* data = nullptr;
  const bool read = torch_string_length(argument.handle, &length) == AOTI_TORCH_SUCCESS &&
                    torch_string_c_str(argument.handle, &data) == AOTI_TORCH_SUCCESS;
  const std::string text(read ? data : "", read ? length : 0);
  STD_TORCH_CHECK(torch_delete_string(argument.handle) == AOTI_TORCH_SUCCESS && read, "a str argument cannot be read");
  return text;
}

}  // namespace pyindexnet
