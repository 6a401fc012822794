// SPDX-License-Identifier: Apache-2.0
// Gradient of the weights of a convolution by minimal filtering, CPU: the kernel, compiled once per instruction set.
// Derivation: pyindexnet/ops/winograd.py. It is the transpose of the convolution in its weights: tiles of the input are
// transformed as there, tiles of the gradient by A, and the products at each of the 64 points are summed over all tiles.
#include "../winograd_tiles.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {
namespace {

using namespace winograd;

// A d: the polynomial with coefficients d at the points.
template <int M>
PYINDEXNET_INLINE void evaluate(const V (&d)[M], V (&out)[S]) {
  static_assert(M == 4);
  const V even1 = d[0] + d[2], odd1 = d[1] + d[3];
  const V even2 = d[0] + scaled(4.0f, d[2]), odd2 = scaled(2.0f, d[1]) + scaled(8.0f, d[3]);
  const V even3 = d[0] + scaled(0.25f, d[2]), odd3 = scaled(0.5f, d[1]) + scaled(0.125f, d[3]);
  out[0] = d[0], out[7] = d[3];
  out[1] = even1 + odd1, out[2] = even1 - odd1;
  out[3] = even2 + odd2, out[4] = even2 - odd2;
  out[5] = even3 + odd3, out[6] = even3 - odd3;
}

}  // namespace

void winograd_gradient_runs(const WinogradArgs& a, int64_t begin, int64_t end, float* scratch) {
  constexpr int M = 4;
  const int64_t C = a.x[0].C, v_step = a.block * C + kWinogradSkew, z_step = a.block * a.padded + kWinogradSkew;
  const int64_t products = C * a.padded;
  float* const sums = scratch;  // [64, C, padded]
  float* const own =
      sums + kWinogradPoints * products;  // of a run, at a point: few sums of many are more exact than many of one
  float* const v = own + products;
  float* const z = v + kWinogradPoints * v_step;
  float* const zeros = z + kWinogradPoints * z_step;
  // The channels that pad z stay zero.
  std::memset(z, 0, (kWinogradPoints * z_step + (C > a.y.C ? C : a.y.C)) * sizeof(float));
  std::memset(sums, 0, kWinogradPoints * products * sizeof(float));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item % a.runs * a.block;
    const int64_t row = item / a.runs % a.tile_rows * M, n = item / (a.runs * a.tile_rows);
    const int64_t tiles = first + a.block < a.tile_columns ? a.block : a.tile_columns - first;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t column = (first + t) * M, before = a.kernel_size / 2;
      read_tile<S>(a.x[0], n, a.H, a.W, row - before, column - before, zeros, v + t * C, v_step,
          [](const V(&d)[S], V(&out)[S]) PYINDEXNET_LAMBDA_INLINE { to_points(d, out); });
      read_tile<M>(a.y, n, a.H, a.W, row, column, zeros, z + t * a.padded, z_step,
          [](const V(&d)[M], V(&out)[S]) PYINDEXNET_LAMBDA_INLINE { evaluate(d, out); });
    }
    for (int64_t p = 0; p < kWinogradPoints; ++p) {
      multiply({v + p * v_step, 1, C}, C, tiles, z + p * z_step, a.padded, own);
      float* const sum = sums + p * products;
      for (int64_t i = 0; i < products; i += L) store(sum + i, load(sum + i) + load(own + i));
    }
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
