// SPDX-License-Identifier: Apache-2.0
// Numbers inside the CUDA kernels: accumulator types, the functions that index_normalization.h asks for, vector loads.
// Storage types are those of torch/headeronly, which nvcc and the host compiler of the emulation both understand.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace pyindexnet {

// --- functions that csrc/common/index_normalization.h asks for -----------------------------------------------------------

// Approximate instructions: 2 ulp for 2^x, 1 ulp for 1/x; infinities and NaN come out as IEEE 754 has them, and denormal
// results are 0. Full-precision division would cost more than the memory traffic leaves time for.
PYINDEXNET_HOST_DEVICE float exp_of(float a) {
  const float power = a * 1.44269504f;
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(power));
  return result;
#else
  return std::exp2(power);
#endif
}

PYINDEXNET_HOST_DEVICE float reciprocal(float a) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return 1.0f / a;
#endif
}

PYINDEXNET_HOST_DEVICE double exp_of(double a) { return ::exp(a); }
PYINDEXNET_HOST_DEVICE double reciprocal(double a) { return 1.0 / a; }
PYINDEXNET_HOST_DEVICE float exp_unit(float a) { return exp_of(a); }
PYINDEXNET_HOST_DEVICE double exp_unit(double a) { return exp_of(a); }
PYINDEXNET_HOST_DEVICE float maximum(float a, float b) { return a < b ? b : a; }
PYINDEXNET_HOST_DEVICE double maximum(double a, double b) { return a < b ? b : a; }

namespace cuda {

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// --- vectors in memory -----------------------------------------------------------------------------------------------------

// Elements that one instruction moves of `count` consecutive ones: at most 16 bytes, a power of two that divides `count`.
// Addresses must be aligned to as many elements.
template <class T>
PYINDEXNET_HOST_DEVICE constexpr int chunk_of(int count) {
  int chunk = 1;
  while (count % (2 * chunk) == 0 && 2 * chunk * sizeof(T) <= 16) chunk *= 2;
  return chunk;
}

template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Pack {
  T at[kCount];
};

template <int kCount, class T>
PYINDEXNET_HOST_DEVICE void load_vector(T (&out)[kCount], const T* from) {
  constexpr int kChunk = chunk_of<T>(kCount);
  using Chunk = Pack<T, kChunk>;
#pragma unroll
  for (int i = 0; i < kCount; i += kChunk) {
    const Chunk chunk = *reinterpret_cast<const Chunk*>(from + i);
#pragma unroll
    for (int e = 0; e < kChunk; ++e) out[i + e] = chunk.at[e];
  }
}

template <int kCount, class T>
PYINDEXNET_HOST_DEVICE void store_vector(T* to, const T (&in)[kCount]) {
  constexpr int kChunk = chunk_of<T>(kCount);
  using Chunk = Pack<T, kChunk>;
#pragma unroll
  for (int i = 0; i < kCount; i += kChunk) {
    Chunk chunk;
#pragma unroll
    for (int e = 0; e < kChunk; ++e) chunk.at[e] = in[i + e];
    *reinterpret_cast<Chunk*>(to + i) = chunk;
  }
}

// --- integer division by a number known at launch ----------------------------------------------------------------------

// Below 2^31 a multiplication and a shift, which the large index ranges of tests and huge tensors leave for a division.
class Divider {
 public:
  Divider() = default;
  explicit Divider(int64_t divisor) : divisor_(static_cast<uint64_t>(divisor)) {
    if (divisor_ >> 31) {
      shift_ = 31;  // every dividend below 2^31 gives 0
      return;
    }
    while ((uint64_t{1} << shift_) < divisor_) ++shift_;
    magic_ = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - divisor_)) / divisor_ + 1);
  }

  // value <- value / divisor; returns the remainder.
  PYINDEXNET_HOST_DEVICE int64_t split(int64_t& value) const {
    const uint64_t n = static_cast<uint64_t>(value);
    uint64_t quotient;
    if ((n >> 31) == 0) {
      const uint32_t high = static_cast<uint32_t>((uint64_t{static_cast<uint32_t>(n)} * magic_) >> 32);
      quotient = (high + static_cast<uint32_t>(n)) >> shift_;
    } else {
      quotient = n / divisor_;
    }
    value = static_cast<int64_t>(quotient);
    return static_cast<int64_t>(n - quotient * divisor_);
  }

 private:
  uint64_t divisor_ = 1;
  uint32_t magic_ = 0, shift_ = 0;
};

}  // namespace cuda
}  // namespace pyindexnet
