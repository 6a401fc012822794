// SPDX-License-Identifier: Apache-2.0
// Geometry of the dynamic-kernel operators, shared by CPU and CUDA. Equations: pyindexnet/reference/window.py.
//
// A cell (i, j) is one position of the kernels' grid: T = k * k taps, scale^2 sub-positions, a window of x that starts at row
// stride * i - (k - 1) / 2. With z the kernels normalised over the taps and S the sub-positions,
//   y[g, m, s, cell] = sum_t z[g, t, s, cell] x[g, m, window(cell, t)],
//   grad_x[g, m, u] = sum over the (t, cell) that read u and over s of z[g, t, s, cell] grad_y[g, m, s, cell],
//   grad_logits[g] = J(z)^T d,  d[t, s] = sum over the channels m of the group of grad_y[m, s] x[m, t].
// Of rank d (pyindexnet/reference/affinity.py), the logits are computed where they are used, and their gradient is not kept:
//   logits[g, t, s] = sum_e p[e, g, t, s] a[e],  grad_a[e] = sum over (g, t, s) of p[e, g, t, s] grad_logits[g, t, s],
//   grad_p[e, g, t, s] = sum over the cells of a[e] grad_logits[g, t, s].
#pragma once
#include <cstdint>

#include "index_cell.h"

namespace pyindexnet {

inline constexpr int64_t kMaxKernel = 14;
inline constexpr int64_t kMaxRank = 16;

// A strided (N, G, M, H, W) tensor: G groups of M channels, whichever channels those are; strides in elements.
struct Planes {
  void* data = nullptr;
  int64_t n = 0, g = 0, m = 0, h = 0, w = 0;
};

// A strided (N, G, T, scale, scale, h, w) tensor of kernels.
struct Kernels {
  void* data = nullptr;
  int64_t n = 0, g = 0, t = 0, sy = 0, sx = 0, h = 0, w = 0;
};

// A strided (N, d, h, w) affinity map.
struct Affinity {
  void* data = nullptr;
  int64_t n = 0, d = 0, h = 0, w = 0;
};

// A strided (N, d, G * T * scale^2) generator; n = 0 where all samples share it.
struct Generator {
  void* data = nullptr;
  int64_t n = 0, d = 0, c = 0;
};

struct WindowArgs {
  Planes x, y, grad_x;  // y: the output, or in the backward its gradient
  Kernels logits, grad_logits;
  int32_t rank = 0;  // d: logits from `a` and `p`; 0: they are given
  Affinity a, grad_a;
  Generator p, grad_p;
  void* parts = nullptr;  // (N, count_parts, d, channels) of accumulators: grad_p before its sum over the cells
  int64_t count_parts = 0;
  bool shared_p = false;
  int64_t N = 0, G = 1, M = 0;
  int64_t H = 0, W = 0;  // of x
  int64_t P = 0, Q = 0;  // of y
  int64_t h = 0, w = 0;  // cells
  int32_t k = 1, stride = 1, scale = 1;
  bool dense = false;  // logits in the layout of y: absent sub-positions have no memory
  Normalization normalization = Normalization::none;
  DType dtype = DType::float32;
  bool channels_last = false;  // layout of the outputs

  constexpr int64_t taps() const { return int64_t{k} * k; }
  constexpr int64_t group_logits() const { return taps() * scale * scale; }  // of a cell
  constexpr bool need_kernels() const { return grad_logits.data || grad_a.data || parts; }
  constexpr int64_t before() const { return (k - 1) / 2; }  // pixels of the window above and left of the cell's own
};

}  // namespace pyindexnet
