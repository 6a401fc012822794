// SPDX-License-Identifier: Apache-2.0
// Geometry of the indexed operators, shared by CPU and CUDA. Equations: pyindexnet/reference/.
//
// A cell is one low-resolution pixel and its ratio x ratio block of high-resolution pixels, position k = dy*ratio + dx.
// With z the normalised logits of a cell, every forward and backward of the family is one pass over the cells:
//   factor_k = factor_high_k + factor_low          (either part may be missing)
//   out_low  = sum_k z_k factor_k,   out_high_k = z_k factor_k
//   grad_logits = J(z)^T (factor * other)          (other: a high- or a low-resolution tensor)
#pragma once
#include <cstdint>

namespace pyindexnet {

enum class Normalization : int32_t { none, sigmoid, softmax, sigmoid_softmax, softmax_sigmoid };
enum class DType : int32_t { float64, float32, float16, bfloat16 };

// A strided (N, C, H, W) tensor; strides in elements; data null where an operator does not use it.
struct Image {
  void* data = nullptr;
  int64_t n = 0, c = 0, h = 0, w = 0;
};

// A strided (N, Ci, K, h, w) tensor of logits. Ci = 1 is stored with c = 0.
struct IndexMap {
  void* data = nullptr;
  int64_t n = 0, c = 0, k = 0, h = 0, w = 0;
};

struct CellArgs {
  Image factor_high, factor_low, other_high, other_low, out_high, out_low;
  IndexMap logits, grad_logits;
  int64_t N = 0, C = 0, H = 0, W = 0, h = 0, w = 0;  // high resolution H x W, low resolution h x w
  int32_t ratio = 2;
  Normalization normalization = Normalization::none;
  DType dtype = DType::float32;
  bool holistic = false;       // one index map for all channels
  bool channels_last = false;  // layout of the outputs, and the one that the kernels vectorise for
};

// Work items of one call of a CPU kernel: an item is tile_rows low-resolution rows, of one channel or of all.
struct CellRange {
  int64_t begin, end, tile_rows;
};

// Which tensors an operator uses. The kernels take this as a template argument.
struct CellOp {
  bool factor_high, factor_low, other_high, other_low, out_high, out_low;
  constexpr bool backward() const { return other_high || other_low; }
};
//                                          f_high f_low  o_high o_low  high   low
inline constexpr CellOp kPool{true, false, false, false, false, true};
inline constexpr CellOp kPoolBackward{false, true, true, false, true, false};
inline constexpr CellOp kUpsample{false, true, false, false, true, false};
inline constexpr CellOp kUpsampleBackward{true, false, false, true, false, true};
inline constexpr CellOp kPoolSkip{true, false, false, false, true, true};
inline constexpr CellOp kPoolSkipBackward{true, true, true, false, true, false};

}  // namespace pyindexnet
