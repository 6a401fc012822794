// SPDX-License-Identifier: Apache-2.0
// The extension module pyindexnet._C. Loading it registers the kernels of csrc/cpu and csrc/cuda with PyTorch; its attributes
// tell how it was built and what it uses here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace {

// PYINDEXNET_CUDA_ARCHITECTURES is a comma-separated list such as "80,90,100", empty without CUDA.
std::vector<std::string> cuda_architectures() {
  std::vector<std::string> out;
  std::stringstream list(PYINDEXNET_CUDA_ARCHITECTURES);
  for (std::string item; std::getline(list, item, ',');) out.push_back(item);
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of pyindexnet; importing this module registers them with PyTorch.";
  m.attr("compiler") = PYINDEXNET_COMPILER;
  m.attr("torch_target") = "2.11";
  m.attr("built_with_torch") = PYINDEXNET_BUILT_WITH_TORCH;
  m.attr("cuda_architectures") = pybind11::tuple(pybind11::cast(cuda_architectures()));
  m.attr("nvcc") = PYINDEXNET_NVCC;
  m.attr("cpu_isa") = pyindexnet::isa_name(pyindexnet::active_isa());
}
