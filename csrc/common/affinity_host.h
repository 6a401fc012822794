// SPDX-License-Identifier: Apache-2.0
// The host side of the affinity-aware operators: window_host.h with logits of low rank. Of a device it also asks
// count_parts(WindowArgs), the sums over cells that its backward leaves of grad_p, and sum_parts(WindowArgs), which adds them
// up.
#pragma once
#include "window_host.h"

namespace pyindexnet {

inline Affinity affinity(const Tensor& t) {
  return {t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

inline Generator generator(const Tensor& t) {
  return {t.mutable_data_ptr(), t.size(0) == 1 ? 0 : t.stride(0), t.stride(1), t.stride(2)};
}

// Everything but x, y and the gradients.
inline WindowArgs affinity_args(
    const char* op, const Tensor& x, const Tensor& a, const Tensor& p, Normalization normalization, const WindowOptions& o) {
  WindowArgs args = geometry_args(op, x, normalization, o);
  STD_TORCH_CHECK(a.dim() == 4 && a.size(1) >= 1 && a.size(1) <= kMaxRank, op, ": a must have a rank within 1..", kMaxRank);
  args.rank = static_cast<int32_t>(a.size(1));
  check_image(op, "a", a, x, args.rank, args.h, args.w);
  const int64_t channels = args.G * args.group_logits();
  STD_TORCH_CHECK(p.dim() == 3 && (p.size(0) == args.N || p.size(0) == 1) && p.size(1) == args.rank && p.size(2) == channels,
      op, ": p must be (", args.N, " or 1, ", args.rank, ", ", channels, ")");
  STD_TORCH_CHECK(
      p.scalar_type() == x.scalar_type() && p.device() == x.device(), op, ": p must have the dtype and device of x");
  args.a = affinity(a), args.p = generator(p), args.shared_p = p.size(0) == 1;
  return args;
}

template <class Device>
Tensor affinity_forward(
    const char* op, const Tensor& x, const Tensor& a, const Tensor& p, Normalization how, const WindowOptions& o) {
  WindowArgs args = affinity_args(op, x, a, p, how, o);
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor y = empty_image(x, {args.N, x.size(1), args.P, args.Q}, args.channels_last);
  args.x = planes(x, args.G, false), args.y = planes(y, args.G, false);
  if (args.N > 0) Device::forward(args, y);
  return y;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> affinity_backward(const char* op, const Tensor& grad, const Tensor& x, const Tensor& a,
    const Tensor& p, Normalization how, const WindowOptions& o, bool need_x, bool need_a, bool need_p) {
  WindowArgs args = affinity_args(op, x, a, p, how, o);
  check_image(op, "grad", grad, x, x.size(1), args.P, args.Q);
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor grad_x = need_x ? empty_image(x, {args.N, x.size(1), args.H, args.W}, args.channels_last) : empty_vector(x);
  Tensor grad_a = need_a ? torch::stable::empty_like(a) : empty_vector(x);
  Tensor grad_p = need_p ? torch::stable::empty_like(p) : empty_vector(x);
  args.x = planes(x, args.G, false), args.y = planes(grad, args.G, false);
  if (need_x) args.grad_x = planes(grad_x, args.G, false);
  if (need_a) args.grad_a = affinity(grad_a);
  Tensor parts = empty_vector(x);
  if (need_p) {
    args.grad_p = generator(grad_p);
    args.count_parts = Device::count_parts(args);
    using torch::headeronly::ScalarType;
    const std::array<int64_t, 1> size{args.N * args.count_parts * args.rank * args.G * args.group_logits()};
    parts =
        torch::stable::empty({size.data(), size.size()}, args.dtype == DType::float64 ? ScalarType::Double : ScalarType::Float,
            std::nullopt, x.device(), std::nullopt, std::nullopt);
    args.parts = parts.mutable_data_ptr();
  }
  if (args.N > 0 && (need_x || need_a || need_p)) Device::backward(args, x);
  if (need_p) Device::sum_parts(args);
  return {grad_x, grad_a, grad_p};
}

template <class Device>
Tensor affinity_upsample(Tensor x, Tensor a, Tensor p, int64_t kernel_size, int64_t groups, int64_t scale,
    StringArgument normalization, int64_t height, int64_t width) {
  const char* op = "affinity_upsample";
  const Normalization how = take_normalization(op, normalization);
  return affinity_forward<Device>(op, x, a, p, how, up_options(op, kernel_size, groups, scale, false, height, width));
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> affinity_upsample_backward(Tensor grad, Tensor x, Tensor a, Tensor p, int64_t kernel_size,
    int64_t groups, int64_t scale, StringArgument normalization, int64_t height, int64_t width, bool need_x, bool need_a,
    bool need_p) {
  const char* op = "affinity_upsample_backward";
  const Normalization how = take_normalization(op, normalization);
  const WindowOptions o = up_options(op, kernel_size, groups, scale, false, height, width);
  return affinity_backward<Device>(op, grad, x, a, p, how, o, need_x, need_a, need_p);
}

template <class Device>
Tensor affinity_downsample(
    Tensor x, Tensor a, Tensor p, int64_t kernel_size, int64_t groups, int64_t scale, StringArgument normalization) {
  const char* op = "affinity_downsample";
  const Normalization how = take_normalization(op, normalization);
  return affinity_forward<Device>(op, x, a, p, how, down_options(op, a, kernel_size, groups, scale));
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> affinity_downsample_backward(Tensor grad, Tensor x, Tensor a, Tensor p, int64_t kernel_size,
    int64_t groups, int64_t scale, StringArgument normalization, bool need_x, bool need_a, bool need_p) {
  const char* op = "affinity_downsample_backward";
  const Normalization how = take_normalization(op, normalization);
  const WindowOptions o = down_options(op, a, kernel_size, groups, scale);
  return affinity_backward<Device>(op, grad, x, a, p, how, o, need_x, need_a, need_p);
}

}  // namespace pyindexnet
