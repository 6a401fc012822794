// SPDX-License-Identifier: Apache-2.0
// Numbers inside the CUDA kernels: accumulator types, vectors in memory and in registers, division by launch constants.
// Storage types are those of torch/headeronly, which nvcc and the host compiler of the emulation both understand.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "launch.h"

namespace pyindexnet {

namespace cuda {

// Approximate instructions: 2 ulp for 2^x, 1 ulp for 1/x; infinities and NaN come out as IEEE 754 has them, and denormal
// results are 0. Full-precision division would cost more than the memory traffic leaves time for.
PYINDEXNET_HOST_DEVICE float exponential(float a) {
  const float power = a * 1.44269504f;
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(power));
  return result;
#else
  return std::exp2(power);
#endif
}

PYINDEXNET_HOST_DEVICE float inverse(float a) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return 1.0f / a;
#endif
}

// 2^n e^r with |r| <= ln(2) / 2 and a Taylor polynomial, 2 ulp. The library's exp branches, for which registers spill. The
// argument is clamped so that the result is a normal number.
PYINDEXNET_HOST_DEVICE double exponential(double a) {
  constexpr double kInverseFactorial[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
      1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves the rounded integer in the low bits
  a = a > 708.0 ? 708.0 : a;
  a = a < -708.0 ? -708.0 : a;
  const double shifted = a * 1.4426950408889634 + kRound;
  const double n = shifted - kRound;
  const double r = std::fma(n, -1.9082149292705877e-10, std::fma(n, -0.6931471803691238, a));
  double e = 1.0 / 6227020800;
#pragma unroll
  for (const double coefficient : kInverseFactorial) e = std::fma(e, r, coefficient);
  uint64_t bits;
  memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 1023) << 52;
  double scale;
  memcpy(&scale, &bits, sizeof(scale));
  return e * scale;
}

// Two Newton steps on the approximation: a division would call a subroutine, for which registers spill.
PYINDEXNET_HOST_DEVICE double inverse(double a) {
#if defined(__CUDA_ARCH__)
  a = a > 1e300 ? 1e300 : a;  // infinity times 0 would make the steps NaN
  double result;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(result) : "d"(a));
  result += result * (1.0 - a * result);
  return result + result * (1.0 - a * result);
#else
  return 1.0 / a;
#endif
}

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

// One store instruction. Plain assignment would do, but nvcc 13 forgets the alignment of Chunk in these kernels and splits it.
template <class Chunk>
PYINDEXNET_HOST_DEVICE void store_chunk(void* to, const Chunk& chunk) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Chunk) >= 4) {
    unsigned word[sizeof(Chunk) / 4];
    memcpy(word, &chunk, sizeof(Chunk));
    const size_t address = __cvta_generic_to_global(to);
    if constexpr (sizeof(Chunk) == 16) {
      asm volatile(
          "st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]));
    } else if constexpr (sizeof(Chunk) == 8) {
      asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(word[0]), "r"(word[1]));
    } else {
      asm volatile("st.global.u32 [%0], %1;" ::"l"(address), "r"(word[0]));
    }
    return;
  }
#endif
  *static_cast<Chunk*>(to) = chunk;
}

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
    store_chunk(to + i, chunk);
  }
}

// --- kN neighbouring cells, the value type that the kernels give to index_normalization.h --------------------------------

template <class A, int kN>
struct Lanes {
  A at[kN];
  Lanes() = default;
  PYINDEXNET_HOST_DEVICE explicit Lanes(int value) {
#pragma unroll
    for (int v = 0; v < kN; ++v) at[v] = A(value);
  }
  template <class T>
  PYINDEXNET_HOST_DEVICE explicit Lanes(const T (&values)[kN]) {
#pragma unroll
    for (int v = 0; v < kN; ++v) at[v] = A(values[v]);
  }
};

// kN results of an expression in v.
#define PYINDEXNET_LANES(...)                      \
  Lanes<A, kN> out;                                \
  _Pragma("unroll") for (int v = 0; v < kN; ++v) { \
    out.at[v] = __VA_ARGS__;                       \
  }                                                \
  return out

template <class A, int kN>
PYINDEXNET_HOST_DEVICE Lanes<A, kN> operator+(const Lanes<A, kN>& a, const Lanes<A, kN>& b) {
  PYINDEXNET_LANES(a.at[v] + b.at[v]);
}
template <class A, int kN>
PYINDEXNET_HOST_DEVICE Lanes<A, kN> operator-(const Lanes<A, kN>& a, const Lanes<A, kN>& b) {
  PYINDEXNET_LANES(a.at[v] - b.at[v]);
}
template <class A, int kN>
PYINDEXNET_HOST_DEVICE Lanes<A, kN> operator*(const Lanes<A, kN>& a, const Lanes<A, kN>& b) {
  PYINDEXNET_LANES(a.at[v] * b.at[v]);
}
template <class A, int kN>
PYINDEXNET_HOST_DEVICE Lanes<A, kN> exp_of(const Lanes<A, kN>& a) {
  PYINDEXNET_LANES(exponential(a.at[v]));
}
template <class A, int kN>
PYINDEXNET_HOST_DEVICE Lanes<A, kN> exp_unit(const Lanes<A, kN>& a) {
  PYINDEXNET_LANES(exponential(a.at[v]));
}
template <class A, int kN>
PYINDEXNET_HOST_DEVICE Lanes<A, kN> reciprocal(const Lanes<A, kN>& a) {
  PYINDEXNET_LANES(inverse(a.at[v]));
}
template <class A, int kN>
PYINDEXNET_HOST_DEVICE Lanes<A, kN> maximum(const Lanes<A, kN>& a, const Lanes<A, kN>& b) {
  PYINDEXNET_LANES(a.at[v] < b.at[v] ? b.at[v] : a.at[v]);
}
#undef PYINDEXNET_LANES

// --- integer division by a number known at launch --------------------------------------------------------------------------

// A multiplication and a shift, exact for dividends below 2^63.
class Divider {
 public:
  Divider() = default;
  explicit Divider(int64_t divisor) : divisor_(static_cast<uint64_t>(divisor)) {
    while ((uint64_t{1} << shift_) < divisor_) ++shift_;
    using Wide = unsigned __int128;
    magic_ = static_cast<uint64_t>((Wide{(uint64_t{1} << shift_) - divisor_} << 64) / divisor_ + 1);
  }

  // value <- value / divisor; returns the remainder.
  PYINDEXNET_HOST_DEVICE int64_t split(int64_t& value) const {
    const uint64_t n = static_cast<uint64_t>(value);
    const uint64_t quotient = (high(n, magic_) + n) >> shift_;
    value = static_cast<int64_t>(quotient);
    return static_cast<int64_t>(n - quotient * divisor_);
  }

 private:
  PYINDEXNET_HOST_DEVICE static uint64_t high(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
    return __umul64hi(a, b);
#else
    return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
  }

  uint64_t divisor_ = 1, magic_ = 1;
  int shift_ = 0;
};

}  // namespace cuda
}  // namespace pyindexnet
