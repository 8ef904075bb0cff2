// What decode attention needs beyond vector_math.h: IEEE halves, and sums over the lanes of many vectors at once.
#pragma once
#include <algorithm>
#include <cstddef>
#include <utility>

#include "vector_math.h"

namespace flambeau {

struct Half {
    uint16_t bits;
};
static inline vf load(const Half* p, int count = W) {
    const vh bits = load_any<vh>(reinterpret_cast<const uint16_t*>(p), count);
#if defined(__AVX512F__)
    __m256i raw;
    std::memcpy(&raw, &bits, sizeof(raw));
    return (vf)_mm512_cvtph_ps(raw);
#else
    const vi wide = __builtin_convertvector(bits, vi), magnitude = (wide & 0x7fff) << 13;
    const vf value = (vf)magnitude * 5.192296858534828e33f;  // 2^112 rebiases the exponent, denormals included
    const vi special = (magnitude >= (0x7c00 << 13)) & 0x7f800000;
    return (vf)((vi)value | special | ((wide & 0x8000) << 16));
#endif
}
static inline Half to_half(float x) {  // rounds to nearest even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t half;
    if (magnitude > 0x7f800000) half = 0x7e00;
    else if (magnitude >= 0x47800000) half = 0x7c00;
    else if (magnitude >= 0x38800000) half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    else {  // denormal: adding 0.5 leaves the rounded mantissa in the low bits
        float shifted;
        std::memcpy(&shifted, &magnitude, 4);
        shifted += 0.5f;
        std::memcpy(&half, &shifted, 4);
        half -= 0x3f000000;
    }
    return {(uint16_t)(sign | half)};
}
static inline void store(Half* p, vf v, int count = W) {
    for (int i = 0; i < count; i++) p[i] = to_half(v[i]);
}

// Lanes of a and b, as `Index` of both laid end to end.
template <int... Index>
static inline vf shuffle(vf a, vf b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, Index...);
#else
    return __builtin_shuffle(a, b, vi{Index...});
#endif
}
// Lane i of combine<S>(a, b) is the sum of lanes i and i ^ S of a when bit S of i is 0, of b when it is 1.
template <int S, size_t... I>
static inline vf combine(vf a, vf b, std::index_sequence<I...>) {
    return shuffle<(int)((I & S) ? W + I : I)...>(a, b) + shuffle<(int)((I & S) ? W + (I ^ S) : (I ^ S))...>(a, b);
}
// The sum of every one of W vectors, as the lanes of one; v is overwritten.
template <int S = 1>
static inline vf sums(vf* v) {
    for (int i = 0; i < W / S; i += 2) v[i / 2] = combine<S>(v[i], v[i + 1], std::make_index_sequence<W>());
    if constexpr (2 * S < W) return sums<2 * S>(v);
    else return v[0];
}
static inline float sum(vf v) {
    float total = 0;
    for (int i = 0; i < W; i++) total += v[i];
    return total;
}
static inline float largest(vf v) {
    float found = v[0];
    for (int i = 1; i < W; i++) found = std::max(found, v[i]);
    return found;
}

// How a row of `dim` elements is covered by vectors. The last one overlaps its neighbour instead of being cut short.
struct Cover {
    int dim, width, vectors;
    Cover(int dim, int width) : dim(dim), width(width), vectors((dim + width - 1) / width) {}
    int offset(int i) const { return std::max(0, std::min(i * width, dim - width)); }
    int count() const { return std::min(dim, width); }        // lanes in use: all, unless dim < width
    int repeated(int i) const { return dim < width ? 0 : i * width - offset(i); }  // lanes of vector i seen before
};

}  // namespace flambeau
