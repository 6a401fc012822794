// SPDX-License-Identifier: Apache-2.0
// Vectors of float or double over GCC's vector extensions: arithmetic, exp, conversion from and to the storage dtypes, and
// (de)interleaving by 2, 3 and 4. The width is what the instruction set of the translation unit offers.
// Only headers without inline functions of other libraries may be included here: see host_device.h.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../common/host_device.h"

#define PYINDEXNET_INLINE inline __attribute__((always_inline))
#define PYINDEXNET_LAMBDA_INLINE __attribute__((always_inline))

namespace pyindexnet {

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

inline namespace PYINDEXNET_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

// The vector attribute needs a type that is not a template parameter.
template <class T>
struct Lane;
template <>
struct Lane<float> {
  typedef float Native __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Index __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Lane<double> {
  typedef double Native __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Index __attribute__((vector_size(kVectorBytes)));
};

template <class T>
struct Vec {
  static constexpr int size = kVectorBytes / sizeof(T);
  using Native = typename Lane<T>::Native;
  using Index = typename Lane<T>::Index;
  Native v;
  Vec() = default;
  PYINDEXNET_INLINE Vec(Native native) : v(native) {}
  PYINDEXNET_INLINE explicit Vec(T value) : v(Native{} + value) {}
  PYINDEXNET_INLINE explicit Vec(int value) : Vec(static_cast<T>(value)) {}
  friend PYINDEXNET_INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend PYINDEXNET_INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend PYINDEXNET_INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  // A NaN in `a` survives: the comparison is false for it.
  friend PYINDEXNET_INLINE Vec maximum(Vec b, Vec a) { return a.v < b.v ? b.v : a.v; }
};
using VecF = Vec<float>;
using VecD = Vec<double>;
using BitsF = VecF::Index;

PYINDEXNET_INLINE BitsF bits_of(VecF a) {
  return reinterpret_cast<BitsF>(a.v);
}
PYINDEXNET_INLINE VecF from_bits(BitsF a) {
  return reinterpret_cast<VecF::Native>(a);
}

// --- functions that csrc/common/index_normalization.h asks for ----------------------------------------------------------

PYINDEXNET_INLINE VecF reciprocal(VecF a) {
#if defined(__AVX512F__)
  // 14 bits and one Newton step: 1 ulp, at a fraction of a 512-bit division's time. `a` must be finite and not tiny.
  const VecF r = _mm512_rcp14_ps(a.v);
  return r.v * (2.0f - a.v * r.v);
#else
  return 1.0f / a.v;
#endif
}
PYINDEXNET_INLINE VecD reciprocal(VecD a) {
  return 1.0 / a.v;
}

// A NaN in `a` survives: x86's instructions return their second operand then, and so do the comparisons.
PYINDEXNET_INLINE VecF clamp(VecF a, float low, float high) {
#if defined(__AVX512F__)
  return VecF::Native(_mm512_max_ps(VecF(low).v, _mm512_min_ps(VecF(high).v, a.v)));
#elif defined(__AVX__)
  return VecF::Native(_mm256_max_ps(VecF(low).v, _mm256_min_ps(VecF(high).v, a.v)));
#else
  const VecF::Native x = a.v > high ? VecF(high).v : a.v;
  return x < low ? VecF(low).v : x;
#endif
}

// 2^t: a minimax polynomial of degree 5 (8e-8) times a power of two. Never so large that a reciprocal of it, or of 1 + it,
// loses digits.
PYINDEXNET_INLINE VecF exp2_of(VecF t) {
#if defined(__AVX512F__)
  // A NaN survives the minimum, which returns its second operand then.
  const VecF::Native x = _mm512_min_ps(VecF(125.0f).v, t.v);
  const VecF::Native r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);  // x - floor(x)
  VecF::Native p = r * 0.001867130413f + 0.009017029593f;
  p = p * r + 0.05579991363f;
  p = p * r + 0.24016445f;
  p = p * r + 0.6931513118f;
  p = p * r + 1.0f;                             // exact at 0, so that a saturated softmax is exactly 1
  return VecF::Native(_mm512_scalef_ps(p, x));  // p * 2^floor(x)
#else
  constexpr float kRound = 12582912.0f;                // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const VecF::Native x = clamp(t, -125.0f, 125.0f).v;  // the result must be normal: its exponent is added to
  const VecF::Native shifted = x + kRound;
  const VecF::Native r = x - (shifted - kRound);
  VecF::Native p = r * 0.001327647273f + 0.009675541326f;
  p = p * r + 0.05550713271f;
  p = p * r + 0.2402211972f;
  p = p * r + 0.6931469671f;
  p = p * r + 1.000000072f;
  return from_bits(bits_of(p) + (bits_of(shifted) << 23));
#endif
}
// The rounding of a * log2(e) makes a relative error of |a| * 2^-24, which sigmoid and softmax damp by exp(-|a|).
inline constexpr float kLog2e = 1.44269504f;
PYINDEXNET_INLINE VecF exp_of(VecF a) {
  return exp2_of(a.v * kLog2e);
}
// Preferred to the template of csrc/common/index_normalization.h: the sign goes into the constant.
PYINDEXNET_INLINE VecF sigmoid(VecF a) {
  return reciprocal(1.0f + exp2_of(a.v * -kLog2e).v);
}

PYINDEXNET_INLINE VecD exp_of(VecD a) {
  VecD out;
  for (int i = 0; i < VecD::size; ++i) out.v[i] = __builtin_exp(a.v[i]);
  return out;
}

// exp on [0, 1] without range reduction: minimax polynomial of degree 6 (2.4e-8).
PYINDEXNET_INLINE VecF exp_unit(VecF a) {
  VecF::Native p = a.v * 0.002272064832f + 0.007064674393f;
  p = p * a.v + 0.04252587446f;
  p = p * a.v + 0.1663759805f;
  p = p * a.v + 0.5000457832f;
  p = p * a.v + 0.9999973617f;
  return p * a.v + 1.000000024f;
}
PYINDEXNET_INLINE VecD exp_unit(VecD a) {
  return exp_of(a);
}

// a <- softmax(sigmoid(a)) of a 2 x 2 cell, with one reciprocal for all of it. exp(sigmoid(x)) is, up to a factor that the
// softmax cancels, (1 + h) / (1 - h) with h = tanh(tanh(x/2) / 4), which is odd and bounded: h = x P(x^2) / Q(x^2) with minimax
// P and Q (relative error of the exponential 6.5e-8 on |x| <= 17, 9.8e-8 beyond, where it is taken as constant).
PYINDEXNET_INLINE void softmax_of_sigmoid(VecF (&a)[4], unsigned present) {
  VecF up[4], down[4];
  for (int k = 0; k < 4; ++k) {
    const VecF::Native x = clamp(a[k], -17.0f, 17.0f).v, y = x * x;
    VecF::Native p = y * 2.02562056e-09f + 2.26774523e-06f;
    p = p * y + 0.000429519598f;
    p = p * y + 0.0167546123f;
    p = p * y + 0.124999896f;
    VecF::Native q = y * 8.46509807e-11f + 3.60679337e-07f;
    q = q * y + 0.000154837893f;
    q = q * y + 0.0134767806f;
    q = q * y + 0.222576663f;
    q = q * y + 1.0f;  // at most 8e3: a product of four stays far from overflow
    const bool in = (present >> k) & 1u;
    up[k] = in ? VecF(q + x * p) : VecF(0.0f);
    down[k] = in ? VecF(q - x * p) : VecF(1.0f);
  }
  const VecF down01 = down[0] * down[1], down23 = down[2] * down[3];
  up[0] = up[0] * down[1], up[1] = up[1] * down[0];
  up[2] = up[2] * down[3], up[3] = up[3] * down[2];
  const VecF scale = reciprocal((up[0] + up[1]) * down23 + (up[2] + up[3]) * down01);
  const VecF scale01 = down23 * scale, scale23 = down01 * scale;
  a[0] = up[0] * scale01, a[1] = up[1] * scale01;
  a[2] = up[2] * scale23, a[3] = up[3] * scale23;
}

// --- load and store: `count` lanes at p, p + stride, ... ------------------------------------------------------------------

template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

PYINDEXNET_INLINE float widen(float a) {
  return a;
}
PYINDEXNET_INLINE double widen(double a) {
  return a;
}
PYINDEXNET_INLINE float widen(bfloat16 a) {
  const uint32_t bits = uint32_t{a.bits} << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

typedef uint16_t Lanes16 __attribute__((vector_size(kVectorBytes / 2)));

PYINDEXNET_INLINE VecF load(const float* p) {
  VecF out;
  std::memcpy(&out.v, p, sizeof(out.v));
  return out;
}
PYINDEXNET_INLINE VecD load(const double* p) {
  VecD out;
  std::memcpy(&out.v, p, sizeof(out.v));
  return out;
}
PYINDEXNET_INLINE VecF load(const bfloat16* p) {
  Lanes16 raw;
  std::memcpy(&raw, p, sizeof(raw));
  return from_bits(__builtin_convertvector(raw, BitsF) << 16);
}

PYINDEXNET_INLINE void store(float* p, VecF a) {
  std::memcpy(p, &a.v, sizeof(a.v));
}
PYINDEXNET_INLINE void store(double* p, VecD a) {
  std::memcpy(p, &a.v, sizeof(a.v));
}
PYINDEXNET_INLINE void store(bfloat16* p, VecF a) {
  // Round to nearest even; a NaN keeps its top bits and gets a quiet bit.
  const BitsF bits = bits_of(a);
  BitsF rounded = bits + 0x7fff + ((bits >> 16) & 1);
  rounded = a.v == a.v ? rounded : (bits | 0x400000);
  const Lanes16 raw = __builtin_convertvector(rounded >> 16, Lanes16);
  std::memcpy(p, &raw, sizeof(raw));
}

// An output of this many bytes does not stay in a cache until it is read: its lines are written past them, where every vector
// of it is aligned. `strides`: of all its dimensions that vectors do not run along (a stride of 1 is what they run along).
inline constexpr int64_t kStreamBytes = int64_t{16} << 20;
template <class T>
bool worth_streaming(const void* data, std::initializer_list<int64_t> strides, int64_t elements) {
  if (!std::is_same_v<T, float> || !data || reinterpret_cast<uintptr_t>(data) % kVectorBytes) return false;
  for (const int64_t stride : strides) {
    if (stride != 1 && stride % (kVectorBytes / static_cast<int64_t>(sizeof(T)))) return false;
  }
  return elements * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
}

// Past the caches, for outputs larger than those: the lines written are not read first. p must be aligned to the vector, and
// stream_fence() must come before another thread may read.
template <class T, class V>
PYINDEXNET_INLINE void stream(T* p, V a) {
  store(p, a);
}
#if defined(__AVX512F__)
PYINDEXNET_INLINE void stream(float* p, VecF a) {
  _mm512_stream_ps(p, a.v);
}
PYINDEXNET_INLINE void stream_fence() {
  _mm_sfence();
}
#elif defined(__AVX__)
PYINDEXNET_INLINE void stream(float* p, VecF a) {
  _mm256_stream_ps(p, a.v);
}
PYINDEXNET_INLINE void stream_fence() {
  _mm_sfence();
}
#else
PYINDEXNET_INLINE void stream_fence() {}
#endif

#if defined(__AVX512F__)
PYINDEXNET_INLINE VecF load(const float16* p) {
  return VecF::Native(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
PYINDEXNET_INLINE void store(float16* p, VecF a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
PYINDEXNET_INLINE VecF load(const float16* p) {
  return VecF::Native(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
PYINDEXNET_INLINE void store(float16* p, VecF a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
#else
// Integer arithmetic on vectors, for machines without conversion instructions.
PYINDEXNET_INLINE VecF load(const float16* p) {
  Lanes16 raw;
  std::memcpy(&raw, p, sizeof(raw));
  const BitsF h = __builtin_convertvector(raw, BitsF);
  const BitsF sign = (h & 0x8000) << 16;
  const BitsF rest = (h & 0x7fff) << 13;
  const VecF::Native scaled = from_bits(rest).v * 0x1p112f;  // moves the exponent bias from 15 to 127, subnormals included
  const BitsF special = (h & 0x7c00) == 0x7c00;
  const BitsF magnitude = special ? (rest | 0x7f800000) : bits_of(scaled);
  return from_bits(magnitude | sign);
}
PYINDEXNET_INLINE void store(float16* p, VecF a) {
  const BitsF bits = bits_of(a);
  const BitsF magnitude = bits & 0x7fffffff;
  // Normal results: rebias and round to nearest even in integers. Subnormal results: let a float addition round.
  const BitsF normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const BitsF subnormal = bits_of(from_bits(magnitude).v + 0.5f) - bits_of(VecF(0.5f));
  BitsF h = magnitude < (113 << 23) ? subnormal : normal;
  h = magnitude >= 0x47800000 ? BitsF{} + 0x7c00 : h;  // 65536 and above; 65520..65536 rounds up into it by itself
  h = magnitude > 0x7f800000 ? BitsF{} + 0x7e00 : h;
  const Lanes16 raw = __builtin_convertvector(h | ((bits >> 16) & 0x8000), Lanes16);
  std::memcpy(p, &raw, sizeof(raw));
}
#endif

// Lanes [from, to) of the vector at p, of those it has; the others are 0, and their memory is not touched.
template <class T>
PYINDEXNET_INLINE Vec<T> load_between(const T* p, int64_t from, int64_t to) {
  constexpr int64_t L = Vec<T>::size;
  const int first = static_cast<int>(from < 0 ? 0 : from), last = static_cast<int>(to < L ? to : L);
#if defined(__AVX512F__)
  const unsigned mask = last > first ? (1u << last) - (1u << first) : 0u;
  if constexpr (std::is_same_v<T, float>) {
    return Vec<T>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p));
  } else {
    return Vec<T>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p));
  }
#else
  T buffer[L] = {};
  for (int l = first; l < last; ++l) buffer[l] = p[l];
  return load(buffer);
#endif
}

// The first `count` lanes; the memory of the others is not touched.
template <class T, class V>
PYINDEXNET_INLINE void store_first(T* p, int64_t count, V a) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), a.v);
  if constexpr (std::is_same_v<T, double>) return _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1u), a.v);
#endif
  alignas(64) T buffer[V::size];
  store(buffer, a);
  for (int64_t l = 0; l < count; ++l) p[l] = buffer[l];
}

// Fewer lanes than a vector, or lanes apart from each other: through a buffer. Unused lanes are 0. Not inlined: one copy each.
template <class T>
__attribute__((noinline)) auto load_lanes(const T* p, int64_t stride, int count) {
  alignas(64) T buffer[Vec<typename Accumulate<T>::type>::size] = {};
  if (stride == 1) {
    std::memcpy(buffer, p, count * sizeof(T));
  } else {
    for (int i = 0; i < count; ++i) buffer[i] = p[i * stride];
  }
  return load(buffer);
}
// The first `count` lanes; the others are 0, and their memory is not touched.
template <class T>
PYINDEXNET_INLINE auto load_first(const T* p, int64_t count) {
  if constexpr (std::is_same_v<T, typename Accumulate<T>::type>) {
    return load_between(p, 0, count);
  } else {
    return load_lanes(p, 1, static_cast<int>(count));
  }
}
template <class T, class V>
__attribute__((noinline)) void store_lanes(T* p, int64_t stride, int count, V a) {
  alignas(64) T buffer[V::size];
  store(buffer, a);
  if (stride == 1) {
    std::memcpy(p, buffer, count * sizeof(T));
  } else {
    for (int i = 0; i < count; ++i) p[i * stride] = buffer[i];
  }
}

// --- interleaving: lane l of out[i] is element l * R + i of the R vectors in ---------------------------------------------

template <class V, class F, std::size_t... I>
PYINDEXNET_INLINE constexpr auto make_indices(F f, std::index_sequence<I...>) {
  return typename V::Index{f(static_cast<int>(I))...};
}
// Lane l of the result is lane f(l) of the concatenation of a and b.
template <class V, class F>
PYINDEXNET_INLINE V shuffle(V a, V b, F f) {
  return __builtin_shuffle(a.v, b.v, make_indices<V>(f, std::make_index_sequence<V::size>{}));
}

template <int R, class V>
PYINDEXNET_INLINE void deinterleave(const V (&in)[R], V* out) {
  constexpr int L = V::size;
  if constexpr (R == 2) {
    out[0] = shuffle(in[0], in[1], [](int l) { return 2 * l; });
    out[1] = shuffle(in[0], in[1], [](int l) { return 2 * l + 1; });
  } else if constexpr (R == 4) {
    const V low[2] = {in[0], in[1]}, high[2] = {in[2], in[3]};
    V a[2], b[2];
    deinterleave<2>(low, a), deinterleave<2>(high, b);
    const V even[2] = {a[0], b[0]}, odd[2] = {a[1], b[1]};
    deinterleave<2>(even, a), deinterleave<2>(odd, b);
    out[0] = a[0], out[1] = b[0], out[2] = a[1], out[3] = b[1];
  } else {
    static_assert(R == 3);
    const auto pick = [&](auto lane) {  // first from vectors 0 and 1, then the lanes that lie in vector 2
      const V two = shuffle(in[0], in[1], [=](int l) { return lane(l) < 2 * L ? lane(l) : 0; });
      return shuffle(two, in[2], [=](int l) { return lane(l) < 2 * L ? l : lane(l) - L; });
    };
    out[0] = pick([](int l) { return 3 * l; });
    out[1] = pick([](int l) { return 3 * l + 1; });
    out[2] = pick([](int l) { return 3 * l + 2; });
  }
}

template <int R, class V>
PYINDEXNET_INLINE void interleave(const V* in, V (&out)[R]) {
  constexpr int L = V::size;
  if constexpr (R == 2) {
    out[0] = shuffle(in[0], in[1], [](int p) { return p % 2 * L + p / 2; });
    out[1] = shuffle(in[0], in[1], [](int p) { return p % 2 * L + (p + L) / 2; });
  } else if constexpr (R == 4) {
    const V even[2] = {in[0], in[2]}, odd[2] = {in[1], in[3]};
    V a[2], b[2], low[2], high[2];
    interleave<2>(even, a), interleave<2>(odd, b);
    const V first[2] = {a[0], b[0]}, second[2] = {a[1], b[1]};
    interleave<2>(first, low), interleave<2>(second, high);
    out[0] = low[0], out[1] = low[1], out[2] = high[0], out[3] = high[1];
  } else {
    static_assert(R == 3);
    const auto pick = [&](auto base) {
      const V two = shuffle(in[0], in[1], [=](int p) { return base(p) % 3 < 2 ? base(p) % 3 * L + base(p) / 3 : 0; });
      return shuffle(two, in[2], [=](int p) { return base(p) % 3 < 2 ? p : L + base(p) / 3; });
    };
    out[0] = pick([](int p) { return p; });
    out[1] = pick([](int p) { return p + L; });
    out[2] = pick([](int p) { return p + 2 * L; });
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
