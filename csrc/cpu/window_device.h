// SPDX-License-Identifier: Apache-2.0
// Runs the dynamic-kernel operators on the CPU: instruction set, work items, threads, scratch memory.
#pragma once
#include <algorithm>
#include <memory>

#include "../common/affinity_host.h"
#include "isa.h"
#include "window_plan.h"

namespace pyindexnet {

#define PYINDEXNET_DECLARE_WINDOW(ISA)                                                              \
  namespace ISA {                                                                                   \
  void run_window(const WindowArgs&, const WindowPlan&, bool backward, WindowRange, void* scratch); \
  void sum_parts(const WindowArgs&);                                                                \
  }
PYINDEXNET_DECLARE_WINDOW(generic)
#if defined(__x86_64__)
PYINDEXNET_DECLARE_WINDOW(avx2)
PYINDEXNET_DECLARE_WINDOW(avx512)
#endif
#undef PYINDEXNET_DECLARE_WINDOW

struct WindowDevice {
  static int guard(const Tensor&) { return 0; }
  static void forward(const WindowArgs& a, const Tensor&) { run(a, false); }
  static void backward(const WindowArgs& a, const Tensor&) { run(a, true); }
  // A part for each row of a tile: their sum does not depend on the threads.
  static int64_t count_parts(const WindowArgs& a) { return a.h * plan(a, true).tiles; }
  static void sum_parts(const WindowArgs& a) {
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512) return avx512::sum_parts(a);
    if (active_isa() == Isa::avx2) return avx2::sum_parts(a);
#endif
    generic::sum_parts(a);
  }

 private:
  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

  static WindowPlan plan(const WindowArgs& a, bool backward) {
    WindowPlan p;
    p.channels = !backward && WindowPlan::fits_channels(a);
    // Neighbouring channels of all groups together; grad_a is a sum over the groups.
    p.groups = p.channels || (backward && a.rank) ? 1 : a.G;
    const int64_t planes = std::max<int64_t>(1, a.N * p.groups);
    const int64_t rows = std::max(a.h, ceil_div(a.H, a.stride)), columns = std::max(a.w, ceil_div(a.W, a.stride));
    // The weights of a strip should leave room in a second-level cache; long runs of memory are worth more than the first.
    constexpr int64_t kWeightBytes = 131072;
    const int64_t element = a.dtype == DType::float64 ? 8 : 4, per_cell = a.taps() * a.scale * a.scale;
    const int64_t cells = std::max<int64_t>(1, kWeightBytes / (element * per_cell));
    const int64_t widest = std::clamp<int64_t>(cells / 16 * 16, 32, 256);
    p.tiles = ceil_div(columns, widest);
    p.tile = ceil_div(ceil_div(columns, p.tiles), 16) * 16;
    p.tiles = ceil_div(columns, p.tile);
    p.strip = std::clamp<int64_t>(cells / p.tile, 1, std::min<int64_t>(16, rows));
    // Two bands for each thread, where there are too few planes; not so low that the rows they share outweigh them.
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t wanted = threads > 1 ? ceil_div(2 * threads, planes * p.tiles) : 1;
    const int64_t lowest = std::max<int64_t>(backward ? 4 * a.k : 1, 4);
    p.bands = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, rows / lowest));
    p.band_rows = ceil_div(rows, p.bands);
    p.bands = ceil_div(rows, p.band_rows);
    p.strip = std::min(p.strip, p.band_rows);
    return p;
  }

  // Grows and stays: allocating it anew would fault its pages in at each call.
  static void* scratch(int64_t bytes) {
    struct Free {
      void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
    };
    static thread_local std::unique_ptr<std::byte[], Free> memory;
    static thread_local int64_t size = 0;
    if (size < bytes) {
      memory.reset(), size = 0;
      memory.reset(new (std::align_val_t{64}) std::byte[bytes]);
      size = bytes;
    }
    return memory.get();
  }

  static void run(const WindowArgs& a, bool backward) {
    const WindowPlan p = plan(a, backward);
    const int64_t bytes = p.scratch_elements(a, backward) * (a.dtype == DType::float64 ? 8 : 4);
    const int64_t items = a.N * p.groups * p.bands * p.tiles;
    // A thread should get no less than half a million multiplications: below that, starting it costs more than it saves.
    const int64_t per_item = a.G / p.groups * a.M * a.taps() * a.scale * a.scale * p.band_rows * p.tile * (backward ? 2 : 1);
    const int64_t grain = std::max<int64_t>(1, ceil_div(int64_t{1} << 19, per_item));
    torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
      void* memory = scratch(bytes);
#if defined(__x86_64__)
      if (active_isa() == Isa::avx512) return avx512::run_window(a, p, backward, {begin, end}, memory);
      if (active_isa() == Isa::avx2) return avx2::run_window(a, p, backward, {begin, end}, memory);
#endif
      generic::run_window(a, p, backward, {begin, end}, memory);
    });
  }
};

}  // namespace pyindexnet
