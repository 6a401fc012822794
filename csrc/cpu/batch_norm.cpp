// SPDX-License-Identifier: Apache-2.0
// Batch norm with an activation, CPU: checks, sums over items, threads. Definition: pyindexnet/ops/batch_norm.py; kernels:
// csrc/cpu/isa/batch_norm.cpp.
#include "batch_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/index_cell_host.h"
#include "isa.h"

PYINDEXNET_ISA_KERNEL(batch_norm_items, const BatchNormArgs&, BatchNormStep, int64_t, int64_t)

namespace pyindexnet {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kWidest = 16;                      // lanes
constexpr int64_t kBlockBytes = int64_t{256} << 10;  // of an item of x: its second reading finds it in the second-level cache
constexpr int64_t kElementsOfTask = 32768;           // fewer are not worth a thread

// Elements from pixel to pixel where channels are neighbours and pixels lie evenly; 0 where not.
int64_t line_of(const Tensor& t) {
  const int64_t C = t.size(1), H = t.size(2), W = t.size(3);
  if (C > 1 && t.stride(1) != 1) return 0;
  int64_t line = 0, pixels = 1;
  for (const int d : {3, 2, 0}) {
    if (t.size(d) > 1) {
      if (line == 0) line = t.stride(d) / pixels;
      if (line < C || t.stride(d) != line * pixels) return 0;
    }
    pixels *= d == 3 ? W : H;
  }
  return line == 0 ? C : line;
}

bool has_planes(const Tensor& t) {
  return (t.size(3) == 1 || t.stride(3) == 1) && (t.size(2) == 1 || t.stride(2) == t.size(3));
}

// What an item is, for x; dtype, sizes, layout.
BatchNormArgs arguments(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", x.dim());
  STD_TORCH_CHECK(x.numel() > 0, op, ": x must not be empty");
  BatchNormArgs a;
  a.dtype = parse_dtype(op, x);
  a.x = x.mutable_data_ptr();
  a.N = x.size(0), a.C = x.size(1), a.plane = x.size(2) * x.size(3);
  a.padded = (a.C + kWidest - 1) / kWidest * kWidest;
  a.x_line = line_of(x);
  const bool few = a.C < kWidest && has_planes(x);
  a.planar = a.x_line == 0 || few;
  STD_TORCH_CHECK(!a.planar || has_planes(x), op, ": x must be contiguous or channels_last within an image");
  a.x_n = x.stride(0), a.x_c = x.stride(1);
  const int64_t size = a.dtype == DType::float64 ? 8 : a.dtype == DType::float32 ? 4 : 2;
  a.block = std::min(std::max<int64_t>(kBlockBytes / (size * (a.planar ? 1 : a.C)), kWidest), a.extent());
  a.blocks = (a.extent() + a.block - 1) / a.block;
  return a;
}

ScalarType accumulator(const BatchNormArgs& a) {
  return a.dtype == DType::float64 ? ScalarType::Double : ScalarType::Float;
}

Tensor accumulators(const BatchNormArgs& a, const Tensor& like, int64_t count) {
  return torch::stable::empty({&count, 1}, accumulator(a), std::nullopt, like.device());
}

template <class F>
void dispatch(const BatchNormArgs& a, F f) {
  a.dtype == DType::float64 ? f(double{}) : f(float{});
}

void run(const BatchNormArgs& a, BatchNormStep step) {
  const auto kernel = select_batch_norm_items();
  const int64_t elements = a.block * (a.planar ? 1 : a.C);
  torch::stable::parallel_for(0, a.items(), std::max<int64_t>(1, kElementsOfTask / elements),
      [&](int64_t begin, int64_t end) { kernel(a, step, begin, end); });
}

// The two sums of each channel: f(item's count, item's two values) is added up.
template <class A, class F>
void over_items(const BatchNormArgs& a, F f) {
  const A* const partial = static_cast<const A*>(a.partial);
  for (int64_t item = 0; item < a.items(); ++item) {
    const double count = static_cast<double>(a.count(item));
    if (a.planar) {
      f(a.channel(item), count, partial[2 * item], partial[2 * item + 1]);
    } else {
      const A* const at = partial + item * kBatchNormSums * a.padded;
      for (int64_t c = 0; c < a.C; ++c) f(c, count, at[c], at[a.padded + c]);
    }
  }
}

const void* channels(const char* op, const char* name, const Tensor& t, const BatchNormArgs& a) {
  STD_TORCH_CHECK(t.scalar_type() == accumulator(a) && t.is_contiguous() && t.numel() == a.C, op, ": ", name, " must be ", a.C,
      " contiguous ", a.dtype == DType::float64 ? "float64" : "float32", ", got ", t.numel());
  return t.mutable_data_ptr();
}

// Runs a step that gives two sums of every item.
Tensor run_sums(BatchNormArgs& a, const Tensor& like, BatchNormStep step) {
  Tensor sums = accumulators(a, like, a.items() * (a.planar ? 2 : kBatchNormSums * a.padded));
  a.partial = sums.mutable_data_ptr();
  run(a, step);
  return sums;
}

std::tuple<Tensor, Tensor> batch_norm_statistics(Tensor x) {
  BatchNormArgs a = arguments("batch_norm_statistics", x);
  const Tensor parts = run_sums(a, x, BatchNormStep::moments);
  Tensor mean = accumulators(a, x, a.C), var = accumulators(a, x, a.C);
  dispatch(a, [&](auto zero) {
    using A = decltype(zero);
    const double all = static_cast<double>(a.N * a.plane);
    std::vector<double> means(a.C), squares(a.C);
    over_items<A>(a, [&](int64_t c, double count, double m, double) { means[c] += count / all * m; });
    over_items<A>(
        a, [&](int64_t c, double count, double m, double s) { squares[c] += s + count * (m - means[c]) * (m - means[c]); });
    for (int64_t c = 0; c < a.C; ++c) {
      static_cast<A*>(mean.mutable_data_ptr())[c] = static_cast<A>(means[c]);
      static_cast<A*>(var.mutable_data_ptr())[c] = static_cast<A>(squares[c] / all);
    }
  });
  return {mean, var};
}

// Scale, shift and mean of each channel.
template <class A>
void fill_table(A* table, const BatchNormArgs& a, const void* const (&of_channel)[4], double eps) {
  const auto [mean, var, weight, bias] = of_channel;
  for (int64_t c = 0; c < a.C; ++c) {
    const double m = static_cast<const A*>(mean)[c];
    const double scale = static_cast<const A*>(weight)[c] / std::sqrt(static_cast<const A*>(var)[c] + eps);
    table[kScale * a.padded + c] = static_cast<A>(scale);
    table[kShift * a.padded + c] = static_cast<A>(static_cast<const A*>(bias)[c] - m * scale);
    table[kMean * a.padded + c] = static_cast<A>(m);
  }
}

// Table and activation of a call.
Tensor prepare(const char* op, BatchNormArgs& a, const Tensor& x, const Tensor& mean, const Tensor& var, const Tensor& weight,
    const Tensor& bias, double eps, double slope, double high) {
  const void* const of_channel[4] = {channels(op, "mean", mean, a), channels(op, "var", var, a),
      channels(op, "weight", weight, a), channels(op, "bias", bias, a)};
  Tensor table = torch::stable::new_zeros(mean, {kBatchNormParameters * a.padded});
  a.table = table.mutable_data_ptr(), a.slope = slope, a.high = high;
  dispatch(a, [&](auto zero) { fill_table(static_cast<decltype(zero)*>(table.mutable_data_ptr()), a, of_channel, eps); });
  return table;
}

Tensor batch_norm_activation(
    Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias, double eps, double slope, double high) {
  const char* const op = "batch_norm_activation";
  BatchNormArgs a = arguments(op, x);
  Tensor table = prepare(op, a, x, mean, var, weight, bias, eps, slope, high);
  Tensor y = empty_image(x, {a.N, a.C, x.size(2), x.size(3)}, !a.planar);
  a.out = y.mutable_data_ptr();
  run(a, BatchNormStep::apply);
  return y;
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_activation_backward(Tensor grad, Tensor x, Tensor mean, Tensor var, Tensor weight,
    Tensor bias, double eps, double slope, double high, bool batch) {
  const char* const op = "batch_norm_activation_backward";
  BatchNormArgs a = arguments(op, x);
  check_image(op, "grad", grad, x, a.C, x.size(2), x.size(3));
  STD_TORCH_CHECK(a.planar ? has_planes(grad) : line_of(grad) > 0, op, ": grad must have the layout of x");
  a.grad = grad.mutable_data_ptr(), a.grad_line = line_of(grad), a.grad_n = grad.stride(0), a.grad_c = grad.stride(1);
  Tensor table = prepare(op, a, x, mean, var, weight, bias, eps, slope, high);
  const Tensor parts = run_sums(a, x, BatchNormStep::sums);
  Tensor grad_weight = accumulators(a, x, a.C), grad_bias = accumulators(a, x, a.C);
  dispatch(a, [&](auto zero) {
    using A = decltype(zero);
    std::vector<double> first(a.C), second(a.C);
    over_items<A>(a, [&](int64_t c, double, double d, double dx) { first[c] += d, second[c] += dx; });
    A* const values = static_cast<A*>(table.mutable_data_ptr());
    const double share = batch ? 1.0 / static_cast<double>(a.N * a.plane) : 0.0;
    for (int64_t c = 0; c < a.C; ++c) {
      const double rate = 1 / std::sqrt(static_cast<const A*>(var.mutable_data_ptr())[c] + eps);
      const double scale = static_cast<const A*>(weight.mutable_data_ptr())[c] * rate;
      static_cast<A*>(grad_weight.mutable_data_ptr())[c] = static_cast<A>(second[c] * rate);
      static_cast<A*>(grad_bias.mutable_data_ptr())[c] = static_cast<A>(first[c]);
      values[kSlopeX * a.padded + c] = static_cast<A>(-scale * rate * rate * second[c] * share);
      values[kOffset * a.padded + c] = static_cast<A>(-scale * first[c] * share);
    }
  });
  Tensor grad_x = empty_image(x, {a.N, a.C, x.size(2), x.size(3)}, !a.planar);
  a.out = grad_x.mutable_data_ptr();
  run(a, BatchNormStep::gradient);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  m.impl("batch_norm_statistics", TORCH_BOX(&batch_norm_statistics));
  m.impl("batch_norm_activation", TORCH_BOX(&batch_norm_activation));
  m.impl("batch_norm_activation_backward", TORCH_BOX(&batch_norm_activation_backward));
}

}  // namespace pyindexnet
