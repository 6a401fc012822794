// SPDX-License-Identifier: Apache-2.0
// non_background_pool and its backward, CPU: the kernels, compiled once per instruction set. Equation and symbols:
// pyindexnet/reference/non_background_pool.py; the sums: csrc/cpu/window_map.h. Arithmetic in float, double for double.
#include "../non_background_pool.h"

#include "../window_map.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {
namespace {

template <class T>
class PoolKernel {
  using A = typename Accumulate<T>::type;
  using V = Vec<A>;
  static constexpr int L = V::size;

  const PoolWork& w_;
  const PoolArgs& a_;
  const int64_t map_;
  A* const scratch_;

  // A row or a pixel's channels of one tensor: lane l is p[l * lane].
  struct Lanes {
    T* p;
    int64_t lane;
    PYINDEXNET_INLINE V get(int count) const { return count == L && lane == 1 ? load(p) : load_lanes(p, lane, count); }
    PYINDEXNET_INLINE void put(int count, V value, bool past_caches) const {
      if (count < L || lane != 1) return store_lanes(p, lane, count, value);
      past_caches ? stream(p, value) : store(p, value);
    }
  };
  // One plane of a tensor. By value: the compiler takes it that stores of vectors may change what a reference refers to.
  struct Plane {
    T* p;
    int64_t c, h, w;
    Plane(const Image& t, int64_t n, int64_t channel)
        : p(static_cast<T*>(t.data) + n * t.n + channel * t.c), c(t.c), h(t.h), w(t.w) {}
    PYINDEXNET_INLINE T* at(int64_t i, int64_t j) const { return p + i * h + j * w; }
    PYINDEXNET_INLINE Lanes columns(int64_t i, int64_t j) const { return {at(i, j), w}; }
    PYINDEXNET_INLINE Lanes channels(int64_t i, int64_t j) const { return {at(i, j), c}; }
  };
  // Dense maps in accumulators have no padding: their tails go through a buffer.
  PYINDEXNET_INLINE static V get(const A* p, int count) { return count == L ? load(p) : load_lanes(p, 1, count); }
  PYINDEXNET_INLINE static void put(A* p, int count, V value) {
    count == L ? store(p, value) : store_lanes(p, 1, count, value);
  }

  A* weights(int64_t n) const { return static_cast<A*>(w_.weights) + n * map_; }
  A* inverse(int64_t n, int64_t s) const { return static_cast<A*>(w_.inverse) + (n * a_.windows + s) * map_; }
  A* partial(int64_t n, int64_t s, int64_t group, int64_t which) const {
    return static_cast<A*>(w_.partial) + (((n * a_.windows + s) * w_.groups + group) * 2 + which) * map_;
  }

  // Whether every vector of the output is aligned.
  bool aligned(const Image& t) const {
    if (reinterpret_cast<uintptr_t>(t.data) % kVectorBytes) return false;
    for (const int64_t stride : {t.n, t.c, t.h, t.w}) {
      if (stride != 1 && stride % L) return false;
    }
    return true;
  }

 public:
  PoolKernel(const PoolWork& work, void* scratch)
      : w_(work), a_(work.args), map_(a_.H * a_.W), scratch_(static_cast<A*>(scratch)) {}

  void run(PoolStep step, int64_t begin, int64_t end) const {
    for (int64_t item = begin; item < end; ++item) {
      if (step == PoolStep::weights) {
        copy_mask(item);
      } else if (step == PoolStep::denominators) {
        denominators(item / a_.windows, item % a_.windows);
      } else if (step == PoolStep::reduce) {
        reduce(item / a_.windows, item % a_.windows);
      } else if (step == PoolStep::grad_mask) {
        grad_mask(item);
      } else {
        pool(step, item);
      }
    }
    if (w_.past_caches) stream_fence();
  }

 private:
  // f(i, j, count): all pixels of `rows` rows from `first` in runs of up to L columns.
  template <class F>
  PYINDEXNET_INLINE void each_run(int64_t first, int64_t rows, F f) const {
    const int64_t W = a_.W;
    for (int64_t i = first; i < first + rows; ++i) {
      for (int64_t j = 0; j < W; j += L) f(i, j, static_cast<int>(W - j < L ? W - j : L));
    }
  }

  void copy_mask(int64_t n) const {
    A* const m = weights(n);
    const Plane mask(a_.mask, n, 0);
    const int64_t W = a_.W;
    each_run(0, a_.H, [=](int64_t i, int64_t j, int count) PYINDEXNET_LAMBDA_INLINE {
      put(m + i * W + j, count, mask.columns(i, j).get(count));
    });
  }

  void denominators(int64_t n, int64_t s) const {
    const int64_t H = a_.H, W = a_.W, k = a_.kernel_size[s];
    const bool include_pad = a_.count_include_pad;
    const A eps = static_cast<A>(a_.eps);
    const A* const m = weights(n);
    A* const v = inverse(n, s);
    A* const across = scratch_;  // as long as a row and a vector
    for (int64_t j = 0; j < W + L; ++j) {
      across[j] = static_cast<A>(window_count(j < W ? j : W - 1, W, k, include_pad));
    }
    plane_window_sums<A>(
        across + (W + 2 * L - 1) / L * L, H, W, k, 0, H,
        [=](int64_t i, int64_t j, int count) PYINDEXNET_LAMBDA_INLINE { return get(m + i * W + j, count); },
        [=](int64_t i, int64_t j, int count, V sum) PYINDEXNET_LAMBDA_INLINE {
          const V n = V(static_cast<A>(window_count(i, H, k, include_pad))) * load(across + j);
          const V d = sum + V(eps) * n;
          put(v + i * W + j, count, V(A(1) / d.v));
        });
  }

  void pool(PoolStep step, int64_t item) const {
    const int64_t band = item % w_.bands, group = item / w_.bands % w_.groups;
    const int64_t s = item / (w_.bands * w_.groups) % a_.windows, n = item / (w_.bands * w_.groups * a_.windows);
    const int64_t first = band * w_.rows, rows = first + w_.rows < a_.H ? w_.rows : a_.H - first;
    const int64_t c = s * a_.chunk + group * w_.group;
    const int64_t left = (s + 1) * a_.chunk - c, count = left < w_.group ? left : w_.group;
    if (w_.partial) {
      for (int which = 0; which < 2; ++which) {
        each_run(first, rows, [&](int64_t i, int64_t j, int lanes) PYINDEXNET_LAMBDA_INLINE {
          put(partial(n, s, group, which) + i * a_.W + j, lanes, V(0));
        });
      }
    }
    if (!a_.channels_last) {
      for (int64_t e = 0; e < count; ++e) plane(step, n, s, c + e, group, first, rows);
    } else if (count > 2 * L && w_.width >= 4) {
      for (int64_t e = 0; e < count; e += 4 * L) pixels<4>(step, n, s, c + e, count - e, group, first, rows);
    } else if (count > L && w_.width >= 2) {
      for (int64_t e = 0; e < count; e += 2 * L) pixels<2>(step, n, s, c + e, count - e, group, first, rows);
    } else {
      for (int64_t e = 0; e < count; e += L) pixels<1>(step, n, s, c + e, count - e, group, first, rows);
    }
  }

  // --- a vector is a run of columns ---------------------------------------------------------------------------------------

  void plane(PoolStep step, int64_t n, int64_t s, int64_t c, int64_t group, int64_t first, int64_t rows) const {
    const A *const m = weights(n), *const v = inverse(n, s);
    const int64_t W = a_.W;
    const Plane x(a_.x, n, c), out(a_.out, n, c);
    const bool past_caches = w_.past_caches && aligned(a_.out);
    // Sums of `scale` times `in`, whose next plane is fetched meanwhile: the sums themselves wait for no memory.
    const auto sums = [&](Plane in, const A* scale, auto write) PYINDEXNET_LAMBDA_INLINE {
      plane_window_sums<A>(
          scratch_, a_.H, W, a_.kernel_size[s], first, rows,
          [=](int64_t i, int64_t j, int count)
              PYINDEXNET_LAMBDA_INLINE { return in.columns(i, j).get(count) * get(scale + i * W + j, count); },
          [=](int64_t i, int64_t j, int count, V sum) PYINDEXNET_LAMBDA_INLINE {
            __builtin_prefetch(in.at(i, j) + in.c, 0, 2);
            write(i, j, count, i * W + j, sum);
          });
    };
    if (step == PoolStep::forward) {
      return sums(x, m, [=](int64_t i, int64_t j, int count, int64_t at, V sum) PYINDEXNET_LAMBDA_INLINE {
        out.columns(i, j).put(count, sum * get(v + at, count), past_caches);
      });
    }
    const Plane grad(a_.grad, n, c);
    const bool need_mask = w_.partial, need_x = a_.out.data;
    A *const xu = partial(n, s, group, 0), *const gy = partial(n, s, group, 1);
    sums(grad, v, [=](int64_t i, int64_t j, int count, int64_t at, V u) PYINDEXNET_LAMBDA_INLINE {
      if (need_x) out.columns(i, j).put(count, u * get(m + at, count), past_caches);
      if (need_mask) put(xu + at, count, get(xu + at, count) + x.columns(i, j).get(count) * u);
    });
    if (!need_mask) return;
    sums(x, m, [=](int64_t i, int64_t j, int count, int64_t at, V sum) PYINDEXNET_LAMBDA_INLINE {
      put(gy + at, count, get(gy + at, count) + grad.columns(i, j).get(count) * (sum * get(v + at, count)));
    });
  }

  // --- a vector is a run of channels --------------------------------------------------------------------------------------

  template <int kWidth>
  PYINDEXNET_INLINE static Pack<V, kWidth> read_pixel(Lanes from, int64_t left) {
    Pack<V, kWidth> out;
    for (int u = 0; u < kWidth; ++u) {
      const int64_t rest = left - u * L;
      out.at[u] = rest > 0 ? Lanes{from.p + u * L * from.lane, from.lane}.get(rest < L ? static_cast<int>(rest) : L) : V(0);
    }
    return out;
  }
  template <int kWidth>
  PYINDEXNET_INLINE static void write_pixel(Lanes to, int64_t left, const Pack<V, kWidth>& value, A scale, bool past_caches) {
    for (int u = 0; u < kWidth && left > u * L; ++u) {
      const int count = static_cast<int>(left - u * L < L ? left - u * L : L);
      Lanes{to.p + u * L * to.lane, to.lane}.put(count, value.at[u] * V(scale), past_caches);
    }
  }
  // Sum over the channels of a product.
  template <int kWidth>
  PYINDEXNET_INLINE static A dot(const Pack<V, kWidth>& a, const Pack<V, kWidth>& b) {
    V sum = a.at[0] * b.at[0];
    for (int u = 1; u < kWidth; ++u) sum = sum + a.at[u] * b.at[u];
    A lanes[L];
    store(lanes, sum);
    for (int half = L / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    return lanes[0];
  }

  template <int kWidth>
  void pixels(PoolStep step, int64_t n, int64_t s, int64_t c, int64_t left, int64_t group, int64_t first, int64_t rows) const {
    using P = Pack<V, kWidth>;
    const A *const m = weights(n), *const v = inverse(n, s);
    const int64_t W = a_.W;
    const Plane x(a_.x, n, c), out(a_.out, n, c);
    const bool past_caches = w_.past_caches && aligned(a_.out);
    const auto sums = [&](Plane in, const A* scale, auto write) PYINDEXNET_LAMBDA_INLINE {
      channel_window_sums<A, kWidth>(
          scratch_, a_.H, W, a_.kernel_size[s], first, rows,
          [=](int64_t i, int64_t j) PYINDEXNET_LAMBDA_INLINE {
            P pixel = read_pixel<kWidth>(in.channels(i, j), left);
            for (int u = 0; u < kWidth; ++u) pixel.at[u] = pixel.at[u] * V(scale[i * W + j]);
            return pixel;
          },
          [=](int64_t i, int64_t j, const P& sum) PYINDEXNET_LAMBDA_INLINE { write(i, j, i * W + j, sum); });
    };
    if (step == PoolStep::forward) {
      return sums(x, m, [=](int64_t i, int64_t j, int64_t at, const P& sum) PYINDEXNET_LAMBDA_INLINE {
        write_pixel(out.channels(i, j), left, sum, v[at], past_caches);
      });
    }
    const Plane grad(a_.grad, n, c);
    const bool need_mask = w_.partial, need_x = a_.out.data;
    A *const xu = partial(n, s, group, 0), *const gy = partial(n, s, group, 1);
    sums(grad, v, [=](int64_t i, int64_t j, int64_t at, const P& u) PYINDEXNET_LAMBDA_INLINE {
      if (need_x) write_pixel(out.channels(i, j), left, u, m[at], past_caches);
      if (need_mask) xu[at] += dot(read_pixel<kWidth>(x.channels(i, j), left), u);
    });
    if (!need_mask) return;
    sums(x, m, [=](int64_t i, int64_t j, int64_t at, const P& sum) PYINDEXNET_LAMBDA_INLINE {
      gy[at] += dot(read_pixel<kWidth>(grad.channels(i, j), left), sum) * v[at];
    });
  }

  // --- the gradient of the mask -------------------------------------------------------------------------------------------

  // Into the first group's map: sum_c x u - S(v sum_c g y).
  void reduce(int64_t n, int64_t s) const {
    const A* const v = inverse(n, s);
    A* const total = partial(n, s, 0, 0);
    const auto over_groups = [&](int64_t which, int64_t at, int count) PYINDEXNET_LAMBDA_INLINE {
      V sum = get(partial(n, s, 0, which) + at, count);
      for (int64_t g = 1; g < w_.groups; ++g) sum = sum + get(partial(n, s, g, which) + at, count);
      return sum;
    };
    plane_window_sums<A>(
        scratch_, a_.H, a_.W, a_.kernel_size[s], 0, a_.H,
        [&](int64_t i, int64_t j, int count) PYINDEXNET_LAMBDA_INLINE {
          const int64_t at = i * a_.W + j;
          return get(v + at, count) * over_groups(1, at, count);
        },
        [&](int64_t i, int64_t j, int count, V sum) PYINDEXNET_LAMBDA_INLINE {
          const int64_t at = i * a_.W + j;
          put(total + at, count, over_groups(0, at, count) - sum);
        });
  }

  void grad_mask(int64_t n) const {
    const Plane to(a_.grad_mask, n, 0);
    each_run(0, a_.H, [&](int64_t i, int64_t j, int count) PYINDEXNET_LAMBDA_INLINE {
      const int64_t at = i * a_.W + j;
      V sum = get(partial(n, 0, 0, 0) + at, count);
      for (int64_t s = 1; s < a_.windows; ++s) sum = sum + get(partial(n, s, 0, 0) + at, count);
      // The gradient is of the order of 1 / eps where a window holds no mask.
      if constexpr (std::is_same_v<T, float16>) sum = clamp(sum, -65504.0f, 65504.0f);
      to.columns(i, j).put(count, sum, false);
    });
  }
};

}  // namespace

void non_background_pool_items(const PoolWork& work, PoolStep step, int64_t begin, int64_t end, void* scratch) {
  switch (work.args.dtype) {
    case DType::float64:
      return PoolKernel<double>(work, scratch).run(step, begin, end);
    case DType::float32:
      return PoolKernel<float>(work, scratch).run(step, begin, end);
    case DType::float16:
      return PoolKernel<float16>(work, scratch).run(step, begin, end);
    case DType::bfloat16:
      return PoolKernel<bfloat16>(work, scratch).run(step, begin, end);
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
