// SPDX-License-Identifier: Apache-2.0
// The one door from host code to CUDA kernels: launch(), the current stream, the device guard, error checks.
// With PYINDEXNET_EMULATE the same names come from emulation.h and the kernels run on host threads.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#if defined(PYINDEXNET_EMULATE)

#include "emulation.h"

#else

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <utility>

// Lives in libtorch_cuda, which a CPU-only PyTorch lacks: the extension must load there too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

// Dynamic shared memory of the kernel, aligned for vectors of T.
#define PYINDEXNET_DYNAMIC_SHARED(T, name)                       \
  extern __shared__ __align__(16) unsigned char shared_bytes_[]; \
  T* const name = reinterpret_cast<T*>(shared_bytes_)

// Where the operators are registered: STABLE_TORCH_LIBRARY_IMPL(pyindexnet, PYINDEXNET_DISPATCH_KEY, m) and their names.
#define PYINDEXNET_DISPATCH_KEY CUDA
#define PYINDEXNET_OP(name) name

namespace pyindexnet::cuda {

inline constexpr int kThreads = 256;                // per block
inline constexpr int kSlices = 8;                   // warps of a block that share a sum over channels
inline constexpr int64_t kFill = int64_t{1} << 19;  // threads that keep any current GPU busy (132 SMs hold 2^18)

inline void check(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, "pyindexnet: ", what, " failed: ", cudaGetErrorString(status));
}

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

// The current stream of the current device; call it under a DeviceGuard.
inline cudaStream_t current_stream() {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "pyindexnet: this PyTorch was built without CUDA");
  void* stream = nullptr;
  const int32_t device = torch::stable::accelerator::getCurrentDeviceIndex();
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "pyindexnet: no current stream on cuda:", device);
  return static_cast<cudaStream_t>(stream);
}

template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), "kernel launch");
}

}  // namespace pyindexnet::cuda

#endif

namespace pyindexnet::cuda {

// Blocks of `per_block` that cover `total`, on grid axis 0.
inline dim3 blocks_for(int64_t total, int64_t per_block) {
  const int64_t blocks = (total + per_block - 1) / per_block;
  STD_TORCH_CHECK(blocks < (int64_t{1} << 31), "pyindexnet: a tensor has too many elements for one launch");
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace pyindexnet::cuda
