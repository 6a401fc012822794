// SPDX-License-Identifier: Apache-2.0
// The host side of affinity_map and affinity_moments, one for all devices: checks, output allocation, EncodingArgs. `Device`
// supplies guard(tensor), forward(args, x) and backward(args, x); the tensor is for allocating scratch memory. Neither is
// called for N = 0. C++ repeats only the checks that memory safety needs, as in index_cell_host.h.
#pragma once
#include <optional>

#include "encoding.h"
#include "index_cell_host.h"

namespace pyindexnet {

inline Strided5 strided5(const Tensor& t) {
  Strided5 out;
  out.data = t.mutable_data_ptr();
  for (int i = 0; i < 5; ++i) out.s[i] = t.stride(i);
  return out;
}

// A gradient that was not asked for stays without data.
inline Strided5 strided5(const Tensor& t, bool needed) {
  return needed ? strided5(t) : Strided5{};
}

inline Strided5 broadcast_kernels(const Tensor& t) {
  Strided5 out = strided5(t);
  if (t.size(0) == 1) out.s[0] = 0;
  if (t.size(1) == 1) out.s[1] = 0;
  return out;
}

inline void check_same(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(
      t.scalar_type() == x.scalar_type() && t.device() == x.device(), op, ": ", name, " must have the dtype and device of x");
}

inline void check_size(const char* op, const char* name, const Tensor& t, const std::array<int64_t, 5>& size) {
  STD_TORCH_CHECK(t.dim() == 5, op, ": ", name, " must have 5 dimensions, got ", t.dim());
  for (int i = 0; i < 5; ++i) {
    STD_TORCH_CHECK(
        t.size(i) == size[i], op, ": ", name, " must have ", size[i], " elements along axis ", i, ", got ", t.size(i));
  }
}

// Everything but the outputs and their gradients.
inline EncodingArgs encoding_args(const char* op, const Tensor& x, const Tensor& u, const Tensor& v, int64_t stride) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", x.dim());
  STD_TORCH_CHECK(u.dim() == 5, op, ": u must have 5 dimensions, got ", u.dim());
  STD_TORCH_CHECK(stride >= 1 && stride <= 4, op, ": stride must be within 1..4, got ", stride);
  EncodingArgs a;
  a.N = x.size(0), a.C = x.size(1), a.H = x.size(2), a.W = x.size(3);
  STD_TORCH_CHECK(
      a.C >= 1 && a.H >= 1 && a.W >= 1, op, ": channels, height and width must be at least 1, got ", a.C, ", ", a.H, ", ", a.W);
  a.Nu = u.size(0), a.Cu = u.size(1), a.d = u.size(2);
  STD_TORCH_CHECK((a.Nu == 1 || a.Nu == a.N) && (a.Cu == 1 || a.Cu == a.C), op, ": u must be for ", a.N, " samples or 1 and ",
      a.C, " channels or 1, got ", a.Nu, " and ", a.Cu);
  STD_TORCH_CHECK(a.d >= 1 && a.d <= kMaxRank, op, ": u must have a rank within 1..", kMaxRank, ", got ", a.d);
  STD_TORCH_CHECK(u.size(3) == u.size(4) && u.size(3) >= 1 && u.size(3) <= kMaxKernel, op,
      ": u must have square kernels of size 1..", kMaxKernel, ", got ", u.size(3), " x ", u.size(4));
  check_size(op, "v", v, {a.Nu, a.Cu, a.d, u.size(3), u.size(3)});
  check_same(op, "u", u, x), check_same(op, "v", v, x);
  a.k = static_cast<int32_t>(u.size(3)), a.stride = static_cast<int32_t>(stride);
  a.h = (a.H + stride - 1) / stride, a.w = (a.W + stride - 1) / stride;
  a.dtype = parse_dtype(op, x);
  a.channels_last = is_channels_last(x);
  a.x = image(x);
  a.kernels[0] = broadcast_kernels(u), a.kernels[1] = broadcast_kernels(v);
  return a;
}

inline EncodingArgs map_args(const char* op, const Tensor& x, const Tensor& u, const Tensor& v,
    const std::optional<Tensor>& affine, int64_t stride, double scale, double slope) {
  EncodingArgs a = encoding_args(op, x, u, v, stride);
  a.scale = scale, a.slope = slope;
  if (affine) {
    check_size(op, "affine", *affine, {a.N, a.C, a.d, 2, 2});
    check_same(op, "affine", *affine, x);
    a.affine = strided5(*affine);
  }
  return a;
}

inline EncodingArgs moments_args(
    const char* op, const Tensor& x, const Tensor& u, const Tensor& v, int64_t groups, int64_t stride) {
  EncodingArgs a = encoding_args(op, x, u, v, stride);
  STD_TORCH_CHECK(groups >= 1 && a.C % groups == 0, op, ": groups must divide the ", a.C, " channels of x, got ", groups);
  a.groups = groups, a.is_moments = true;
  return a;
}

// Gradients of x, u and v.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> encoding_backward(
    EncodingArgs& a, const Tensor& x, const Tensor& u, const Tensor& v, bool need_x, bool need_u, bool need_v) {
  Tensor grad_x = need_x ? empty_image(x, {a.N, a.C, a.H, a.W}, a.channels_last) : empty_vector(x);
  Tensor grad_u = need_u ? torch::stable::empty_like(u) : empty_vector(x);
  Tensor grad_v = need_v ? torch::stable::empty_like(v) : empty_vector(x);
  if (need_x) a.grad_x = image(grad_x);
  a.grads[0] = strided5(grad_u, need_u), a.grads[1] = strided5(grad_v, need_v);
  if (need_x || need_u || need_v || a.grad_affine.data) {
    if (a.N > 0) {
      Device::backward(a, x);
    } else {  // a sum over no samples
      if (need_u) torch::stable::zero_(grad_u);
      if (need_v) torch::stable::zero_(grad_v);
    }
  }
  return {grad_x, grad_u, grad_v};
}

// --- the operators -----------------------------------------------------------------------------------------------------------

template <class Device>
Tensor affinity_map(
    Tensor x, Tensor u, Tensor v, std::optional<Tensor> affine, int64_t stride, double scale, double negative_slope) {
  EncodingArgs a = map_args("affinity_map", x, u, v, affine, stride, scale, negative_slope);
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor out = empty_image(x, {a.N, a.d, a.h, a.w}, a.channels_last);
  a.a = image(out);
  if (a.N > 0) Device::forward(a, x);
  return out;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> affinity_map_backward(Tensor grad, Tensor x, Tensor u, Tensor v,
    std::optional<Tensor> affine, int64_t stride, double scale, double negative_slope, bool need_x, bool need_u, bool need_v,
    bool need_affine) {
  const char* op = "affinity_map_backward";
  EncodingArgs a = map_args(op, x, u, v, affine, stride, scale, negative_slope);
  check_image(op, "grad", grad, x, a.d, a.h, a.w);
  [[maybe_unused]] const auto guard = Device::guard(x);
  a.a = image(grad);
  Tensor grad_affine = need_affine && affine ? torch::stable::empty_like(*affine) : empty_vector(x);
  a.grad_affine = strided5(grad_affine, need_affine && affine);
  const auto [grad_x, grad_u, grad_v] = encoding_backward<Device>(a, x, u, v, need_x, need_u, need_v);
  return {grad_x, grad_u, grad_v, grad_affine};
}

template <class Device>
Tensor affinity_moments(Tensor x, Tensor u, Tensor v, int64_t groups, int64_t stride) {
  EncodingArgs a = moments_args("affinity_moments", x, u, v, groups, stride);
  [[maybe_unused]] const auto guard = Device::guard(x);
  const std::array<int64_t, 5> size{a.N, groups, a.d, 2, 2};
  Tensor out = torch::stable::empty({size.data(), size.size()}, x.scalar_type(), std::nullopt, x.device());
  a.moments = strided5(out);
  if (a.N > 0) Device::forward(a, x);
  return out;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> affinity_moments_backward(
    Tensor grad, Tensor x, Tensor u, Tensor v, int64_t groups, int64_t stride, bool need_x, bool need_u, bool need_v) {
  const char* op = "affinity_moments_backward";
  EncodingArgs a = moments_args(op, x, u, v, groups, stride);
  check_size(op, "grad", grad, {a.N, groups, a.d, 2, 2});
  check_same(op, "grad", grad, x);
  [[maybe_unused]] const auto guard = Device::guard(x);
  a.moments = strided5(grad);
  return encoding_backward<Device>(a, x, u, v, need_x, need_u, need_v);
}

}  // namespace pyindexnet
