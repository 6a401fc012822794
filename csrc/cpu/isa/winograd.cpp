// SPDX-License-Identifier: Apache-2.0
// Convolution at stride 1 by minimal filtering, CPU: the kernel, compiled once per instruction set. Derivation and the
// transform of the weights: pyindexnet/ops/winograd.py. Vectors of channels, arithmetic in float. A run of tiles is transformed
// (V = B' d B), multiplied with the weights at each of the 64 points, and transformed back, all in the second-level cache.
#include "../winograd.h"

#include "../simd.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {
namespace {

using V = VecF;
constexpr int L = V::size;
constexpr int S = kWinogradSide;
// Accumulators of the product: rows x 2 vectors, within 32 or 16 registers.
#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 4;
#endif

PYINDEXNET_INLINE V scaled(float factor, V a) {
  return factor * a.v;
}

// B' d at the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity.
PYINDEXNET_INLINE void to_points(const V (&d)[S], V (&out)[S]) {
  out[0] = d[6] - d[0] + scaled(5.25f, d[2] - d[4]);
  out[7] = d[7] - d[1] + scaled(5.25f, d[3] - d[5]);
  const V even1 = d[2] + d[6] - scaled(4.25f, d[4]), odd1 = d[1] + d[5] - scaled(4.25f, d[3]);
  out[1] = even1 + odd1, out[2] = even1 - odd1;
  const V even2 = d[6] + scaled(0.25f, d[2]) - scaled(1.25f, d[4]);
  const V odd2 = scaled(0.5f, d[1]) - scaled(2.5f, d[3]) + scaled(2.0f, d[5]);
  out[3] = even2 + odd2, out[4] = even2 - odd2;
  const V even3 = d[6] + scaled(4.0f, d[2]) - scaled(5.0f, d[4]);
  const V odd3 = scaled(2.0f, d[1]) - scaled(2.5f, d[3]) + scaled(0.5f, d[5]);
  out[5] = even3 + odd3, out[6] = even3 - odd3;
}

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

// m[R, padded] = v[R, C] u[C, padded], NV vectors of columns.
template <int R, int NV>
PYINDEXNET_INLINE void product(const float* v, int64_t C, const float* u, int64_t padded, float* m) {
  V sum[R][NV];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) sum[r][j] = V(0.0f);
  }
  for (int64_t c = 0; c < C; ++c) {
    V b[NV];
    for (int j = 0; j < NV; ++j) b[j] = load(u + c * padded + j * L);
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < NV; ++j) sum[r][j] = sum[r][j] + scaled(v[r * C + c], b[j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) store(m + r * padded + j * L, sum[r][j]);
  }
}

template <int R>
void product_rows(const float* v, int64_t C, const float* u, int64_t padded, float* m) {
  int64_t k = 0;
  for (; k + 2 * L <= padded; k += 2 * L) product<R, 2>(v, C, u + k, padded, m + k);
  for (; k < padded; k += L) product<R, 1>(v, C, u + k, padded, m + k);
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
      for (int64_t p = 0; p < kWinogradPoints; ++p) multiply(p, tiles);
      for (int64_t t = 0; t < tiles; ++t) write(n, row, (first + t) * M, m_ + t * a_.padded);
    }
  }

 private:
  void multiply(int64_t p, int64_t tiles) const {
    const float* const u = a_.weight + p * C_ * a_.padded;
    const float* const v = v_ + p * v_step_;
    float* const m = m_ + p * m_step_;
    int64_t t = 0;
    for (; t + kRows <= tiles; t += kRows) product_rows<kRows>(v + t * C_, C_, u, a_.padded, m + t * a_.padded);
    for (; t + 4 <= tiles; t += 4) product_rows<4>(v + t * C_, C_, u, a_.padded, m + t * a_.padded);
    for (; t < tiles; ++t) product_rows<1>(v + t * C_, C_, u, a_.padded, m + t * a_.padded);
  }

  // The tile of all channels of x whose output begins at (row, column); zero outside the map.
  void read(const ChannelsLast& x, int64_t n, int64_t row, int64_t column, float* v) const {
    if (x.C == 0) return;
    const int64_t before = a_.kernel_size / 2, step = v_step_;
    const T* const data = static_cast<const T*>(x.data) + n * x.n;
    const T* pixel[S][S];
    for (int i = 0; i < S; ++i) {
      for (int j = 0; j < S; ++j) {
        const int64_t h = row - before + i, w = column - before + j;
        const bool inside = h >= 0 && h < a_.H && w >= 0 && w < a_.W;
        pixel[i][j] = inside ? data + h * x.h + w * x.w : zeros_;
      }
    }
    for (int64_t c = 0; c < x.C; c += L) {
      const int64_t at = c + L <= x.C ? c : x.C - L;  // the last vector may overlap the one before it
      V half[S][S];
      for (int j = 0; j < S; ++j) {
        V d[S], out[S];
        for (int i = 0; i < S; ++i) d[i] = load(pixel[i][j] + at);
        to_points(d, out);
        for (int i = 0; i < S; ++i) half[i][j] = out[i];
      }
      for (int i = 0; i < S; ++i) {
        V out[S];
        to_points(half[i], out);
        for (int j = 0; j < S; ++j) store(v + (i * S + j) * step + at, out[j]);
      }
    }
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
