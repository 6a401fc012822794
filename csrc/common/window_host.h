// SPDX-License-Identifier: Apache-2.0
// The host side of the dynamic-kernel operators, one for all devices: checks, output allocation, WindowArgs.
// `Device` supplies forward(WindowArgs), backward(WindowArgs) and guard(tensor). C++ repeats only the checks that memory safety
// needs, as in index_cell_host.h.
#pragma once
#include "index_cell_host.h"
#include "window.h"

namespace pyindexnet {

inline Planes planes(const Tensor& t, int64_t groups, bool interleaved) {
  const int64_t c = t.stride(1), per_group = t.size(1) / groups;
  return {t.mutable_data_ptr(), t.stride(0), interleaved ? c : per_group * c, interleaved ? groups * c : c, t.stride(2),
      t.stride(3)};
}

inline Kernels kernels(const Tensor& t, const WindowArgs& a) {
  const int64_t c = t.stride(1), h = t.stride(2), w = t.stride(3), r = a.scale;
  if (a.dense) return {t.mutable_data_ptr(), t.stride(0), a.taps() * c, c, h, w, r * h, r * w};
  return {t.mutable_data_ptr(), t.stride(0), a.taps() * r * r * c, r * r * c, r * c, c, h, w};
}

struct WindowOptions {
  int64_t kernel_size, groups, stride = 1, scale = 1;
  bool dense = false, interleaved = false;
  int64_t height, width;  // of y
};

// Sizes and options.
inline WindowArgs geometry_args(const char* op, const Tensor& x, Normalization normalization, const WindowOptions& o) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", x.dim());
  STD_TORCH_CHECK(o.kernel_size >= 1 && o.kernel_size <= kMaxKernel, op, ": kernel_size must be within 1..", kMaxKernel,
      ", got ", o.kernel_size);
  STD_TORCH_CHECK(o.stride >= 1 && o.stride <= 4 && o.scale >= 1 && o.scale <= 4, op, ": scale must be within 1..4, got ",
      o.stride * o.scale);
  STD_TORCH_CHECK(o.groups >= 1 && x.size(1) >= 1 && x.size(1) % o.groups == 0, op, ": groups must divide the ", x.size(1),
      " channels of x, got ", o.groups);
  WindowArgs a;
  a.N = x.size(0), a.G = o.groups, a.M = x.size(1) / o.groups, a.H = x.size(2), a.W = x.size(3), a.P = o.height, a.Q = o.width;
  a.k = static_cast<int32_t>(o.kernel_size), a.stride = static_cast<int32_t>(o.stride);
  a.scale = static_cast<int32_t>(o.scale), a.dense = o.dense;
  a.h = (a.P + o.scale - 1) / o.scale, a.w = (a.Q + o.scale - 1) / o.scale;
  a.normalization = normalization;
  a.dtype = parse_dtype(op, x);
  a.channels_last = is_channels_last(x);
  STD_TORCH_CHECK(a.H >= 1 && a.W >= 1, op, ": height and width must be at least 1, got ", a.H, ", ", a.W);
  // No fewer pixels than whole cells, no more than begun ones.
  const auto fits = [&](int64_t pixels, int64_t cells, int64_t out) {
    const int64_t grid = o.scale > 1 ? out / o.scale : cells, span = pixels / o.stride;
    return cells >= 1 && (o.scale > 1 ? grid <= pixels && pixels <= cells
                                      : (span > 1 ? span : 1) <= cells && cells <= (pixels + o.stride - 1) / o.stride);
  };
  STD_TORCH_CHECK(fits(a.H, a.h, a.P) && fits(a.W, a.w, a.Q), op, ": an output of ", a.P, " x ", a.Q,
      " does not belong to an x of ", a.H, " x ", a.W);
  return a;
}

// Everything but x, y and their gradients.
inline WindowArgs window_args(
    const char* op, const Tensor& x, const Tensor& logits, Normalization normalization, const WindowOptions& o) {
  STD_TORCH_CHECK(logits.dim() == 4, op, ": kernels must have 4 dimensions, got ", logits.dim());
  WindowArgs a = geometry_args(op, x, normalization, o);
  const int64_t channels = a.G * a.taps() * (o.dense ? 1 : o.scale * o.scale);
  check_image(op, "kernels", logits, x, channels, o.dense ? a.P : a.h, o.dense ? a.Q : a.w);
  a.logits = kernels(logits, a);
  return a;
}

template <class Device>
Tensor window_forward(const char* op, const Tensor& x, const Tensor& logits, Normalization how, const WindowOptions& o) {
  WindowArgs a = window_args(op, x, logits, how, o);
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor y = empty_image(x, {a.N, x.size(1), a.P, a.Q}, a.channels_last);
  a.x = planes(x, a.G, o.interleaved), a.y = planes(y, a.G, o.interleaved);
  if (a.N > 0) Device::forward(a, y);
  return y;
}

template <class Device>
std::tuple<Tensor, Tensor> window_backward(const char* op, const Tensor& grad, const Tensor& x, const Tensor& logits,
    Normalization how, const WindowOptions& o, bool need_x, bool need_logits) {
  WindowArgs a = window_args(op, x, logits, how, o);
  check_image(op, "grad", grad, x, x.size(1), a.P, a.Q);
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor grad_x = need_x ? empty_image(x, {a.N, x.size(1), a.H, a.W}, a.channels_last) : empty_vector(x);
  Tensor grad_logits = need_logits ? torch::stable::empty_like(logits) : empty_vector(x);
  a.x = planes(x, a.G, o.interleaved), a.y = planes(grad, a.G, o.interleaved);
  if (need_x) a.grad_x = planes(grad_x, a.G, o.interleaved);
  if (need_logits) a.grad_logits = kernels(grad_logits, a);
  if (a.N > 0 && (need_x || need_logits)) Device::backward(a, x);
  return {grad_x, grad_logits};
}

// --- the operators -----------------------------------------------------------------------------------------------------------

inline WindowOptions fusion_options(
    const char* op, const Tensor& x, int64_t kernel_size, int64_t groups, const std::string& order) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", x.dim());
  STD_TORCH_CHECK(order == "blocked" || order == "interleaved", op, ": group_order must be a known name, got ", order);
  STD_TORCH_CHECK(kernel_size % 2 == 1, op, ": kernel_size must be odd, got ", kernel_size);
  return {kernel_size, groups, 1, 1, false, order == "interleaved", x.size(2), x.size(3)};
}

template <class Device>
Tensor grouped_spatial_fusion(Tensor x, Tensor kernels, int64_t kernel_size, int64_t groups, StringArgument order) {
  const char* op = "grouped_spatial_fusion";
  return window_forward<Device>(op, x, kernels, Normalization::none, fusion_options(op, x, kernel_size, groups, take(order)));
}

template <class Device>
std::tuple<Tensor, Tensor> grouped_spatial_fusion_backward(Tensor grad, Tensor x, Tensor kernels, int64_t kernel_size,
    int64_t groups, StringArgument order, bool need_x, bool need_kernels) {
  const char* op = "grouped_spatial_fusion_backward";
  const WindowOptions o = fusion_options(op, x, kernel_size, groups, take(order));
  return window_backward<Device>(op, grad, x, kernels, Normalization::none, o, need_x, need_kernels);
}

inline WindowOptions up_options(
    const char* op, int64_t kernel_size, int64_t groups, int64_t scale, bool dense, int64_t height, int64_t width) {
  STD_TORCH_CHECK(kernel_size % 2 == 1, op, ": kernel_size must be odd, got ", kernel_size);
  STD_TORCH_CHECK(height >= 1 && width >= 1, op, ": output_size must be at least 1, got ", height, ", ", width);
  return {kernel_size, groups, 1, scale, dense, false, height, width};
}

template <class Device>
Tensor dynamic_upsample(Tensor x, Tensor logits, int64_t kernel_size, int64_t groups, int64_t scale,
    StringArgument normalization, bool dense, int64_t height, int64_t width) {
  const char* op = "dynamic_upsample";
  const Normalization how = take_normalization(op, normalization);
  return window_forward<Device>(op, x, logits, how, up_options(op, kernel_size, groups, scale, dense, height, width));
}

template <class Device>
std::tuple<Tensor, Tensor> dynamic_upsample_backward(Tensor grad, Tensor x, Tensor logits, int64_t kernel_size, int64_t groups,
    int64_t scale, StringArgument normalization, bool dense, int64_t height, int64_t width, bool need_x, bool need_logits) {
  const char* op = "dynamic_upsample_backward";
  const Normalization how = take_normalization(op, normalization);
  const WindowOptions o = up_options(op, kernel_size, groups, scale, dense, height, width);
  return window_backward<Device>(op, grad, x, logits, how, o, need_x, need_logits);
}

inline WindowOptions down_options(const char* op, const Tensor& grid, int64_t kernel_size, int64_t groups, int64_t scale) {
  STD_TORCH_CHECK(grid.dim() == 4, op, ": the kernels' grid must have 4 dimensions, got ", grid.dim());
  return {kernel_size, groups, scale, 1, false, false, grid.size(2), grid.size(3)};
}

template <class Device>
Tensor dynamic_downsample(
    Tensor x, Tensor logits, int64_t kernel_size, int64_t groups, int64_t scale, StringArgument normalization) {
  const char* op = "dynamic_downsample";
  const Normalization how = take_normalization(op, normalization);
  return window_forward<Device>(op, x, logits, how, down_options(op, logits, kernel_size, groups, scale));
}

template <class Device>
std::tuple<Tensor, Tensor> dynamic_downsample_backward(Tensor grad, Tensor x, Tensor logits, int64_t kernel_size,
    int64_t groups, int64_t scale, StringArgument normalization, bool need_x, bool need_logits) {
  const char* op = "dynamic_downsample_backward";
  const Normalization how = take_normalization(op, normalization);
  const WindowOptions o = down_options(op, logits, kernel_size, groups, scale);
  return window_backward<Device>(op, grad, x, logits, how, o, need_x, need_logits);
}

}  // namespace pyindexnet
