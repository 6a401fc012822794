// SPDX-License-Identifier: Apache-2.0
// The host side of non_background_pool, one for all devices: checks, output allocation, PoolArgs. `Device` supplies
// guard(tensor), forward(args, x) and backward(args, x); the tensor is for allocating scratch memory. Neither is called for N =
// 0.
#pragma once
#include <vector>

#include "index_cell_host.h"
#include "non_background_pool.h"

namespace pyindexnet {

inline PoolArgs pool_args(const char* op, const Tensor& x, const Tensor& mask, const std::vector<int64_t>& kernel_size,
    double eps, bool count_include_pad) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", x.dim());
  PoolArgs a;
  a.N = x.size(0), a.C = x.size(1), a.H = x.size(2), a.W = x.size(3);
  STD_TORCH_CHECK(
      a.C >= 1 && a.H >= 1 && a.W >= 1, op, ": channels, height and width must be at least 1, got ", a.C, ", ", a.H, ", ", a.W);
  a.windows = static_cast<int64_t>(kernel_size.size());
  STD_TORCH_CHECK(
      a.windows >= 1 && a.windows <= kMaxWindows, op, ": kernel_size must have 1 to ", kMaxWindows, " sizes, got ", a.windows);
  STD_TORCH_CHECK(
      a.C % a.windows == 0, op, ": x must have equal chunks of channels for ", a.windows, " windows, got ", a.C, " channels");
  a.chunk = a.C / a.windows;
  for (int64_t s = 0; s < a.windows; ++s) {
    STD_TORCH_CHECK(kernel_size[s] >= 1 && kernel_size[s] % 2 == 1, op, ": kernel_size must be odd, got ", kernel_size[s]);
    a.kernel_size[s] = kernel_size[s];
  }
  STD_TORCH_CHECK(eps > 0, op, ": eps must be above 0, got ", eps);
  check_image(op, "mask", mask, x, 1, a.H, a.W);
  a.dtype = parse_dtype(op, x);
  a.eps = eps, a.count_include_pad = count_include_pad;
  a.channels_last = is_channels_last(x);
  a.x = image(x), a.mask = image(mask);
  return a;
}

template <class Device>
Tensor non_background_pool(Tensor x, Tensor mask, std::vector<int64_t> kernel_size, double eps, bool count_include_pad) {
  PoolArgs a = pool_args("non_background_pool", x, mask, kernel_size, eps, count_include_pad);
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor y = empty_image(x, {a.N, a.C, a.H, a.W}, a.channels_last);
  a.out = image(y);
  if (a.N > 0) Device::forward(a, x);
  return y;
}

template <class Device>
std::tuple<Tensor, Tensor> non_background_pool_backward(Tensor grad, Tensor x, Tensor mask, std::vector<int64_t> kernel_size,
    double eps, bool count_include_pad, bool need_x, bool need_mask) {
  const char* op = "non_background_pool_backward";
  PoolArgs a = pool_args(op, x, mask, kernel_size, eps, count_include_pad);
  check_image(op, "grad", grad, x, a.C, a.H, a.W);
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor grad_x = need_x ? empty_image(x, {a.N, a.C, a.H, a.W}, a.channels_last) : empty_vector(x);
  Tensor grad_mask = need_mask ? torch::stable::empty_like(mask) : empty_vector(x);
  a.grad = image(grad);
  if (need_x) a.out = image(grad_x);
  if (need_mask) a.grad_mask = image(grad_mask);
  if (a.N > 0 && (need_x || need_mask)) Device::backward(a, x);
  return {grad_x, grad_mask};
}

}  // namespace pyindexnet
