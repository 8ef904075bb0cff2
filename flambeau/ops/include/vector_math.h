// Vectors of W floats and the functions neural cells need, written once with GCC/Clang vector extensions:
// W = 16 when compiled for AVX-512, 8 for AVX2, 4 otherwise (SSE2, NEON). Accurate over the whole range of float,
// including infinities, NaN, signed zero and denormal results; do not compile with -ffast-math.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace flambeau {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

static inline vf set1(float x) { return x - vf{}; }
static inline vf select(vi mask, vf yes, vf no) { return mask ? yes : no; }
static inline vf abs(vf x) { return (vf)((vi)x & 0x7fffffff); }
static inline vf min(vf a, vf b) { return a < b ? a : b; }  // b when either is NaN
static inline vf max(vf a, vf b) { return a > b ? a : b; }  // b when either is NaN
static inline vf clamp(vf x, float limit) { return min(set1(limit), max(set1(-limit), x)); }  // NaN stays NaN

// --- memory: `count` < W touches only that many elements and fills the rest with zero. Partial vectors go through a
// loop that is kept out of line, so that it costs neither registers nor compile time where whole vectors are the rule.
template <class Vector, class T>
__attribute__((noinline, cold)) static Vector load_some(const T* p, int count) {
    Vector v{};
    for (int i = 0; i < count; i++) v[i] = p[i];
    return v;
}
template <class Vector, class T>
__attribute__((noinline, cold)) static void store_some(T* p, Vector v, int count) {
    for (int i = 0; i < count; i++) p[i] = v[i];
}
template <class Vector, class T>
static inline Vector load_any(const T* p, int count) {
    if (__builtin_expect(count != W, 0)) return load_some<Vector>(p, count);
    Vector v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}
template <class Vector, class T>
static inline void store_any(T* p, Vector v, int count) {
    if (__builtin_expect(count != W, 0)) store_some(p, v, count);
    else std::memcpy(p, &v, sizeof(v));
}
static inline vf load(const float* p, int count = W) { return load_any<vf>(p, count); }
static inline void store(float* p, vf v, int count = W) { store_any(p, v, count); }
// bfloat16 is the upper half of a float; stored as uint16_t.
static inline vf load(const uint16_t* p, int count = W) {
    return (vf)(__builtin_convertvector(load_any<vh>(p, count), vi) << 16);
}
static inline void store(uint16_t* p, vf v, int count = W) {  // rounds to nearest even; NaN stays a (quiet) NaN
    const vi bits = (vi)v;
    const vi rounded = bits + 0x7fff + ((bits >> 16) & 1);
    store_any(p, __builtin_convertvector((v == v ? rounded : bits | 0x400000) >> 16, vh), count);
}

// exp(x) = 2^n exp(r) with |r| <= ln(2)/2; the polynomial is that of the Cephes library (expf).
static inline vf exp(vf x) {
    x = max(set1(-105.0f), min(set1(89.0f), x));  // beyond these the result is 0 or infinity anyway
    const float magic = 12582912.0f;              // 1.5 * 2^23: adding it rounds to an integer
    const vf shifted = x * 1.44269504088896341f + magic;
    const vf n = shifted - magic;
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const vi k = (vi)shifted - 0x4b400000;  // n as an integer; scale in two halves, so denormals and 2^128 come out right
    const vi half = k >> 1;
    return p * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
#endif
}

static inline vf sigmoid(vf x) {  // relative accuracy on both tails
    const vf e = exp(-abs(x));
    return select(x >= 0.0f, set1(1.0f), e) / (1.0f + e);
}

static inline vf tanh(vf x) {  // odd polynomial (Cephes tanhf) below 0.625, where 1 - e^-2x would cancel
    const vf a = abs(x), e = exp(-2.0f * a), z = x * x;
    vf p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z + -5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z + -3.33332819422e-1f;
    const vf magnitude = select(a < 0.625f, p * z * a + a, (1.0f - e) / (1.0f + e));
    return (vf)((vi)magnitude | ((vi)x & (int32_t)0x80000000));
}

// log(1 + e) for 0 <= e <= 1: 2 atanh(s), s = e / (2 + e) <= 1/3, by its series to s^17.
static inline vf log1p_unit(vf e) {
    const vf s = e / (2.0f + e), q = s * s;
    vf p = q * (1.0f / 17) + 1.0f / 15;
    p = p * q + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    return 2.0f * (p * q * s + s);
}

static inline vf log_sigmoid(vf x) { return min(x, vf{}) - log1p_unit(exp(-abs(x))); }

}  // namespace flambeau
