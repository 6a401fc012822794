// SPDX-License-Identifier: Apache-2.0
// Host side of encoding.cuh: scratch memory, blocks, the order of the launches.
#pragma once
#include <algorithm>

#include "../common/encoding_host.h"
#include "encoding.cuh"

namespace pyindexnet::cuda {

template <class T, bool kMoments>
class EncodingLauncher {
  using A = Accumulator<T>;

  const EncodingArgs& a_;
  const Tensor& x_;
  EncodingPlan plan_;

  Tensor scratch(int64_t elements) const {
    using torch::headeronly::ScalarType;
    const auto dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
    return torch::stable::empty({&elements, 1}, dtype, std::nullopt, x_.device());
  }
  int64_t channels() const { return a_.N * a_.C * a_.d; }  // blocks of the kernels that have one for each channel and rank
  static size_t sums_bytes(int values) { return static_cast<size_t>(sums_size(values, kThreads)) * sizeof(A); }

  template <class... Parameters, class... Args>
  void run(
      void (*kernel)(const EncodingArgs, const EncodingPlan, Parameters...), dim3 grid, size_t shared, Args... args) const {
    launch(kernel, grid, kThreads, shared, current_stream(), a_, plan_, args...);
  }

  void moments() {
    const Tensor partial = scratch(channels() * 4);
    plan_.partial = partial.mutable_data_ptr();
    run(encoding_moments_kernel<T>, blocks_for(channels(), 1), sums_bytes(2));
    plan_.total = a_.N * a_.groups * a_.d * 2;
    run(encoding_combine_kernel<T>, blocks_for(plan_.total, kThreads), 0);
  }

  void map() {
    // Slices of channels fill the device where there are few positions.
    const int64_t positions = a_.h * a_.w;
    while (plan_.slices < kSlices && plan_.slices < a_.C && positions * a_.N * a_.d * plan_.slices < kFill) {
      plan_.slices *= 2;
    }
    const int64_t cells = kThreads / plan_.slices, tiles = (positions + cells - 1) / cells;
    plan_.tiles = Divider(tiles);
    run(encoding_map_kernel<T>, blocks_for(tiles * a_.d * a_.N, 1), kThreads * sizeof(A));
  }

 public:
  EncodingLauncher(const EncodingArgs& a, const Tensor& x) : a_(a), x_(x) {
    plan_.columns = Divider(a.w), plan_.channels = Divider(a.C), plan_.ranks = Divider(a.d);
    plan_.pixels_w = Divider(a.W), plan_.pixels_h = Divider(a.H);
    plan_.per_group = a.C / a.groups;
    plan_.groups = Divider(a.groups), plan_.group = Divider(plan_.per_group);
    plan_.inverse_positions = 1.0 / static_cast<double>(a.h * a.w);
    plan_.inverse_count = plan_.inverse_positions / static_cast<double>(plan_.per_group);
  }

  void forward() {
    if constexpr (kMoments) {
      moments();
    } else {
      map();
    }
  }

  void backward() {
    Tensor means, partial;
    if constexpr (kMoments) {
      means = scratch(a_.N * a_.groups * a_.d * 2);
      plan_.means = means.mutable_data_ptr();
      moments();
    }
    const Tensor grads = scratch(channels() * 2 * a_.h * a_.w);
    plan_.grads = grads.mutable_data_ptr();
    run(encoding_grads_kernel<T, kMoments>, blocks_for(channels(), 1), sums_bytes(4));
    if (a_.need_kernels()) {
      partial = scratch(channels() * 2 * a_.taps());
      plan_.partial = partial.mutable_data_ptr();
      run(encoding_kernels_kernel<T>, blocks_for(channels(), 1), 2 * kThreads * sizeof(A));
      const int64_t elements = 2 * a_.d * a_.taps();
      plan_.total = a_.Nu * a_.Cu * elements;
      run(encoding_reduce_kernel<T>, blocks_for(plan_.total, kThreads), 0, Divider(elements), Divider(a_.Cu),
          Divider(a_.taps()));
    }
    if (a_.grad_x.data) {
      plan_.total = a_.N * a_.C * a_.H * a_.W;
      run(encoding_gather_kernel<T>, blocks_for(plan_.total, kThreads), 0);
    }
  }
};

// What csrc/common/encoding_host.h asks of a device.
template <bool kMoments>
class EncodingDevice {
  static constexpr int64_t kMost = (int64_t{1} << 31) - 16;  // rows and columns of the gather fit into 32 bits

  template <class F>
  static void by_dtype(const EncodingArgs& a, const Tensor& x, F run) {
    switch (a.dtype) {
      case DType::float64:
        return run(EncodingLauncher<double, kMoments>(a, x));
      case DType::float32:
        return run(EncodingLauncher<float, kMoments>(a, x));
      case DType::float16:
        return run(EncodingLauncher<torch::headeronly::Half, kMoments>(a, x));
      case DType::bfloat16:
        return run(EncodingLauncher<torch::headeronly::BFloat16, kMoments>(a, x));
    }
  }

 public:
  static DeviceGuard guard(const Tensor& x) { return DeviceGuard(x.get_device_index()); }
  static void forward(const EncodingArgs& a, const Tensor& x) {
    by_dtype(a, x, [](auto launcher) { launcher.forward(); });
  }
  static void backward(const EncodingArgs& a, const Tensor& x) {
    STD_TORCH_CHECK(a.H < kMost && a.W < kMost, "pyindexnet: an axis of x has too many elements for one launch");
    by_dtype(a, x, [](auto launcher) { launcher.backward(); });
  }
};

}  // namespace pyindexnet::cuda
