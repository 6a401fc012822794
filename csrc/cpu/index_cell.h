// SPDX-License-Identifier: Apache-2.0
// The pass over cells of csrc/common/index_cell.h, CPU. Compiled once per instruction set by csrc/cpu/isa/*.cpp.
// Contiguous tensors: a vector is a run of cells in a row, high-resolution rows are (de)interleaved in registers.
// channels_last: a vector is a run of channels of one cell. Everything stays in registers between load and store; tails and
// odd strides go through a small buffer. Arithmetic in float, double for double.
#pragma once
#include <initializer_list>
#include <type_traits>

#include "../common/index_normalization.h"
#include "simd.h"

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
class CellKernel {
  using A = typename Accumulate<T>::type;
  using V = Vec<A>;
  static constexpr int K = R * R, L = V::size;
  static constexpr unsigned kAll = all_present<K>();
  // Cells of a holistic map whose weights are kept at a time: 16 KiB for ratio 2 in float32.
  static constexpr int64_t kTileCells = 1024;

  const CellArgs& a_;
  // An output of this many bytes does not stay in a cache until it is read, so its lines are written past them.
  static constexpr int64_t kStreamBytes = int64_t{16} << 20;
  // What is fetched into the cache ahead of its load, since hardware prefetchers stop at each page and a cell reads 6 streams:
  // planar tensors this many cells ahead, in whole rows of cells, so that no stream fetches what another one is reading,
  // those of low resolution twice as far; channels_last ones of high resolution this many elements ahead.
  static constexpr int64_t kCellsAhead = 256;
  static constexpr int64_t kElementsAhead = 1024 / sizeof(T);

  const bool planar_, unit_strides_, stream_high_, stream_low_, stream_map_;
  const int64_t rows_ahead_;

  // Lanes of one chunk in one tensor: position k = (dy, dx) of lane l is p[dy * y + dx * x + l * lane]; `ahead` is fetched
  // with it.
  struct Lanes {
    T* p;
    int64_t y, x, lane, ahead;
  };
  // Fast: a full vector of full cells in unit strides; its lanes are cells of a row (planar) or channels of a cell.
  template <bool kPlanar>
  struct Fast {
    static constexpr bool fast = true, planar = kPlanar;
    static constexpr int count = L;
    static constexpr unsigned present = kAll;
  };
  // Anything else. Never inlined, so that there is one copy for all layouts.
  struct Slow {
    static constexpr bool fast = false, planar = false;
    int count;
    unsigned present;
  };

 public:
  explicit CellKernel(const CellArgs& a)
      : a_(a),
        planar_(!a.channels_last),
        unit_strides_(unit_strides()),
        stream_high_(stream_image(a.out_high, a.H * a.W)),
        stream_low_(stream_image(a.out_low, a.h * a.w)),
        stream_map_(stream_map()),
        rows_ahead_((kCellsAhead + a.w - 1) / a.w) {}

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
  bool unit_strides() const {
    const Image* high[] = {&a_.factor_high, &a_.other_high, &a_.out_high};
    const Image* low[] = {&a_.factor_low, &a_.other_low, &a_.out_low};
    for (const Image* t : high) {
      if (t->data && (planar_ ? t->w : t->c) != 1) return false;
    }
    for (const Image* t : low) {
      if (t->data && (planar_ ? t->w : t->c) != 1) return false;
    }
    if (a_.holistic) return true;
    if ((planar_ ? a_.logits.w : a_.logits.c) != 1) return false;
    return !a_.grad_logits.data || (planar_ ? a_.grad_logits.w : a_.grad_logits.c) == 1;
  }

  // Whether an output is large, and every vector of it aligned.
  bool large(const void* data, std::initializer_list<int64_t> strides, int64_t elements) const {
    if (!std::is_same_v<T, float> || !data || reinterpret_cast<uintptr_t>(data) % kVectorBytes) return false;
    for (const int64_t stride : strides) {
      if (stride != 1 && stride % L) return false;
    }
    return elements * int64_t{sizeof(T)} >= kStreamBytes;
  }
  bool stream_image(const Image& t, int64_t pixels) const { return large(t.data, {t.n, t.c, t.h, t.w}, a_.N * a_.C * pixels); }
  bool stream_map() const {
    const IndexMap& t = a_.grad_logits;
    return !a_.holistic && large(t.data, {t.n, t.c, t.k, t.h, t.w}, a_.N * a_.C * K * a_.h * a_.w);
  }

  unsigned present(int64_t i, int64_t j) const {
    const int64_t rows = a_.H - i * R, columns = a_.W - j * R;
    if (rows >= R && columns >= R) return kAll;
    unsigned out = 0;
    for (int k = 0; k < K; ++k) {
      if (k / R < rows && k % R < columns) out |= 1u << k;
    }
    return out;
  }

  // Cells from..to of row i in vectors, then the tail, then the cell that the right border cuts.
  template <class F>
  PYINDEXNET_INLINE void row_chunks(int64_t i, int64_t from, int64_t to, F f) const {
    const int64_t whole = to * R <= a_.W ? to : to - 1;
    const unsigned mask = a_.W >= R ? present(i, 0) : 0;  // of a cell that only the bottom border cuts
    int64_t j = from;
    if (unit_strides_ && mask == kAll) {
      for (; j + L <= whole; j += L) f(j, Fast<true>{});
    }
    while (j < to) {
      const int64_t left = whole - j;
      const Slow chunk = left > 0 ? Slow{static_cast<int>(left < L ? left : L), mask} : Slow{1, present(i, j)};
      f(j, chunk);
      j += chunk.count;
    }
  }
  template <class F>
  PYINDEXNET_INLINE void channel_chunks(unsigned present, F f) const {
    int64_t c = 0;
    if (unit_strides_ && present == kAll) {
      for (; c + L <= a_.C; c += L) f(c, Fast<false>{});
    }
    for (; c < a_.C; c += L) f(c, Slow{static_cast<int>(a_.C - c < L ? a_.C - c : L), present});
  }

  // --- addressing -------------------------------------------------------------------------------------------------------

  static T* data(const Image& t) { return static_cast<T*>(t.data); }
  PYINDEXNET_INLINE Lanes high(const Image& t, int64_t n, int64_t c, int64_t i, int64_t j) const {
    return {data(t) + n * t.n + c * t.c + i * R * t.h + j * R * t.w, t.h, t.w, planar_ ? R * t.w : t.c,
        planar_ ? rows_ahead_ * R * t.h : kElementsAhead};
  }
  PYINDEXNET_INLINE Lanes low(const Image& t, int64_t n, int64_t c, int64_t i, int64_t j) const {
    return {data(t) + n * t.n + c * t.c + i * t.h + j * t.w, 0, 0, planar_ ? t.w : t.c, planar_ ? 2 * rows_ahead_ * t.h : 0};
  }
  // along_w: lanes are cells of a row (always so for holistic maps), else channels.
  PYINDEXNET_INLINE Lanes map(const IndexMap& t, int64_t n, int64_t c, int64_t i, int64_t j, bool along_w) const {
    return {static_cast<T*>(t.data) + n * t.n + c * t.c + i * t.h + j * t.w, R * t.k, t.k, along_w ? t.w : t.c,
        along_w ? rows_ahead_ * t.h : kElementsAhead};
  }

  PYINDEXNET_INLINE static void put(T* p, V a, bool past_caches) {
    if (past_caches) {
      stream(p, a);
    } else {
      store(p, a);
    }
  }

  template <class Chunk>
  PYINDEXNET_INLINE void load_high(Lanes t, Chunk chunk, V (&out)[K]) const {
    if constexpr (Chunk::planar) {
      for (int dy = 0; dy < R; ++dy) {
        V in[R];
        for (int v = 0; v < R; ++v) {
          const T* p = t.p + dy * t.y + v * L;
          __builtin_prefetch(p + t.ahead);
          in[v] = load(p);
        }
        deinterleave<R>(in, out + dy * R);
      }
    } else {
      load_positions(t, chunk, out);
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE void store_high(Lanes t, Chunk chunk, const V (&in)[K]) const {
    if constexpr (Chunk::planar) {
      for (int dy = 0; dy < R; ++dy) {
        V out[R];
        interleave<R>(in + dy * R, out);
        for (int v = 0; v < R; ++v) put(t.p + dy * t.y + v * L, out[v], stream_high_);
      }
    } else {
      store_positions(t, chunk, chunk.present, in, stream_high_);
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE void load_positions(Lanes t, Chunk chunk, V (&out)[K]) const {
    for (int k = 0; k < K; ++k) {
      const T* p = t.p + k / R * t.y + k % R * t.x;
      if constexpr (Chunk::fast) {
        __builtin_prefetch(p + t.ahead);
        out[k] = load(p);
      } else {
        out[k] = (chunk.present >> k) & 1u ? V(load_lanes(p, t.lane, chunk.count)) : V(0);
      }
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE void store_positions(Lanes t, Chunk chunk, unsigned which, const V (&in)[K], bool past_caches) const {
    for (int k = 0; k < K; ++k) {
      T* p = t.p + k / R * t.y + k % R * t.x;
      if constexpr (Chunk::fast) {
        put(p, in[k], past_caches);
      } else if ((which >> k) & 1u) {
        store_lanes(p, t.lane, chunk.count, in[k]);
      }
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE V load_low(Lanes t, Chunk chunk) const {
    if constexpr (Chunk::fast) {
      if constexpr (Chunk::planar) __builtin_prefetch(t.p + t.ahead);
      return load(t.p);
    } else {
      return load_lanes(t.p, t.lane, chunk.count);
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE void store_low(Lanes t, Chunk chunk, V a) const {
    if constexpr (Chunk::fast) {
      put(t.p, a, stream_low_);
    } else {
      store_lanes(t.p, t.lane, chunk.count, a);
    }
  }
  // Logits of absent positions are read as 0, so that nothing they hold can leak; their gradient is written as 0.
  template <class Chunk>
  PYINDEXNET_INLINE void store_grad_logits(Lanes t, Chunk chunk, V (&d)[K]) const {
    if (chunk.present != kAll) {
      for (int k = 0; k < K; ++k) d[k] = (chunk.present >> k) & 1u ? d[k] : V(0);
    }
    store_positions(t, chunk, kAll, d, stream_map_);
  }

  // --- one chunk --------------------------------------------------------------------------------------------------------

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
        row_chunks(i, from, to,
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
