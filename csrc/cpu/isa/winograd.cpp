// SPDX-License-Identifier: Apache-2.0
// Convolution at stride 1 by minimal filtering, CPU: the kernel, compiled once per instruction set. Derivation and the
// transform of the weights: pyindexnet/ops/winograd.py. Vectors of channels, arithmetic in float. A run of tiles is transformed
// (V = B' d B), multiplied with the weights at each of the 64 points, and transformed back, all in the second-level cache.
#include "../winograd.h"

#include "../winograd_tiles.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {
namespace {

using namespace winograd;

// A' m: row i holds the i-th powers of the points.
template <int M>
PYINDEXNET_INLINE void from_points(const V (&m)[S], V (&out)[M]) {
  const V sum1 = m[1] + m[2], sum2 = m[3] + m[4], sum3 = m[5] + m[6];
  const V diff1 = m[1] - m[2], diff2 = m[3] - m[4], diff3 = m[5] - m[6];
  float power = 1;
  for (int i = 0; i < M; ++i, power *= 2) {
    out[i] =
        i % 2 ? diff1 + scaled(power, diff2) + scaled(1 / power, diff3) : sum1 + scaled(power, sum2) + scaled(1 / power, sum3);
  }
  out[0] = out[0] + m[0];
  out[M - 1] = out[M - 1] + m[7];
}

// M: side of an output tile; T: of the maps in memory.
template <int M, class T>
class Winograd {
  const WinogradArgs& a_;
  const int64_t C_;
  T* const zeros_;
  float* const v_;
  float* const m_;
  const int64_t v_step_, m_step_;

 public:
  Winograd(const WinogradArgs& a, float* scratch)
      : a_(a),
        C_(a.x[0].C + a.x[1].C),
        zeros_(reinterpret_cast<T*>(scratch + kWinogradPoints * (a.block * (C_ + a.padded) + 2 * kWinogradSkew))),
        v_(scratch),
        m_(scratch + kWinogradPoints * (a.block * C_ + kWinogradSkew)),
        v_step_(a.block * C_ + kWinogradSkew),
        m_step_(a.block * a.padded + kWinogradSkew) {}

  void run(int64_t begin, int64_t end) const {
    std::memset(zeros_, 0, C_ * sizeof(T));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % a_.runs * a_.block;
      const int64_t row = item / a_.runs % a_.tile_rows * M, n = item / (a_.runs * a_.tile_rows);
      const int64_t tiles = first + a_.block < a_.tile_columns ? a_.block : a_.tile_columns - first;
      for (int64_t t = 0; t < tiles; ++t) {
        read(a_.x[0], n, row, (first + t) * M, v_ + t * C_);
        read(a_.x[1], n, row, (first + t) * M, v_ + t * C_ + a_.x[0].C);
      }
      for (int64_t p = 0; p < kWinogradPoints; ++p) {
        const float* const u = a_.weight + p * C_ * a_.padded;
        multiply({v_ + p * v_step_, C_, 1}, tiles, C_, u, a_.padded, m_ + p * m_step_);
      }
      for (int64_t t = 0; t < tiles; ++t) write(n, row, (first + t) * M, m_ + t * a_.padded);
    }
  }

 private:
  // The tile of all channels of x whose output begins at (row, column); zero outside the map.
  void read(const ChannelsLast& x, int64_t n, int64_t row, int64_t column, float* v) const {
    const int64_t before = a_.kernel_size / 2;
    read_tile<S>(x, n, a_.H, a_.W, row - before, column - before, zeros_, v, v_step_,
        [](const V(&d)[S], V(&out)[S]) PYINDEXNET_LAMBDA_INLINE { to_points(d, out); });
  }

  void write(int64_t n, int64_t row, int64_t column, const float* m) const {
    const ChannelsLast y = a_.y;
    const int64_t step = m_step_;
    const int64_t rows = row + M < a_.H ? M : a_.H - row, columns = column + M < a_.W ? M : a_.W - column;
    T* const corner = static_cast<T*>(y.data) + n * y.n + row * y.h + column * y.w;
    for (int64_t k = 0; k < y.C; k += L) {
      V half[M][S];
      for (int j = 0; j < S; ++j) {
        V in[S], out[M];
        for (int i = 0; i < S; ++i) in[i] = load(m + (i * S + j) * step + k);
        from_points<M>(in, out);
        for (int i = 0; i < M; ++i) half[i][j] = out[i];
      }
      const V bias = load(a_.bias + k);
      const int count = static_cast<int>(y.C - k < L ? y.C - k : L);
      for (int i = 0; i < rows; ++i) {
        V out[M];
        from_points<M>(half[i], out);
        for (int j = 0; j < columns; ++j) {
          const V value = clamp(out[j] + bias, a_.low, a_.high);
          T* const p = corner + i * y.h + j * y.w + k;
          count == L ? store(p, value) : store_lanes(p, 1, count, value);
        }
      }
    }
  }
};

}  // namespace

void winograd_runs(const WinogradArgs& args, int64_t begin, int64_t end, float* scratch) {
  if (args.kernel_size == 5) {
    args.half ? Winograd<4, bfloat16>(args, scratch).run(begin, end) : Winograd<4, float>(args, scratch).run(begin, end);
  } else {
    args.half ? Winograd<6, bfloat16>(args, scratch).run(begin, end) : Winograd<6, float>(args, scratch).run(begin, end);
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
