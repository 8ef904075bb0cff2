// The four cells as pointwise functions on vectors. Each has
//   RG recurrent gates (pre-activations 0..RG-1 get R h), G pre-activations in all, of which the last WG get Wx;
//   S states, the first of which recurs; SAVED values a unit keeps for the backward pass.
// forward:  a[G] pre-activations, prev[S] -> next[S], saved[SAVED]
// backward: saved, prev, next, dnext[S] (gradient of the new states) -> da[G], dprev[S] (not through R)
#pragma once
#include "vector_math.h"

namespace flambeau {

struct Lstm {  // gates i, f, z, o; states h, c
    static constexpr int RG = 4, WG = 4, G = 4, S = 2, SAVED = 4;
    static inline void forward(const vf* a, const vf* prev, vf* next, vf* saved) {
        const vf i = sigmoid(a[0]), f = sigmoid(a[1]), z = tanh(a[2]), o = sigmoid(a[3]);
        next[1] = f * prev[1] + i * z;
        next[0] = o * tanh(next[1]);
        saved[0] = i, saved[1] = f, saved[2] = z, saved[3] = o;
    }
    static inline void backward(const vf* saved, const vf* prev, const vf* next, const vf* dnext, vf* da, vf* dprev) {
        const vf i = saved[0], f = saved[1], z = saved[2], o = saved[3], tc = tanh(next[1]);
        const vf dc = dnext[1] + dnext[0] * o * (1.0f - tc * tc);
        da[0] = dc * z * i * (1.0f - i);
        da[1] = dc * prev[1] * f * (1.0f - f);
        da[2] = dc * i * (1.0f - z * z);
        da[3] = dnext[0] * tc * o * (1.0f - o);
        dprev[0] = vf{};
        dprev[1] = dc * f;
    }
};

struct Slstm {  // gates i, f, z, o; states h, c, n, m; the stabiliser m is a constant for the gradient
    static constexpr int RG = 4, WG = 4, G = 4, S = 4, SAVED = 4;
    static inline void forward(const vf* a, const vf* prev, vf* next, vf* saved) {
        const vf z = tanh(a[2]), o = sigmoid(a[3]), lf = log_sigmoid(a[1]) + prev[3];
        const vi empty = prev[2] == 0.0f;
        const vf m = select(empty, a[0], max(lf, a[0]));
        const vf i = exp(a[0] - m), f = select(empty, vf{}, exp(lf - m));
        next[1] = f * prev[1] + i * z;
        next[2] = max(set1(1.0f), f * prev[2] + i);
        next[3] = m;
        next[0] = o * (next[1] / next[2]);
        saved[0] = a[0], saved[1] = a[1], saved[2] = z, saved[3] = o;
    }
    static inline void backward(const vf* saved, const vf* prev, const vf* next, const vf* dnext, vf* da, vf* dprev) {
        const vf z = saved[2], o = saved[3], lf = log_sigmoid(saved[1]) + prev[3];
        const vf i = exp(saved[0] - next[3]), f = select(prev[2] == 0.0f, vf{}, exp(lf - next[3]));
        const vf inverse = 1.0f / next[2], ratio = next[1] * inverse;
        const vf dc = dnext[1] + dnext[0] * o * inverse;
        const vf dn = select(f * prev[2] + i >= 1.0f, dnext[2] - dnext[0] * o * ratio * inverse, vf{});
        da[0] = (dc * z + dn) * i;
        da[1] = (dc * prev[1] + dn * prev[2]) * f * sigmoid(-saved[1]);
        da[2] = dc * i * (1.0f - z * z);
        da[3] = dnext[0] * ratio * o * (1.0f - o);
        dprev[0] = vf{};
        dprev[1] = dc * f;
        dprev[2] = dn * f;
        dprev[3] = vf{};
    }
};

struct Gru {  // pre-activations g (recurrent part of the candidate), r, z, n (its input part); state h
    static constexpr int RG = 3, WG = 3, G = 4, S = 1, SAVED = 4;
    static inline void forward(const vf* a, const vf* prev, vf* next, vf* saved) {
        const vf r = sigmoid(a[1]), z = sigmoid(a[2]), n = tanh(a[3] + r * a[0]);
        next[0] = n + z * (prev[0] - n);
        saved[0] = a[0], saved[1] = r, saved[2] = z, saved[3] = n;
    }
    static inline void backward(const vf* saved, const vf* prev, const vf*, const vf* dnext, vf* da, vf* dprev) {
        const vf g = saved[0], r = saved[1], z = saved[2], n = saved[3];
        da[3] = dnext[0] * (1.0f - z) * (1.0f - n * n);
        da[2] = dnext[0] * (prev[0] - n) * z * (1.0f - z);
        da[1] = da[3] * g * r * (1.0f - r);
        da[0] = da[3] * r;
        dprev[0] = dnext[0] * z;
    }
};

struct Elman {  // h = tanh(g)
    static constexpr int RG = 1, WG = 1, G = 1, S = 1, SAVED = 0;
    static inline void forward(const vf* a, const vf*, vf* next, vf*) { next[0] = tanh(a[0]); }
    static inline void backward(const vf*, const vf*, const vf* next, const vf* dnext, vf* da, vf* dprev) {
        da[0] = dnext[0] * (1.0f - next[0] * next[0]);
        dprev[0] = vf{};
    }
};

}  // namespace flambeau
