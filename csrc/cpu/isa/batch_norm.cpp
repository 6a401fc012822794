// SPDX-License-Identifier: Apache-2.0
// Batch norm with an activation, CPU: the kernels, compiled once per instruction set. Definition: pyindexnet/ops/batch_norm.py.
// A pass reads what must be read once and is bound by that; sums are taken per item, so that they do not depend on the number
// of threads. Arithmetic in float, double for double.
#include "../batch_norm.h"

#include "../simd.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {
namespace {

enum class Act { none, clamp, leaky };

// Planar: a line has one channel, else its elements are the channels.
template <class T, bool Planar>
class BatchNormKernel {
  using A = typename Accumulate<T>::type;
  using V = Vec<A>;
  static constexpr int64_t L = V::size;
  static constexpr int64_t kSums = 4;  // vectors that take turns in a planar sum: an addition waits for the one before it

  const BatchNormArgs a_;
  const A slope_, high_;
  const bool stream_;

  struct Line {
    const T* x;
    const T* grad;
    T* out;
  };

  PYINDEXNET_INLINE static V get(const T* p, int64_t count) { return count == L ? load(p) : load_first(p, count); }
  PYINDEXNET_INLINE static void add(A* sum, V value) { store(sum, load(sum) + value); }
  PYINDEXNET_INLINE static int64_t sum_at(int64_t i) { return Planar ? i / L % kSums * L : i; }

  PYINDEXNET_INLINE V parameter(const A* table, BatchNormParameter which, int64_t i) const {
    return Planar ? V(table[which * a_.padded]) : load(table + which * a_.padded + i);
  }

  template <Act act>
  PYINDEXNET_INLINE V activated(V z) const {  // a NaN survives
    if constexpr (act == Act::clamp) {
      const typename V::Native low = z.v < 0 ? V(0).v : z.v;
      return low > high_ ? V(high_).v : low;
    }
    if constexpr (act == Act::leaky) return z.v > 0 ? z.v : (V(slope_) * z).v;
    return z;
  }
  template <Act act>
  PYINDEXNET_INLINE V passed(V grad, V z) const {
    if constexpr (act == Act::clamp) return (z.v <= 0) | (z.v >= high_) ? V(0).v : grad.v;
    if constexpr (act == Act::leaky) return z.v > 0 ? grad.v : (V(slope_) * grad).v;
    return grad;
  }

  // f(line) for the lines of an item, and the length of a line.
  template <class F>
  PYINDEXNET_INLINE void each_line(int64_t item, F f) const {
    const int64_t begin = item % a_.blocks * a_.block, count = a_.count(item);
    const T *const x = static_cast<const T*>(a_.x), *const grad = static_cast<const T*>(a_.grad);
    T* const out = static_cast<T*>(a_.out);
    if constexpr (Planar) {
      const int64_t plane = item / a_.blocks, n = plane / a_.C, c = plane % a_.C;
      f(Line{x + n * a_.x_n + c * a_.x_c + begin, grad + n * a_.grad_n + c * a_.grad_c + begin, out + plane * a_.plane + begin},
          count);
    } else {
      for (int64_t p = begin; p < begin + count; ++p) f(Line{x + p * a_.x_line, grad + p * a_.grad_line, out + p * a_.C}, a_.C);
    }
  }
  // f(line, i, count) for the vectors of an item.
  template <class F>
  PYINDEXNET_INLINE void each(int64_t item, F f) const {
    each_line(item, [&](Line line, int64_t width) PYINDEXNET_LAMBDA_INLINE {
      int64_t i = 0;
      for (; i + L <= width; i += L) f(line, i, L);
      if (i < width) f(line, i, width - i);
    });
  }

  // The lanes of a planar item's sums as one number.
  static double total(const A* sums) {
    double sum = 0;
    for (int64_t i = 0; i < kSums * L; ++i) sum += sums[i];
    return sum;
  }
  void put_sums(int64_t item, double first, double second) const {
    A* const to = static_cast<A*>(a_.partial) + item * 2;
    to[0] = static_cast<A>(first), to[1] = static_cast<A>(second);
  }

  // Means of an item, then sums of deviations from what they were rounded to, which correct both results.
  void moments(int64_t item) const {
    A local[3][kSums * L] = {};
    A* const mean = Planar ? local[0] : static_cast<A*>(a_.partial) + item * kBatchNormSums * a_.padded;
    A* const squares = Planar ? local[1] : mean + a_.padded;
    A* const drift = Planar ? local[2] : squares + a_.padded;
    const int64_t sums = Planar ? 1 : a_.padded;
    if constexpr (!Planar) std::memset(mean, 0, kBatchNormSums * sums * sizeof(A));
    each(item,
        [&](Line line, int64_t i, int64_t count) PYINDEXNET_LAMBDA_INLINE { add(mean + sum_at(i), get(line.x + i, count)); });
    const A share = A(1) / static_cast<A>(a_.count(item));
    if constexpr (Planar) mean[0] = static_cast<A>(total(mean));
    for (int64_t i = 0; i < sums; ++i) mean[i] *= share;
    each(item, [&](Line line, int64_t i, int64_t count) PYINDEXNET_LAMBDA_INLINE {
      V d = get(line.x + i, count) - (Planar ? V(mean[0]) : load(mean + i));
      if (Planar && count < L) {
        for (int64_t l = count; l < L; ++l) d.v[l] = 0;
      }
      add(squares + sum_at(i), d * d);
      add(drift + sum_at(i), d);
    });
    if constexpr (Planar) squares[0] = static_cast<A>(total(squares)), drift[0] = static_cast<A>(total(drift));
    for (int64_t i = 0; i < sums; ++i) {
      squares[i] -= drift[i] * drift[i] * share;
      mean[i] += drift[i] * share;
    }
    if constexpr (Planar) put_sums(item, mean[0], squares[0]);
  }

  const A* table(int64_t item) const { return static_cast<const A*>(a_.table) + (Planar ? a_.channel(item) : 0); }

  PYINDEXNET_INLINE void put(T* p, int64_t count, V value, bool past_caches) const {
    if (count < L) return store_first(p, count, value);
    past_caches ? stream(p, value) : store(p, value);
  }

  template <Act act>
  void apply(int64_t item) const {
    const A* const t = table(item);
    const bool past = stream_;
    each(item, [&](Line line, int64_t i, int64_t count) PYINDEXNET_LAMBDA_INLINE {
      const V z = get(line.x + i, count) * parameter(t, kScale, i) + parameter(t, kShift, i);
      put(line.out + i, count, activated<act>(z), past);
    });
  }

  template <Act act>
  void sums(int64_t item) const {
    A local[2][kSums * L] = {};
    A* const first = Planar ? local[0] : static_cast<A*>(a_.partial) + item * kBatchNormSums * a_.padded;
    A* const second = Planar ? local[1] : first + a_.padded;
    if constexpr (!Planar) std::memset(first, 0, 2 * a_.padded * sizeof(A));
    const A* const t = table(item);
    each(item, [&](Line line, int64_t i, int64_t count) PYINDEXNET_LAMBDA_INLINE {
      const V x = get(line.x + i, count);  // lanes beyond `count` have no gradient
      const V d = passed<act>(get(line.grad + i, count), x * parameter(t, kScale, i) + parameter(t, kShift, i));
      add(first + sum_at(i), d);
      add(second + sum_at(i), d * (x - parameter(t, kMean, i)));
    });
    if constexpr (Planar) put_sums(item, total(first), total(second));
  }

  template <Act act>
  void gradient(int64_t item) const {
    const A* const t = table(item);
    const bool past = stream_;
    each(item, [&](Line line, int64_t i, int64_t count) PYINDEXNET_LAMBDA_INLINE {
      const V x = get(line.x + i, count), scale = parameter(t, kScale, i);
      const V d = passed<act>(get(line.grad + i, count), x * scale + parameter(t, kShift, i));
      const V rest = parameter(t, kSlopeX, i) * (x - parameter(t, kMean, i)) + parameter(t, kOffset, i);
      put(line.out + i, count, scale * d + rest, past);
    });
  }

  template <Act act>
  void run_step(BatchNormStep step, int64_t item) const {
    if (step == BatchNormStep::moments) return moments(item);
    if (step == BatchNormStep::apply) return apply<act>(item);
    step == BatchNormStep::sums ? sums<act>(item) : gradient<act>(item);
  }

 public:
  explicit BatchNormKernel(const BatchNormArgs& a)
      : a_(a),
        slope_(static_cast<A>(a.slope)),
        high_(static_cast<A>(a.high)),
        stream_(worth_streaming<T>(a.out, {Planar ? a.plane : a.C, Planar ? a.block : 1}, a.N * a.C * a.plane)) {}

  void run(BatchNormStep step, int64_t begin, int64_t end) const {
    // The second pass begins where the first one ended, with what is still in the cache.
    const bool backwards = step == BatchNormStep::apply || step == BatchNormStep::gradient;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t item = backwards ? begin + end - 1 - i : i;
      if (a_.slope == 1) {
        run_step<Act::none>(step, item);
      } else {
        a_.slope == 0 ? run_step<Act::clamp>(step, item) : run_step<Act::leaky>(step, item);
      }
    }
    if (stream_) stream_fence();
  }
};

template <class T>
void run_typed(const BatchNormArgs& args, BatchNormStep step, int64_t begin, int64_t end) {
  args.planar ? BatchNormKernel<T, true>(args).run(step, begin, end) : BatchNormKernel<T, false>(args).run(step, begin, end);
}

}  // namespace

void batch_norm_items(const BatchNormArgs& args, BatchNormStep step, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::float64:
      return run_typed<double>(args, step, begin, end);
    case DType::float32:
      return run_typed<float>(args, step, begin, end);
    case DType::float16:
      return run_typed<float16>(args, step, begin, end);
    case DType::bfloat16:
      return run_typed<bfloat16>(args, step, begin, end);
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
