// SPDX-License-Identifier: Apache-2.0
// non_background_pool and its backward, CUDA: tiles, scratch memory, launches. Equation:
// pyindexnet/reference/non_background_pool.py; kernels and their plan: non_background_pool.cuh.
// Sums in float32, float64 for float64.
#include "non_background_pool.cuh"

#include <algorithm>

#include "../common/non_background_pool_host.h"

namespace pyindexnet::cuda {
namespace {

constexpr int64_t kSharedBytes = 48 * 1024;
constexpr int64_t kMaxPlanes = 8, kMaxGroup = 32;
constexpr int64_t kFarBlocks = 1024;  // that have a plane of their own in scratch memory

Tensor scratch(const Tensor& like, int64_t elements) {
  using torch::headeronly::ScalarType;
  const auto dtype = like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return torch::stable::empty({&elements, 1}, dtype, std::nullopt, like.device());
}

template <class T>
class PoolLauncher {
  using A = Accumulator<T>;

  const PoolArgs& a_;
  const Tensor& x_;
  PoolPlan plan_{};
  int64_t tiles_ = 1;
  Tensor far_tiles_, inverse_, partial_;  // scratch memory

 public:
  PoolLauncher(const PoolArgs& a, const Tensor& x) : a_(a), x_(x) {
    int64_t k = 1;
    for (int64_t s = 0; s < a.windows; ++s) k = std::max(k, a.kernel_size[s]);
    const int64_t r_h = std::min(k / 2, a.H - 1), r_w = std::min(k / 2, a.W - 1);
    // The largest tile that fits with its borders and its v; rows are runs of memory.
    static constexpr int64_t kTiles[][2] = {{64, 64}, {32, 64}, {32, 32}, {16, 32}, {16, 16}};
    bool fits = false;
    for (const auto& [h, w] : kTiles) {
      if ((h > 32 && a.H <= 32) || (w > 32 && a.W <= 32)) continue;
      set_tile(h, w, r_h, r_w);
      if ((fits = plane_bytes() + inverse_bytes() <= kSharedBytes)) break;
    }
    if (!fits) set_tile(a.H, a.W, r_h, r_w);
    plan_.planes =
        fits ? static_cast<int>(std::clamp<int64_t>((kSharedBytes - inverse_bytes()) / plane_bytes(), 1, kMaxPlanes)) : 1;
    plan_.planes = static_cast<int>(std::min<int64_t>(plan_.planes, a.chunk));
    // As many channels per block as leave the device full: each saves the sums of the mask once more.
    const int64_t wanted = std::clamp<int64_t>(a.N * a.C * tiles_ / (kFill / kThreads), 1, kMaxGroup);
    plan_.group = (wanted + plan_.planes - 1) / plan_.planes * plan_.planes;
    plan_.groups = (a.chunk + plan_.group - 1) / plan_.group;
    if (!fits) {
      far_tiles_ = scratch(x, far_blocks(a.N * a.windows * plan_.groups) * plan_.rows * plan_.pitch);
      plan_.scratch = far_tiles_.mutable_data_ptr();
      denominators();
    }
  }

  void forward() { run(pool_forward_kernel<T>, a_.windows, plan_.groups, plan_.inverse ? 0 : inverse_bytes()); }

  void backward() {
    if (!plan_.inverse) denominators();
    if (a_.grad_mask.data) {
      partial_ = scratch(x_, a_.N * a_.windows * plan_.groups * 2 * a_.H * a_.W);
      plan_.partial = partial_.mutable_data_ptr();
    }
    run(pool_gradients_kernel<T>, a_.windows, plan_.groups);
    if (a_.grad_mask.data) run(pool_grad_mask_kernel<T>, 1, 1);
  }

 private:
  void set_tile(int64_t h, int64_t w, int64_t r_h, int64_t r_w) {
    plan_.tile_h = static_cast<int>(h), plan_.tile_w = static_cast<int>(w);
    const int64_t tiles_h = (a_.H + h - 1) / h, tiles_w = (a_.W + w - 1) / w;
    plan_.tiles_h = Divider(tiles_h), plan_.tiles_w = Divider(tiles_w), tiles_ = tiles_h * tiles_w;
    plan_.rows = static_cast<int>(std::min(h + 2 * r_h, a_.H + r_h));
    plan_.pitch = static_cast<int>(std::min(w + 2 * r_w, a_.W + r_w) | 1);
  }
  int64_t plane_bytes() const { return int64_t{plan_.rows} * plan_.pitch * sizeof(A); }
  int64_t inverse_bytes() const { return int64_t{plan_.tile_h} * plan_.tile_w * sizeof(A); }
  static int64_t far_blocks(int64_t items) { return std::min(items, kFarBlocks); }

  void denominators() {
    inverse_ = scratch(x_, a_.N * a_.windows * a_.H * a_.W);
    plan_.inverse = inverse_.mutable_data_ptr();
    run(pool_denominators_kernel<T>, a_.windows, 1);
  }

  void run(void (*kernel)(PoolArgs, PoolPlan), int64_t windows, int64_t blocks, int64_t more_bytes = 0) {
    PoolPlan plan = plan_;
    plan.windows = Divider(windows), plan.blocks = Divider(blocks);
    plan.items = a_.N * windows * blocks * tiles_;
    const dim3 grid = blocks_for(plan.scratch ? far_blocks(plan.items) : plan.items, 1);
    const int64_t shared = plan.scratch ? 0 : plane_bytes() * plan.planes + more_bytes;
    launch(kernel, grid, kThreads, static_cast<size_t>(shared), current_stream(), a_, plan);
  }
};

struct PoolDevice {
  static DeviceGuard guard(const Tensor& x) { return DeviceGuard(x.get_device_index()); }

  template <class F>
  static void with_dtype(const PoolArgs& a, const Tensor& x, F run) {
    switch (a.dtype) {
      case DType::float64:
        return run(PoolLauncher<double>(a, x));
      case DType::float32:
        return run(PoolLauncher<float>(a, x));
      case DType::float16:
        return run(PoolLauncher<torch::headeronly::Half>(a, x));
      case DType::bfloat16:
        return run(PoolLauncher<torch::headeronly::BFloat16>(a, x));
    }
  }
  static void check(const PoolArgs& a) {
    STD_TORCH_CHECK(a.H < (int64_t{1} << 30) && a.W < (int64_t{1} << 30), "non_background_pool: the map is too large");
  }
  static void forward(const PoolArgs& a, const Tensor& x) {
    check(a);
    with_dtype(a, x, [](auto launcher) { launcher.forward(); });
  }
  static void backward(const PoolArgs& a, const Tensor& x) {
    check(a);
    with_dtype(a, x, [](auto launcher) { launcher.backward(); });
  }
};

}  // namespace
}  // namespace pyindexnet::cuda

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, PYINDEXNET_DISPATCH_KEY, m) {
  using pyindexnet::cuda::PoolDevice;
  m.impl(PYINDEXNET_OP("non_background_pool"), TORCH_BOX(&pyindexnet::non_background_pool<PoolDevice>));
  m.impl(PYINDEXNET_OP("non_background_pool_backward"), TORCH_BOX(&pyindexnet::non_background_pool_backward<PoolDevice>));
}
