// SPDX-License-Identifier: Apache-2.0
// The pass over cells of csrc/common/index_cell.h, CPU. Compiled once per instruction set by csrc/cpu/isa/*.cpp.
// Contiguous tensors: a vector is a run of cells in a row, high-resolution rows are (de)interleaved in registers.
// channels_last: a vector is a run of channels of one cell. Everything stays in registers between load and store; tails and
// odd strides go through a small buffer. Arithmetic in float, double for double.
#pragma once
#include "cell_access.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

// Except on the fast path of ratio 2 the normalisations are called, not inlined: all operators and dtypes of a translation
// unit share one copy per K, which keeps its size and compile time down severalfold. The K vectors travel through L1.
template <int K, class V>
__attribute__((noinline)) void normalize_call(V (&a)[K], Normalization how, unsigned present) {
  normalize(a, how, present);
}
template <int K, class V>
__attribute__((noinline)) void normalize_vjp_call(V (&a)[K], V (&d)[K], Normalization how, unsigned present) {
  normalize_vjp(a, d, how, present);
}

template <class T, int R, CellOp Op>
class CellKernel : CellAccess<T, R> {
  using Access = CellAccess<T, R>;
  using typename Access::A, typename Access::V, typename Access::Lanes, typename Access::Slow;
  template <bool kPlanar>
  using Fast = typename Access::template Fast<kPlanar>;
  using Access::a_, Access::planar_, Access::stream_high_, Access::stream_low_, Access::stream_map_;
  using Access::K, Access::L, Access::kAll;
  using Access::load_high, Access::store_high, Access::load_positions, Access::load_low, Access::store_low;
  using Access::present, Access::row_chunks, Access::channel_chunks, Access::high, Access::low, Access::map;
  using Access::store_grad_logits;
  // Cells of a holistic map whose weights are kept at a time: 16 KiB for ratio 2 in float32.
  static constexpr int64_t kTileCells = 1024;

 public:
  explicit CellKernel(const CellArgs& a) : Access(a) {}

  void run(CellRange range) {
    for (int64_t item = range.begin; item < range.end; ++item) {
      if (!planar_) {
        const int64_t n = item / a_.h, i = item % a_.h;
        a_.holistic ? holistic_row_channels_last(n, i) : depthwise_row_channels_last(n, i);
      } else if (a_.holistic) {
        const int64_t tiles = (a_.h + range.tile_rows - 1) / range.tile_rows;
        const int64_t first = item % tiles * range.tile_rows;
        holistic_tile(item / tiles, first, first + range.tile_rows < a_.h ? first + range.tile_rows : a_.h);
      } else {
        const int64_t n = item / (a_.C * a_.h), c = item / a_.h % a_.C, i = item % a_.h;
        row_chunks(i, 0, a_.w, [&](int64_t j, auto chunk) PYINDEXNET_LAMBDA_INLINE { depthwise_chunk(n, c, i, j, chunk); });
      }
    }
    if (stream_high_ || stream_low_ || stream_map_) stream_fence();
  }

 private:
  template <class Chunk>
  PYINDEXNET_INLINE void load_factor(int64_t n, int64_t c, int64_t i, int64_t j, Chunk chunk, V (&t)[K]) const {
    if constexpr (Op.factor_high) load_high(high(a_.factor_high, n, c, i, j), chunk, t);
    if constexpr (Op.factor_low) {
      const V part = load_low(low(a_.factor_low, n, c, i, j), chunk);
      for (int k = 0; k < K; ++k) t[k] = Op.factor_high ? t[k] + part : part;
    }
  }
  // d <- factor * other
  template <class Chunk>
  PYINDEXNET_INLINE void load_product(
      int64_t n, int64_t c, int64_t i, int64_t j, Chunk chunk, const V (&t)[K], V (&d)[K]) const {
    if constexpr (Op.other_high) {
      load_high(high(a_.other_high, n, c, i, j), chunk, d);
      for (int k = 0; k < K; ++k) d[k] = d[k] * t[k];
    } else {
      const V other = load_low(low(a_.other_low, n, c, i, j), chunk);
      for (int k = 0; k < K; ++k) d[k] = other * t[k];
    }
    if (chunk.present != kAll) {
      for (int k = 0; k < K; ++k) d[k] = (chunk.present >> k) & 1u ? d[k] : V(0);
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE void store_outputs(
      int64_t n, int64_t c, int64_t i, int64_t j, Chunk chunk, const V (&z)[K], V (&t)[K]) const {
    for (int k = 0; k < K; ++k) t[k] = t[k] * z[k];
    if constexpr (Op.out_high) {
      if (!Op.backward() || a_.out_high.data) store_high(high(a_.out_high, n, c, i, j), chunk, t);
    }
    if constexpr (Op.out_low) {
      if (Op.backward() && !a_.out_low.data) return;
      V sum = t[0];
      for (int k = 1; k < K; ++k) {
        if (chunk.present == kAll || ((chunk.present >> k) & 1u)) sum = sum + t[k];
      }
      store_low(low(a_.out_low, n, c, i, j), chunk, sum);
    }
  }

  __attribute__((noinline)) void depthwise_chunk(int64_t n, int64_t c, int64_t i, int64_t j, Slow chunk) const {
    depthwise_cells(n, c, i, j, chunk);
  }
  template <bool kPlanar>
  PYINDEXNET_INLINE void depthwise_chunk(int64_t n, int64_t c, int64_t i, int64_t j, Fast<kPlanar> chunk) const {
    depthwise_cells(n, c, i, j, chunk);
  }
  template <class Chunk>
  PYINDEXNET_INLINE void depthwise_cells(int64_t n, int64_t c, int64_t i, int64_t j, Chunk chunk) const {
    V z[K], t[K];
    load_positions(map(a_.logits, n, c, i, j, planar_), chunk, z);
    load_factor(n, c, i, j, chunk, t);
    bool done = false;
    if constexpr (Op.backward()) {
      if (a_.grad_logits.data) {
        V d[K];
        load_product(n, c, i, j, chunk, t, d);
        if constexpr (Chunk::fast && R == 2) {
          normalize_vjp(z, d, a_.normalization, kAll);
        } else {
          normalize_vjp_call(z, d, a_.normalization, chunk.present);
        }
        store_grad_logits(map(a_.grad_logits, n, c, i, j, planar_), chunk, d);
        done = true;
      }
    }
    if constexpr (Chunk::fast && R == 2) {
      if (!done) normalize(z, a_.normalization, kAll);
    } else {
      if (!done) normalize_call(z, a_.normalization, chunk.present);
    }
    store_outputs(n, c, i, j, chunk, z, t);
  }

  void depthwise_row_channels_last(int64_t n, int64_t i) const {
    for (int64_t j = 0; j < a_.w; ++j) {
      channel_chunks(
          present(i, j), [&](int64_t c, auto chunk) PYINDEXNET_LAMBDA_INLINE { depthwise_chunk(n, c, i, j, chunk); });
    }
  }

  // --- holistic maps: weights once per cell, then all channels -------------------------------------------------------------

  // weights[k * stride + cell] <- z, for the chunk's cells of row i.
  __attribute__((noinline)) void holistic_weights(
      int64_t n, int64_t i, int64_t j, Slow chunk, A* weights, int64_t stride) const {
    V z[K];
    load_positions(map(a_.logits, n, 0, i, j, true), chunk, z);
    normalize_call(z, a_.normalization, chunk.present);
    for (int k = 0; k < K; ++k) store_lanes(weights + k * stride, 1, chunk.count, z[k]);
  }
  // grad_logits <- J^T products, for the chunk's cells of row i.
  __attribute__((noinline)) void holistic_grad(
      int64_t n, int64_t i, int64_t j, Slow chunk, const A* products, int64_t stride) const {
    V z[K], d[K];
    load_positions(map(a_.logits, n, 0, i, j, true), chunk, z);
    for (int k = 0; k < K; ++k) d[k] = load_lanes(products + k * stride, 1, chunk.count);
    normalize_vjp_call(z, d, a_.normalization, chunk.present);
    store_grad_logits(map(a_.grad_logits, n, 0, i, j, true), chunk, d);
  }
  // One chunk with its weights z; products, if asked for, are added to sums.
  template <class Chunk>
  PYINDEXNET_INLINE void weighted_cells(
      int64_t n, int64_t c, int64_t i, int64_t j, Chunk chunk, const V (&z)[K], V (*sums)[K]) const {
    V t[K];
    load_factor(n, c, i, j, chunk, t);
    if constexpr (Op.backward()) {
      if (sums) {
        V d[K];
        load_product(n, c, i, j, chunk, t, d);
        for (int k = 0; k < K; ++k) (*sums)[k] = (*sums)[k] + d[k];
      }
    }
    store_outputs(n, c, i, j, chunk, z, t);
  }
  __attribute__((noinline)) void weighted_chunk(
      int64_t n, int64_t c, int64_t i, int64_t j, Slow chunk, const V (&z)[K], V (*sums)[K]) const {
    weighted_cells(n, c, i, j, chunk, z, sums);
  }
  template <bool kPlanar>
  PYINDEXNET_INLINE void weighted_chunk(
      int64_t n, int64_t c, int64_t i, int64_t j, Fast<kPlanar> chunk, const V (&z)[K], V (*sums)[K]) const {
    weighted_cells(n, c, i, j, chunk, z, sums);
  }

  // Rows first..last of all channels, kTileCells cells at a time: as many whole rows as fit, or a part of one.
  void holistic_tile(int64_t n, int64_t first, int64_t last) const {
    const int64_t step = a_.w < kTileCells ? a_.w : kTileCells;
    const int64_t rows = kTileCells / step;
    for (int64_t row = first; row < last; row += rows) {
      const int64_t end = row + rows < last ? row + rows : last;
      for (int64_t from = 0; from < a_.w; from += step) {
        holistic_block(n, row, end, from, from + step < a_.w ? from + step : a_.w);
      }
    }
  }
  void holistic_block(int64_t n, int64_t first, int64_t last, int64_t from, int64_t to) const {
    alignas(64) A weights[K * kTileCells];
    alignas(64) A products[Op.backward() ? K * kTileCells : 1];
    const bool need_products = Op.backward() && a_.grad_logits.data;
    const auto each = [&](auto f) PYINDEXNET_LAMBDA_INLINE {
      for (int64_t i = first; i < last; ++i) {
        this->row_chunks(i, from, to,
            [&](int64_t j, auto chunk) PYINDEXNET_LAMBDA_INLINE { f(i, j, chunk, (i - first) * (to - from) + j - from); });
      }
    };
    each([&](int64_t i, int64_t j, auto chunk, int64_t cell) {
      holistic_weights(n, i, j, Slow{chunk.count, chunk.present}, weights + cell, kTileCells);
    });
    for (int64_t c = 0; c < a_.C; ++c) {
      each([&](int64_t i, int64_t j, auto chunk, int64_t cell) PYINDEXNET_LAMBDA_INLINE {
        V z[K];
        load_cells(weights + cell, chunk, z);
        if (!need_products) return weighted_chunk(n, c, i, j, chunk, z, nullptr);
        if constexpr (Op.backward()) {
          V sums[K];
          if (c == 0) {
            for (int k = 0; k < K; ++k) sums[k] = V(0);
          } else {
            load_cells(products + cell, chunk, sums);
          }
          weighted_chunk(n, c, i, j, chunk, z, &sums);
          for (int k = 0; k < K; ++k) {
            if constexpr (chunk.fast) {
              store(products + k * kTileCells + cell, sums[k]);
            } else {
              store_lanes(products + k * kTileCells + cell, 1, chunk.count, sums[k]);
            }
          }
        }
      });
    }
    if (need_products) {
      each([&](int64_t i, int64_t j, auto chunk, int64_t cell) {
        holistic_grad(n, i, j, Slow{chunk.count, chunk.present}, products + cell, kTileCells);
      });
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE void load_cells(const A* p, Chunk chunk, V (&out)[K]) const {
    for (int k = 0; k < K; ++k) {
      if constexpr (Chunk::fast) {
        out[k] = load(p + k * kTileCells);
      } else {
        out[k] = load_lanes(p + k * kTileCells, 1, chunk.count);
      }
    }
  }

  void holistic_row_channels_last(int64_t n, int64_t i) const {
    alignas(64) A weights[K * L];
    alignas(64) A products[K * L];
    const bool need_products = Op.backward() && a_.grad_logits.data;
    for (int64_t j0 = 0; j0 < a_.w;) {
      // Cells with the same positions present: whole ones, or the one that the right border cuts.
      const int64_t whole = a_.W / R - j0;
      const Slow cells{static_cast<int>(whole > L ? L : whole > 0 ? whole : 1), present(i, j0)};
      holistic_weights(n, i, j0, cells, weights, L);
      for (int l = 0; l < cells.count; ++l) {
        V z[K], sums[K];
        for (int k = 0; k < K; ++k) z[k] = V(weights[k * L + l]), sums[k] = V(0);
        channel_chunks(cells.present, [&](int64_t c, auto chunk) PYINDEXNET_LAMBDA_INLINE {
          weighted_chunk(n, c, i, j0 + l, chunk, z, need_products ? &sums : nullptr);
        });
        for (int k = 0; k < K; ++k) {
          A total = 0;
          for (int lane = 0; lane < L; ++lane) total += sums[k].v[lane];
          products[k * L + l] = total;
        }
      }
      if (need_products) holistic_grad(n, i, j0, cells, products, L);
      j0 += cells.count;
    }
  }
};

template <class T, CellOp Op>
void run_ratio(const CellArgs& a, CellRange range) {
  switch (a.ratio) {
    case 2:
      return CellKernel<T, 2, Op>(a).run(range);
    case 3:
      return CellKernel<T, 3, Op>(a).run(range);
    default:
      return CellKernel<T, 4, Op>(a).run(range);
  }
}

template <CellOp Op>
void run_cells(const CellArgs& a, CellRange range) {
  switch (a.dtype) {
    case DType::float64:
      return run_ratio<double, Op>(a, range);
    case DType::float32:
      return run_ratio<float, Op>(a, range);
    case DType::float16:
      return run_ratio<float16, Op>(a, range);
    case DType::bfloat16:
      return run_ratio<bfloat16, Op>(a, range);
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
