// SPDX-License-Identifier: Apache-2.0
// winograd_convolution and the gradient of its weights, CPU: checks, scratch memory, threads. Definition:
// pyindexnet/ops/winograd.py; kernels: csrc/cpu/isa/winograd.cpp, csrc/cpu/isa/winograd_gradient.cpp.
#include "winograd.h"

#include <algorithm>
#include <atomic>

#include "../common/index_cell_host.h"
#include "isa.h"

PYINDEXNET_ISA_KERNEL(winograd_runs, const WinogradArgs&, int64_t, int64_t, float*)
PYINDEXNET_ISA_KERNEL(winograd_gradient_runs, const WinogradArgs&, int64_t, int64_t, float*)

namespace pyindexnet {
namespace {

constexpr const char* kOp = "winograd_convolution";
constexpr int64_t kRunBytes = int64_t{1} << 20;  // of scratch memory: half of a usual second-level cache
constexpr int64_t kFewestTiles = 12, kMostTiles = 48;

ChannelsLast channels_last(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.dim() == 4, op, ": ", name, " must have 4 dimensions, got ", t.dim());
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " must have the dtype of x");
  for (const int d : {0, 2, 3}) {
    STD_TORCH_CHECK(t.size(d) == x.size(d), op, ": ", name, " must have the size of x, got ", t.size(d));
  }
  STD_TORCH_CHECK(t.size(1) <= 1 || t.stride(1) == 1, op, ": ", name, " must be channels_last");
  return {t.mutable_data_ptr(), t.size(1), t.stride(0), t.stride(2), t.stride(3)};
}

const float* dense(const char* name, const Tensor& t, int64_t elements) {
  STD_TORCH_CHECK(t.scalar_type() == torch::headeronly::ScalarType::Float && t.is_contiguous() && t.numel() == elements, kOp,
      ": ", name, " must be ", elements, " contiguous float32, got ", t.numel());
  return static_cast<const float*>(t.mutable_data_ptr());
}

// Into tiles and runs of tiles, whose scratch memory stays in the second-level cache.
void divide(WinogradArgs& a) {
  const int64_t side = kWinogradSide + 1 - a.kernel_size, in = a.x[0].C + a.x[1].C;
  a.tile_rows = (a.H + side - 1) / side, a.tile_columns = (a.W + side - 1) / side;
  const int64_t most = kRunBytes / (kWinogradPoints * (in + a.padded) * static_cast<int64_t>(sizeof(float)));
  a.block = std::min(std::clamp(most, kFewestTiles, kMostTiles), std::max<int64_t>(a.tile_columns, 1));
  a.runs = (a.tile_columns + a.block - 1) / a.block;
}

int64_t rounded_up(int64_t channels) {
  return (channels + kWidestVector - 1) / kWidestVector * kWidestVector;
}

Tensor floats(int64_t rows, int64_t columns, const Tensor& like) {
  const int64_t size[] = {rows, columns};
  return torch::stable::empty({size, 2}, torch::headeronly::ScalarType::Float, std::nullopt, like.device());
}

Tensor winograd_convolution(
    Tensor x, Tensor more, Tensor weight, Tensor bias, int64_t channels, int64_t kernel_size, double low, double high) {
  STD_TORCH_CHECK(kernel_size == 3 || kernel_size == 5, kOp, ": kernel_size must be 3 or 5, got ", kernel_size);
  using torch::headeronly::ScalarType;
  WinogradArgs a;
  a.half = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(a.half || x.scalar_type() == ScalarType::Float, kOp, ": x must be float32 or bfloat16");
  a.x[0] = channels_last(kOp, "x", x, x);
  a.x[1] = channels_last(kOp, "more", more, x);
  STD_TORCH_CHECK(a.x[0].C >= kWidestVector && (a.x[1].C == 0 || a.x[1].C >= kWidestVector), kOp,
      ": an input must have at least ", kWidestVector, " channels, got ", a.x[0].C, " and ", a.x[1].C);
  STD_TORCH_CHECK(channels >= 1, kOp, ": channels must be at least 1, got ", channels);
  a.N = x.size(0), a.H = x.size(2), a.W = x.size(3);
  a.padded = rounded_up(channels);
  const int64_t in = a.x[0].C + a.x[1].C;
  a.weight = dense("weight", weight, kWinogradPoints * in * a.padded);
  a.bias = dense("bias", bias, a.padded);
  a.kernel_size = kernel_size, a.low = static_cast<float>(low), a.high = static_cast<float>(high);

  Tensor y = empty_image(x, {a.N, channels, a.H, a.W}, true);
  a.y = channels_last(kOp, "y", y, x);
  divide(a);
  const int64_t items = a.N * a.tile_rows * a.runs;
  if (items == 0) return y;

  const int64_t slots = torch::stable::get_num_threads(), elements = (winograd_scratch(a) + 15) / 16 * 16;
  Tensor memory = floats(slots, elements, x);
  float* const scratch = static_cast<float*>(memory.mutable_data_ptr());
  const auto kernel = select_winograd_runs();
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    const int64_t slot = next++;  // one call per thread at most
    STD_TORCH_CHECK(slot < slots, kOp, ": more tasks than threads");
    kernel(a, begin, end, scratch + slot * elements);
  });
  return y;
}

// Sums over tiles of the products at the points: one part of the tiles for each thread, added up in order.
Tensor winograd_weight_gradient(Tensor grad, Tensor x, int64_t kernel_size) {
  const char* const op = "winograd_weight_gradient";
  STD_TORCH_CHECK(kernel_size == 5, op, ": kernel_size must be 5, got ", kernel_size);
  STD_TORCH_CHECK(x.scalar_type() == torch::headeronly::ScalarType::Float, op, ": x must be float32");
  WinogradArgs a;
  a.x[0] = channels_last(op, "x", x, x), a.y = channels_last(op, "grad", grad, x);
  STD_TORCH_CHECK(a.x[0].C >= kWidestVector && a.y.C >= kWidestVector, op, ": x and grad must have at least ", kWidestVector,
      " channels, got ", a.x[0].C, " and ", a.y.C);
  a.N = x.size(0), a.H = x.size(2), a.W = x.size(3);
  a.padded = rounded_up(a.y.C), a.kernel_size = kernel_size;
  divide(a);
  const int64_t sums = kWinogradPoints * a.x[0].C * a.padded, items = a.N * a.tile_rows * a.runs;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), items));
  const int64_t scratch = a.x[0].C * a.padded + winograd_scratch(a) + a.padded;  // the last for zeros
  Tensor memory = floats(parts, sums + (scratch + 15) / 16 * 16, x);
  float* const first = static_cast<float*>(memory.mutable_data_ptr());
  const int64_t stride = memory.stride(0);
  const auto kernel = select_winograd_gradient_runs();
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      kernel(a, items * part / parts, items * (part + 1) / parts, first + part * stride);
    }
  });
  Tensor out = floats(kWinogradPoints * a.x[0].C, a.padded, x);
  float* const total = static_cast<float*>(out.mutable_data_ptr());
  for (int64_t i = 0; i < sums; ++i) {
    float sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += first[part * stride + i];
    total[i] = sum;
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  m.impl("winograd_convolution", TORCH_BOX(&winograd_convolution));
  m.impl("winograd_weight_gradient", TORCH_BOX(&winograd_weight_gradient));
}

}  // namespace pyindexnet
