// SPDX-License-Identifier: Apache-2.0
// What csrc/cpu/batch_norm.cpp (checks, memory, threads) and csrc/cpu/isa/batch_norm.cpp (kernels) share.
// Definition: pyindexnet/ops/batch_norm.py.
#pragma once
#include "../common/index_cell.h"

namespace pyindexnet {

enum class BatchNormStep : int32_t {
  moments,   // of an item: means, sums of squared deviations
  apply,     // out = act(scale x + shift)
  sums,      // of an item: sums of d and of d (x - mean), d = act'(scale x + shift) grad
  gradient,  // out = scale d + slope_x (x - mean) + offset
};

// Parameters of a channel: the rows of `table`.
enum BatchNormParameter : int { kScale, kShift, kMean, kSlopeX, kOffset, kBatchNormParameters };

// Rows of sums of an item of lines: two, and one to work with.
inline constexpr int64_t kBatchNormSums = 3;

// One of two views of a map. Lines of pixels: pixel p has its C channels at x + p * x_line. Planar: a line is a part of at most
// `width` elements of a plane; planes are H*W elements, x_n and x_c apart.
struct BatchNormArgs {
  DType dtype = DType::float32;
  bool planar = false;
  const void* x = nullptr;
  const void* grad = nullptr;
  void* out = nullptr;
  int64_t C = 0, N = 0, plane = 0;
  int64_t x_line = 0, grad_line = 0;                 // pixels
  int64_t x_n = 0, x_c = 0, grad_n = 0, grad_c = 0;  // planar; `out` is dense
  int64_t block = 0;                                 // an item: pixels, or elements of a plane
  int64_t blocks = 0;                                // items of all pixels, or of one plane
  int64_t padded = 0;                                // C rounded up to the widest vector
  const void* table = nullptr;                       // accumulators, [kBatchNormParameters, padded]
  void* partial = nullptr;                           // accumulators, [items, kBatchNormSums, padded], planar [items, 2]
  double slope = 1, high = 0;                        // of the activation: min(z > 0 ? z : slope z, high)

  int64_t items() const { return planar ? N * C * blocks : blocks; }
  int64_t extent() const { return planar ? plane : N * plane; }  // what `blocks` items share
  int64_t channel(int64_t item) const { return item / blocks % C; }
  int64_t count(int64_t item) const {
    const int64_t begin = item % blocks * block;
    return begin + block < extent() ? block : extent() - begin;
  }
};

}  // namespace pyindexnet
