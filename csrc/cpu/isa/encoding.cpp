// SPDX-License-Identifier: Apache-2.0
// affinity_map and affinity_moments, CPU: the kernels, compiled once per instruction set. Equations: csrc/common/encoding.h and
// pyindexnet/reference. A vector is a run of positions in a row. Rows of x are copied to scratch memory with a border of zeros
// (widened, columns of equal remainder by the stride side by side; where channels are neighbours, a block of 16 is transposed),
// so that the inner loops have no borders, strides, layouts or dtypes; encodings stay in registers. Arithmetic in float, double
// for double.
#include "../encoding_rows.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {
namespace {

template <class T>
class EncodingKernel : EncodingRows<T> {
  using Rows = EncodingRows<T>;
  using Rows::a_, Rows::d_, Rows::k_, Rows::pitch_, Rows::row_, Rows::stride_, Rows::taps_, Rows::w_;
  using Rows::each_column, Rows::encodings, Rows::keep, Rows::plane, Rows::record, Rows::total;
  using Rows::get, Rows::kMargin, Rows::L, Rows::number, Rows::pixel, Rows::put, Rows::zero;
  using typename Rows::A, typename Rows::Block, typename Rows::V;

 public:
  EncodingKernel(const EncodingWork& work, EncodingStep step, void* scratch)
      : Rows(work, step == EncodingStep::gradients, scratch) {}

  void run(EncodingStep step, int64_t item) const {
    switch (step) {
      case EncodingStep::map:
        return map(item / w_.bands, item % w_.bands);
      case EncodingStep::moments:
        return moments(block_of(item));
      case EncodingStep::combine:
        return combine(item / a_.groups, item % a_.groups);
      case EncodingStep::gradients:
        return gradients(block_of(item));
      case EncodingStep::grad_kernels:
        return grad_kernels(item / a_.Cu, item % a_.Cu);
      case EncodingStep::grad_affine:
        return grad_affine(item / a_.C, item % a_.C);
    }
  }

 private:
  Block block_of(int64_t item) const {
    const int64_t blocks = (a_.C + w_.block - 1) / w_.block, band = item % w_.bands, c = item / w_.bands % blocks * w_.block;
    Block b{item / (w_.bands * blocks), c, a_.C - c, band, 0, 0};
    if (b.channels > w_.block) b.channels = w_.block;
    return with_band(b);
  }
  Block with_band(Block b) const {
    b.first = b.band * w_.rows;
    b.rows = b.first + w_.rows < a_.h ? w_.rows : a_.h - b.first;
    return b;
  }

  void load_kernels(int64_t n, int64_t c) const {
    for (int64_t r = 0; r < d_; ++r) {
      for (int e = 0; e < 2; ++e) {
        for (int t = 0; t < taps_; ++t) {
          this->kernels_[(2 * r + e) * taps_ + t] = number(a_.kernels[e], n, c, r, t / k_, t % k_);
        }
      }
    }
  }

  Activation<A> activation(int64_t n, int64_t c, int64_t r) const {
    Activation<A> f;
    if (!a_.affine.data) return f;
    f.affine = true, f.slope = static_cast<A>(a_.slope);
    for (int e = 0; e < 2; ++e) {
      f.factor[e] = number(a_.affine, n, c, r, e, 0), f.shift[e] = number(a_.affine, n, c, r, e, 1);
    }
    return f;
  }

  // --- steps -----------------------------------------------------------------------------------------------------------------

  // The sums over the channels gather in the encodings' memory.
  void map(int64_t n, int64_t band) const {
    Block b = with_band({n, 0, 0, band, 0, 0});
    const int64_t top = b.first * stride_ - a_.before(), x_rows = (b.rows - 1) * stride_ + k_;
    if (a_.Cu == 1) load_kernels(n, 0);
    for (b.c = 0; b.c < a_.C; b.c += w_.block) {
      b.channels = a_.C - b.c < w_.block ? a_.C - b.c : w_.block;
      this->stage(b, top, x_rows);
      for (int64_t e = 0; e < b.channels; ++e) {
        if (a_.Cu > 1) load_kernels(n, b.c + e);
        add_channel(b, b.c + e, plane(e));
      }
    }
    const V scale(static_cast<A>(a_.scale));
    for (int64_t r = 0; r < d_; ++r) {
      for (int64_t i = 0; i < b.rows; ++i) {
        T* const to = pixel(a_.a, n, r, b.first + i, 0);
        for (int64_t j = 0; j < a_.w; j += L) {
          put(to + j * a_.a.w, a_.a.w, a_.w - j, load(encodings(r, 0, i) + j) * scale);
        }
      }
    }
  }

  void add_channel(const Block& b, int64_t c, const A* x) const {
    for (int64_t r = 0; r < d_; ++r) {
      const Activation<A> f = activation(b.n, c, r);
      for (int64_t i = 0; i < b.rows; ++i) {
        const A* const line = x + i * stride_ * row_;
        A* const sum = encodings(r, 0, i);
        each_column([&](int64_t j, auto vectors) PYINDEXNET_LAMBDA_INLINE {
          constexpr int B = vectors;
          V u[B], v[B];
          this->template encode<B>(line + j, r, u, v);
          for (int o = 0; o < B; ++o) {
            const V product = f.value(f.line(u[o], 0)) * f.value(f.line(v[o], 1));
            store(sum + j + o * L, c == 0 ? product : load(sum + j + o * L) + product);
          }
        });
      }
    }
  }

  // Deviations from the band's own mean are squared: nothing cancels, whatever the mean.
  void moments(const Block& b) const {
    this->stage(b, b.first * stride_ - a_.before(), (b.rows - 1) * stride_ + k_);
    for (int64_t s = 0; s < b.channels; ++s) {
      if (s == 0 || a_.Cu > 1) load_kernels(b.n, b.c + s);
      A* const to = record(b.n, b.c + s, b.band, false);
      for (int64_t r = 0; r < d_; ++r) {
        V sum[2] = {V(0), V(0)};
        for (int64_t i = 0; i < b.rows; ++i) {
          each_column([&](int64_t j, auto vectors) PYINDEXNET_LAMBDA_INLINE {
            constexpr int B = vectors;
            V e[2][B];
            this->template encode<B>(plane(s) + i * stride_ * row_ + j, r, e[0], e[1]);
            for (int which = 0; which < 2; ++which) {
              for (int o = 0; o < B; ++o) {
                store(encodings(r, which, i) + j + o * L, e[which][o]);
                sum[which] = sum[which] + keep(e[which][o], a_.w - j - o * L);
              }
            }
          });
        }
        const A count = static_cast<A>(b.rows * a_.w);
        for (int e = 0; e < 2; ++e) {
          const A mean = total(sum[e]) / count;
          V squares(0);
          for (int64_t i = 0; i < b.rows; ++i) {
            for (int64_t j = 0; j < a_.w; j += L) {
              const V deviation = keep(load(encodings(r, e, i) + j) - V(mean), a_.w - j);
              squares = squares + deviation * deviation;
            }
          }
          to[(2 * r + e) * 2] = mean, to[(2 * r + e) * 2 + 1] = total(squares);
        }
      }
    }
  }

  void combine(int64_t n, int64_t g) const {
    const int64_t channels = a_.C / a_.groups;
    const A count = static_cast<A>(channels * a_.h * a_.w);
    for (int64_t r = 0; r < d_; ++r) {
      for (int e = 0; e < 2; ++e) {
        const auto over_bands = [&](auto f) {
          A sum = 0;
          for (int64_t c = g * channels; c < (g + 1) * channels; ++c) {
            for (int64_t band = 0; band < w_.bands; ++band) {
              const A values = static_cast<A>(with_band({n, c, 1, band, 0, 0}).rows * a_.w);
              sum += f(record(n, c, band, false) + (2 * r + e) * 2, values);
            }
          }
          return sum / count;
        };
        const A mean = over_bands([](const A* p, A values) { return p[0] * values; });
        if (w_.means) {
          this->mean(n, g, r, e) = mean;
          continue;
        }
        const A variance = over_bands([=](const A* p, A values) { return p[1] + values * (p[0] - mean) * (p[0] - mean); });
        T* const to = static_cast<T*>(a_.moments.data);
        put(to + a_.moments.at(n, g, r, e, 0), mean), put(to + a_.moments.at(n, g, r, e, 1), variance);
      }
    }
  }

  void gradients(const Block& b) const {
    const int64_t from = b.first - w_.halo_low(), rows = w_.encoding_rows() - (w_.rows - b.rows);
    this->stage(b, from * stride_ - a_.before(), (rows - 1) * stride_ + k_);
    for (int64_t s = 0; s < b.channels; ++s) {
      const int64_t c = b.c + s;
      A *const x = plane(s), *const sums = record(b.n, c, b.band, true);
      if (s == 0 || a_.Cu > 1) load_kernels(b.n, c);
      for (int64_t r = 0; r < d_; ++r) grad_encodings(b, c, r, x, from, rows, sums + 2 * d_ * taps_ + 4 * r);
      if (a_.need_kernels()) this->kernel_sums(x + w_.halo_low() * stride_ * row_, w_.halo_low(), b.rows, sums);
      if (!a_.grad_x.data) continue;
      // The rows of x have been read and give their memory to those of grad_x.
      for (int64_t y = b.first * stride_; y < (b.first + b.rows) * stride_ && y < a_.H; ++y) {
        A* const out = x + (y - b.first * stride_) * row_;
        this->gather_row(out, y, from);
        if (w_.block == 1) this->unstage_row(out, pixel(a_.grad_x, b.n, c, y, 0), a_.grad_x.w);
      }
    }
    if (!a_.grad_x.data || w_.block == 1) return;
    for (int64_t y = b.first * stride_; y < (b.first + b.rows) * stride_ && y < a_.H; ++y) {
      this->unstage_pixels(b, y, (y - b.first * stride_) * row_);
    }
  }

  // grad_U and grad_V of `rows` rows of positions from `from` on, 0 outside the image and in the margins; the band's own sums
  // for affine.
  void grad_encodings(const Block& b, int64_t c, int64_t r, const A* x, int64_t from, int64_t rows, A* affine_sums) const {
    const Activation<A> f = activation(b.n, c, r);
    A constant[2], linear[2], mean[2];
    if (a_.is_moments) {
      const int64_t per_group = a_.C / a_.groups, g = c / per_group;
      const A count = static_cast<A>(per_group * a_.h * a_.w);
      for (int e = 0; e < 2; ++e) {
        constant[e] = number(a_.moments, b.n, g, r, e, 0) / count;
        linear[e] = 2 * number(a_.moments, b.n, g, r, e, 1) / count, mean[e] = this->mean(b.n, g, r, e);
      }
    }
    V sums[4] = {V(0), V(0), V(0), V(0)};
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = from + row;
      A *const to_u = encodings(r, 0, row), *const to_v = encodings(r, 1, row);
      for (A* const to : {to_u, to_v}) {
        zero(to, -kMargin, 0);
        zero(to, i < 0 || i >= a_.h ? 0 : a_.w, pitch_ - kMargin);
      }
      if (i < 0 || i >= a_.h) continue;
      const bool own = a_.grad_affine.data && i >= b.first && i < b.first + b.rows;
      const T* const grad = a_.is_moments ? nullptr : pixel(a_.a, b.n, r, i, 0);
      each_column([&](int64_t j, auto vectors) PYINDEXNET_LAMBDA_INLINE {
        constexpr int B = vectors;
        V u[B], v[B];
        this->template encode<B>(x + row * stride_ * row_ + j, r, u, v);
        for (int o = 0; o < B; ++o) {
          const int64_t at = j + o * L, left = a_.w - at;
          if (a_.is_moments) {
            store(to_u + at, keep(V(constant[0]) + V(linear[0]) * (u[o] - V(mean[0])), left));
            store(to_v + at, keep(V(constant[1]) + V(linear[1]) * (v[o] - V(mean[1])), left));
            continue;
          }
          const V g = get(grad + at * a_.a.w, a_.a.w, left) * V(static_cast<A>(a_.scale));
          const V lu = f.line(u[o], 0), lv = f.line(v[o], 1);
          const V gu = keep(f.through(lu, g * f.value(lv)), left), gv = keep(f.through(lv, g * f.value(lu)), left);
          if (own) {
            sums[0] = sums[0] + gu * u[o], sums[1] = sums[1] + gu;
            sums[2] = sums[2] + gv * v[o], sums[3] = sums[3] + gv;
          }
          store(to_u + at, f.affine ? V(f.factor[0]) * gu : gu), store(to_v + at, f.affine ? V(f.factor[1]) * gv : gv);
        }
      });
    }
    if (a_.grad_affine.data) {
      for (int s = 0; s < 4; ++s) affine_sums[s] = total(sums[s]);
    }
  }

  // Sums over the samples, channels and bands that share a kernel, in this order.
  void grad_kernels(int64_t nu, int64_t cu) const {
    const int64_t n_end = a_.Nu == 1 ? a_.N : nu + 1, c_end = a_.Cu == 1 ? a_.C : cu + 1;
    for (int64_t index = 0; index < 2 * d_ * taps_; ++index) {
      const int e = static_cast<int>(index / taps_ % 2), t = static_cast<int>(index % taps_);
      if (!a_.grads[e].data) continue;
      A sum = 0;
      for (int64_t n = nu; n < n_end; ++n) {
        for (int64_t c = cu; c < c_end; ++c) sum += over_bands(n, c, index);
      }
      put(static_cast<T*>(a_.grads[e].data) + a_.grads[e].at(nu, cu, index / (2 * taps_), t / k_, t % k_), sum);
    }
  }

  void grad_affine(int64_t n, int64_t c) const {
    for (int64_t index = 0; index < 4 * d_; ++index) {
      T* const to = static_cast<T*>(a_.grad_affine.data) + a_.grad_affine.at(n, c, index / 4, index / 2 % 2, index % 2);
      put(to, over_bands(n, c, 2 * d_ * taps_ + index));
    }
  }

  A over_bands(int64_t n, int64_t c, int64_t index) const {
    A sum = 0;
    for (int64_t band = 0; band < w_.bands; ++band) sum += record(n, c, band, true)[index];
    return sum;
  }
};

template <class T>
void run_items(const EncodingWork& work, EncodingStep step, int64_t begin, int64_t end, void* scratch) {
  const EncodingKernel<T> kernel(work, step, scratch);
  for (int64_t item = begin; item < end; ++item) kernel.run(step, item);
}

}  // namespace

void encoding_items(const EncodingWork& work, EncodingStep step, int64_t begin, int64_t end, void* scratch) {
  switch (work.args.dtype) {
    case DType::float64:
      return run_items<double>(work, step, begin, end, scratch);
    case DType::float32:
      return run_items<float>(work, step, begin, end, scratch);
    case DType::float16:
      return run_items<float16>(work, step, begin, end, scratch);
    case DType::bfloat16:
      return run_items<bfloat16>(work, step, begin, end, scratch);
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
