// SPDX-License-Identifier: Apache-2.0
// The host side of the indexed operators, one for all devices: checks, output allocation, CellArgs.
// `Device` supplies run<CellOp>(CellArgs) and guard(tensor). C++ repeats only the checks that memory safety needs:
// a direct torch.ops call must not be able to touch memory outside its tensors.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <string>
#include <tuple>

#include "index_cell.h"
#include "string_argument.h"

namespace pyindexnet {
using torch::stable::Tensor;

inline Normalization take_normalization(const char* op, StringArgument argument) {
  const std::string name = take(argument);
  static constexpr const char* kNames[] = {"none", "sigmoid", "softmax", "sigmoid_softmax", "softmax_sigmoid"};
  int found = 0;
  while (found < 5 && name != kNames[found]) ++found;
  STD_TORCH_CHECK(found < 5, op, ": normalization must be a known name, got ", name);
  return static_cast<Normalization>(found);
}

inline DType parse_dtype(const char* op, const Tensor& x) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    default:
      STD_TORCH_CHECK(false, op, ": x must be float64, float32, float16 or bfloat16");
  }
}

// Same rule as pyindexnet.ops._common.memory_format: outputs are channels_last where x is.
inline bool is_channels_last(const Tensor& x) {
  return x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous();
}

inline Tensor empty_image(const Tensor& like, std::array<int64_t, 4> size, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty({size.data(), size.size()}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline Tensor empty_vector(const Tensor& like) {
  return torch::stable::new_empty(like, {0});
}

inline Image image(const Tensor& t) {
  return {t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

inline IndexMap index_map(const Tensor& t) {
  const int64_t c = t.size(1) == 1 ? 0 : t.stride(1);
  return {t.mutable_data_ptr(), t.stride(0), c, t.stride(2), t.stride(3), t.stride(4)};
}

inline void check_image(const char* op, const char* name, const Tensor& t, const Tensor& x, int64_t c, int64_t h, int64_t w) {
  STD_TORCH_CHECK(t.dim() == 4, op, ": ", name, " must have 4 dimensions, got ", t.dim());
  STD_TORCH_CHECK(t.size(0) == x.size(0) && t.size(1) == c && t.size(2) == h && t.size(3) == w, op, ": ", name, " must be (",
      x.size(0), ", ", c, ", ", h, ", ", w, "), got (", t.size(0), ", ", t.size(1), ", ", t.size(2), ", ", t.size(3), ")");
  STD_TORCH_CHECK(
      t.scalar_type() == x.scalar_type() && t.device() == x.device(), op, ": ", name, " must have the dtype and device of x");
}

// Everything but the images: sizes, logits, options. (h, w) follow from the logits and are checked against H x W.
inline CellArgs cell_args(
    const char* op, const Tensor& x, const Tensor& logits, int64_t ratio, Normalization normalization, int64_t H, int64_t W) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", x.dim());
  STD_TORCH_CHECK(logits.dim() == 5, op, ": logits must have 5 dimensions, got ", logits.dim());
  STD_TORCH_CHECK(ratio >= 2 && ratio <= 4, op, ": ratio must be 2, 3 or 4, got ", ratio);
  CellArgs a;
  a.N = x.size(0), a.C = x.size(1), a.H = H, a.W = W;
  a.h = logits.size(3), a.w = logits.size(4);
  a.ratio = static_cast<int32_t>(ratio);
  a.normalization = normalization;
  a.dtype = parse_dtype(op, x);
  a.holistic = logits.size(1) == 1;
  a.channels_last = is_channels_last(x);
  STD_TORCH_CHECK(
      a.C >= 1 && H >= 1 && W >= 1, op, ": channels, height and width must be at least 1, got ", a.C, ", ", H, ", ", W);
  STD_TORCH_CHECK(logits.size(0) == a.N && (logits.size(1) == a.C || logits.size(1) == 1) && logits.size(2) == ratio * ratio &&
                      a.h == (H + ratio - 1) / ratio && a.w == (W + ratio - 1) / ratio,
      op, ": logits must be (", a.N, ", ", a.C, " or 1, ", ratio * ratio, ", ", (H + ratio - 1) / ratio, ", ",
      (W + ratio - 1) / ratio, "), got (", logits.size(0), ", ", logits.size(1), ", ", logits.size(2), ", ", a.h, ", ", a.w,
      ")");
  STD_TORCH_CHECK(logits.scalar_type() == x.scalar_type() && logits.device() == x.device(), op,
      ": logits must have the dtype and device of x");
  a.logits = index_map(logits);
  return a;
}

template <class Device>
Tensor indexed_pool(Tensor x, Tensor logits, int64_t ratio, StringArgument normalization) {
  const Normalization how = take_normalization("indexed_pool", normalization);
  STD_TORCH_CHECK(x.dim() == 4, "indexed_pool: x must have 4 dimensions, got ", x.dim());
  CellArgs a = cell_args("indexed_pool", x, logits, ratio, how, x.size(2), x.size(3));
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor y = empty_image(x, {a.N, a.C, a.h, a.w}, a.channels_last);
  a.factor_high = image(x), a.out_low = image(y);
  Device::template run<kPool>(a);
  return y;
}

template <class Device>
std::tuple<Tensor, Tensor> indexed_pool_backward(
    Tensor grad, Tensor x, Tensor logits, int64_t ratio, StringArgument normalization, bool need_x, bool need_logits) {
  const Normalization how = take_normalization("indexed_pool_backward", normalization);
  STD_TORCH_CHECK(x.dim() == 4, "indexed_pool_backward: x must have 4 dimensions, got ", x.dim());
  CellArgs a = cell_args("indexed_pool_backward", x, logits, ratio, how, x.size(2), x.size(3));
  check_image("indexed_pool_backward", "grad", grad, x, a.C, a.h, a.w);
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor grad_x = need_x ? empty_image(x, {a.N, a.C, a.H, a.W}, a.channels_last) : empty_vector(x);
  Tensor grad_logits = need_logits ? torch::stable::empty_like(logits) : empty_vector(x);
  a.factor_low = image(grad), a.other_high = image(x);
  if (need_x) a.out_high = image(grad_x);
  if (need_logits) a.grad_logits = index_map(grad_logits);
  Device::template run<kPoolBackward>(a);
  return {grad_x, grad_logits};
}

template <class Device>
Tensor indexed_upsample(Tensor x, Tensor logits, int64_t ratio, StringArgument normalization, int64_t height, int64_t width) {
  const Normalization how = take_normalization("indexed_upsample", normalization);
  CellArgs a = cell_args("indexed_upsample", x, logits, ratio, how, height, width);
  check_image("indexed_upsample", "x", x, x, a.C, a.h, a.w);
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor y = empty_image(x, {a.N, a.C, a.H, a.W}, a.channels_last);
  a.factor_low = image(x), a.out_high = image(y);
  Device::template run<kUpsample>(a);
  return y;
}

template <class Device>
std::tuple<Tensor, Tensor> indexed_upsample_backward(
    Tensor grad, Tensor x, Tensor logits, int64_t ratio, StringArgument normalization, bool need_x, bool need_logits) {
  const Normalization how = take_normalization("indexed_upsample_backward", normalization);
  STD_TORCH_CHECK(grad.dim() == 4, "indexed_upsample_backward: grad must have 4 dimensions, got ", grad.dim());
  CellArgs a = cell_args("indexed_upsample_backward", x, logits, ratio, how, grad.size(2), grad.size(3));
  check_image("indexed_upsample_backward", "x", x, x, a.C, a.h, a.w);
  check_image("indexed_upsample_backward", "grad", grad, x, a.C, a.H, a.W);
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor grad_x = need_x ? empty_image(x, {a.N, a.C, a.h, a.w}, a.channels_last) : empty_vector(x);
  Tensor grad_logits = need_logits ? torch::stable::empty_like(logits) : empty_vector(x);
  a.factor_high = image(grad), a.other_low = image(x);
  if (need_x) a.out_low = image(grad_x);
  if (need_logits) a.grad_logits = index_map(grad_logits);
  Device::template run<kUpsampleBackward>(a);
  return {grad_x, grad_logits};
}

template <class Device>
std::tuple<Tensor, Tensor> indexed_pool_skip(Tensor x, Tensor logits, int64_t ratio, StringArgument normalization) {
  const Normalization how = take_normalization("indexed_pool_skip", normalization);
  STD_TORCH_CHECK(x.dim() == 4, "indexed_pool_skip: x must have 4 dimensions, got ", x.dim());
  CellArgs a = cell_args("indexed_pool_skip", x, logits, ratio, how, x.size(2), x.size(3));
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor pooled = empty_image(x, {a.N, a.C, a.h, a.w}, a.channels_last);
  Tensor skip = empty_image(x, {a.N, a.C, a.H, a.W}, a.channels_last);
  a.factor_high = image(x), a.out_low = image(pooled), a.out_high = image(skip);
  Device::template run<kPoolSkip>(a);
  return {pooled, skip};
}

template <class Device>
std::tuple<Tensor, Tensor> indexed_pool_skip_backward(Tensor grad_pooled, Tensor grad_skip, Tensor x, Tensor logits,
    int64_t ratio, StringArgument normalization, bool need_x, bool need_logits) {
  const Normalization how = take_normalization("indexed_pool_skip_backward", normalization);
  STD_TORCH_CHECK(x.dim() == 4, "indexed_pool_skip_backward: x must have 4 dimensions, got ", x.dim());
  CellArgs a = cell_args("indexed_pool_skip_backward", x, logits, ratio, how, x.size(2), x.size(3));
  check_image("indexed_pool_skip_backward", "grad_pooled", grad_pooled, x, a.C, a.h, a.w);
  check_image("indexed_pool_skip_backward", "grad_skip", grad_skip, x, a.C, a.H, a.W);
  [[maybe_unused]] const auto guard = Device::guard(x);
  Tensor grad_x = need_x ? empty_image(x, {a.N, a.C, a.H, a.W}, a.channels_last) : empty_vector(x);
  Tensor grad_logits = need_logits ? torch::stable::empty_like(logits) : empty_vector(x);
  a.factor_low = image(grad_pooled), a.factor_high = image(grad_skip), a.other_high = image(x);
  if (need_x) a.out_high = image(grad_x);
  if (need_logits) a.grad_logits = index_map(grad_logits);
  Device::template run<kPoolSkipBackward>(a);
  return {grad_x, grad_logits};
}

}  // namespace pyindexnet
