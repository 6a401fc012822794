// SPDX-License-Identifier: Apache-2.0
// Arguments of affinity_map and affinity_moments, shared by CPU and CUDA. Equations: pyindexnet/reference/encoding.py,
// affinity_map.py and affinity_moments.py.
//
// The window of position (i, j) starts at pixel (stride i - before, stride j - before) of x. For every channel c and rank r,
//   U[c, r] = sum_t u[c, r, t] x[c, window(t)],   V[c, r] likewise with v;   e = 0, 1 stands for u, v.
// Backwards first form grad_U and grad_V of a channel; grad_u and grad_x follow from these alone.
#pragma once
#include "window.h"

namespace pyindexnet {

// A strided tensor of five dimensions; strides in elements; data null where an operator does not use it.
struct Strided5 {
  void* data = nullptr;
  int64_t s[5] = {};

  constexpr int64_t at(int64_t i0, int64_t i1, int64_t i2, int64_t i3, int64_t i4) const {
    return i0 * s[0] + i1 * s[1] + i2 * s[2] + i3 * s[3] + i4 * s[4];
  }
};

struct EncodingArgs {
  Image x, grad_x;
  Image a;                        // affinity_map: [N, d, h, w], the output or its gradient
  Strided5 moments;               // affinity_moments: [N, groups, d, e, mean or variance], the output or its gradient
  Strided5 kernels[2], grads[2];  // u and v, [N, C, d, k, k]; stride 0 where one serves all
  Strided5 affine, grad_affine;   // [N, C, d, e, factor or shift]
  int64_t N = 0, C = 0, H = 0, W = 0;
  int64_t h = 0, w = 0, d = 1;
  int64_t Nu = 1, Cu = 1;  // sizes of u and v
  int64_t groups = 1;
  int32_t k = 1, stride = 1;
  double scale = 1, slope = 1;
  DType dtype = DType::float32;
  bool is_moments = false;
  bool channels_last = false;  // layout of grad_x and a

  constexpr int64_t taps() const { return int64_t{k} * k; }
  constexpr int64_t before() const { return (k - 1) / 2; }
  constexpr bool need_kernels() const { return grads[0].data || grads[1].data; }
};

}  // namespace pyindexnet
