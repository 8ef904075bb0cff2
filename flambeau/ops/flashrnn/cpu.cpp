// Multi-head recurrent networks with the whole time loop inside the kernel (Poeppel et al., "FlashRNN", 2024), for CPUs.
//
// R is packed once a call into panels of W units, so that per step one pass over a panel yields all gates of W units in
// registers; the activations follow on the registers and no [batch, gates] array ever reaches memory. Backward walks the
// steps in reverse with R^T in panels of 2W units; dR and db are one matrix product over all steps, left to the caller.
//
// Work is split over threads by (head, rows of the batch) with no synchronisation between steps, or, when there are
// fewer of those than threads, by panels with one barrier a step.
//
// Layouts (row major): Wx [B,T,WG,N,D], R [RG,N,D,D] (out, in), bias [G,N,D], initial [S,B,N,D], states [S,B,T,N,D],
// saved [B,T,SAVED,N,D], dstates [S,B,T,N,D], delta [B,T,G,N,D], dinitial [S,B,N,D].
#include <algorithm>
#include <atomic>
#include <new>
#include <sched.h>
#include <thread>
#include <vector>

#include "cells.h"

namespace flambeau {
namespace {

#if defined(__AVX512F__)
constexpr int MAX_ROWS = 6;  // 4 * 6 accumulators + 4 weights + 1 broadcast of 32 registers
#else
constexpr int MAX_ROWS = 2;  // 4 * 2 + 4 + 1 of 16
#endif
// Rows go in blocks of these sizes: every further size would be another copy of both passes to compile.
constexpr int block_rows(int most) {
    if (MAX_ROWS == 6 && most >= 4) return most >= 6 ? 6 : 4;
    return most >= 2 ? 2 : 1;
}

// The operands of the recurrence are 32-bit words: one float, or two consecutive bfloat16 along the sum.
struct Fp32 {
    typedef float element;
    static constexpr int PACK = 1;
    static inline vf dot(vf acc, vf a, vf b) { return acc + a * b; }
};
struct Bf16 {
    typedef uint16_t element;
    static constexpr int PACK = 2;
    static inline vf dot(vf acc, vf a, vf b) {
#if defined(__AVX512BF16__)
        return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
        acc = acc + (vf)((vi)a << 16) * (vf)((vi)b << 16);
        return acc + (vf)((vi)a & (int32_t)0xffff0000) * (vf)((vi)b & (int32_t)0xffff0000);
#endif
    }
};

struct Barrier {  // spins briefly, then gives the core away: a pure spin is ruinous when cores are oversubscribed
    const int threads;
    std::atomic<int> waiting{0}, round{0};
    explicit Barrier(int n) : threads(n) {}
    void wait() {
        if (threads == 1) return;
        const int mine = round.load(std::memory_order_relaxed);
        if (waiting.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            waiting.store(0, std::memory_order_relaxed);
            round.store(mine + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round.load(std::memory_order_acquire) == mine; spins++)
            if (spins > 2000) sched_yield();
    }
};

struct Buffer {  // zeroed, aligned to a vector
    char* p;
    explicit Buffer(size_t bytes) : p(static_cast<char*>(::operator new(bytes, std::align_val_t(64)))) {
        std::memset(p, 0, bytes);
    }
    ~Buffer() { ::operator delete(p, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
};

struct Shape {
    int B, T, N, D, rows, threads;
    int panels(int units) const { return (D + units - 1) / units; }
    int64_t row(int64_t b, int64_t t, int64_t gates) const { return (b * T + t) * gates * N * D; }
    int64_t state(int64_t s, int64_t b, int64_t t, int64_t n) const { return (((s * B + b) * T + t) * N + n) * D; }
    int64_t initial(int64_t s, int64_t b, int64_t n) const { return ((s * B + b) * N + n) * D; }
};

template <class F>
void run_threads(int threads, F f) {
    std::vector<std::thread> others;
    for (int i = 1; i < threads; i++) others.emplace_back(f, i);
    f(0);
    for (auto& t : others) t.join();
}

// Calls f(index, of) for the indices of one thread's share.
template <class F>
void share(int64_t count, int thread, int threads, F f) {
    for (int64_t i = count * thread / threads; i < count * (thread + 1) / threads; i++) f(i);
}

// Every other step visits the panels backwards: those of R that are still in the cache come first.
inline int turn(int t, int i, int panels) { return t & 1 ? panels - 1 - i : i; }

// One call's time loop. Pass provides: steps(), pack(n, panel), step(t, n, panel, b0, rows), PANEL units.
template <class Pass>
void run(const Shape& s, Pass& pass) {
    const int panels = s.panels(Pass::PANEL);
    Barrier barrier(s.threads);
    auto rows = [&](int t, int n, int panel, int b0, int b1) {
        for (int b = b0, count; b < b1; b += count) {
            count = block_rows(std::min(b1 - b, s.rows));
            pass.step(t, n, panel, b, count);
        }
    };
    // Cut the batch only as far as it evens out the heads over the threads.
    const int pieces = s.N % s.threads == 0 ? 1 : std::min(s.B, s.threads);
    const bool by_rows = (int64_t)s.N * pieces >= s.threads;
    run_threads(s.threads, [&](int thread) {
        share((int64_t)s.N * panels, thread, s.threads, [&](int64_t i) { pass.pack(i / panels, i % panels); });
        barrier.wait();
        if (by_rows) {
            share((int64_t)s.N * pieces, thread, s.threads, [&](int64_t i) {
                const int n = i / pieces, k = i % pieces, b0 = s.B * k / pieces, b1 = s.B * (k + 1) / pieces;
                for (int t = 0; t < pass.steps(); t++)
                    for (int i = 0; i < panels; i++) rows(t, n, turn(t, i, panels), b0, b1);
            });
        } else {
            for (int t = 0; t < pass.steps(); t++) {
                share((int64_t)s.N * panels, thread, s.threads,
                      [&](int64_t i) { rows(t, i / panels, i % panels, 0, s.B); });
                barrier.wait();
            }
        }
    });
}

template <class C, class P>
struct Forward {
    static constexpr int PANEL = W;
    typedef typename P::element element;
    const Shape s;
    const float forward_clip;
    const element *wx, *R;
    const float *bias, *initial;
    float *states, *saved;
    const int words = (s.D + P::PACK - 1) / P::PACK;  // of one row of h
    Buffer packed{sizeof(float) * s.N * s.panels(W) * words * C::RG * W};
    Buffer operand{sizeof(float) * 2 * s.N * s.B * words};  // h of the previous and of this step, by parity of t

    int steps() const { return s.T; }
    float* h(int parity, int n, int b) {
        return reinterpret_cast<float*>(operand.p) + (((int64_t)parity * s.N + n) * s.B + b) * words;
    }
    float* panel_words(int n, int panel) {
        return reinterpret_cast<float*>(packed.p) + ((int64_t)n * s.panels(W) + panel) * words * C::RG * W;
    }
    void pack(int n, int panel) {  // [word][gate][unit]; also the initial h of these units
        element* to = reinterpret_cast<element*>(panel_words(n, panel));
        const int u0 = panel * W, count = std::min(W, s.D - u0);
        for (int g = 0; g < C::RG; g++)
            for (int u = 0; u < count; u++) {
                const element* from = R + (((int64_t)g * s.N + n) * s.D + u0 + u) * s.D;
                for (int k = 0; k < s.D; k++) to[((k / P::PACK * C::RG + g) * W + u) * P::PACK + k % P::PACK] = from[k];
            }
        for (int b = 0; b < s.B; b++)
            store(reinterpret_cast<element*>(h(0, n, b)) + u0, load(initial + s.initial(0, b, n) + u0, count), count);
    }
    void step(int t, int n, int panel, int b0, int rows) {
        switch (rows) {
            case 1: return block<1>(t, n, panel, b0);
            case 2: return block<2>(t, n, panel, b0);
#if defined(__AVX512F__)
            case 4: return block<4>(t, n, panel, b0);
            case 6: return block<6>(t, n, panel, b0);
#endif
        }
    }
    template <int MB>
    void block(int t, int n, int panel, int b0) {
        const int u = panel * W, count = std::min(W, s.D - u);
        const int64_t ND = (int64_t)s.N * s.D, unit = (int64_t)n * s.D + u;
        vf acc[MB][C::G];
        for (int g = 0; g < C::G; g++) {
            const vf b = load(bias + g * ND + unit, count);
            for (int m = 0; m < MB; m++)
                acc[m][g] = g < C::G - C::WG ? b
                          : b + load(wx + s.row(b0 + m, t, C::WG) + (g - (C::G - C::WG)) * ND + unit, count);
        }
        const float* weights = panel_words(n, panel);
        const float* from[MB];
        for (int m = 0; m < MB; m++) from[m] = h(t & 1, n, b0 + m);
        for (int k = 0; k < words; k++, weights += C::RG * W) {
            vf w[C::RG];
            for (int g = 0; g < C::RG; g++) w[g] = load(weights + g * W);
            for (int m = 0; m < MB; m++) {
                const vf x = set1(from[m][k]);
                for (int g = 0; g < C::RG; g++) acc[m][g] = P::dot(acc[m][g], w[g], x);
            }
        }
        for (int m = 0; m < MB; m++) {
            const int b = b0 + m;
            vf prev[C::S], next[C::S], keep[C::SAVED + 1];
            for (int i = 0; i < C::S; i++)
                prev[i] = load((t ? states + s.state(i, b, t - 1, n) : initial + s.initial(i, b, n)) + u, count);
            C::forward(acc[m], prev, next, keep);
            if (forward_clip > 0) next[0] = clamp(next[0], forward_clip);
            for (int i = 0; i < C::S; i++) store(states + s.state(i, b, t, n) + u, next[i], count);
            store(reinterpret_cast<element*>(h(~t & 1, n, b)) + u, next[0], count);
            if (saved)
                for (int i = 0; i < C::SAVED; i++)
                    store(saved + s.row(b, t, C::SAVED) + i * ND + unit, keep[i], count);
        }
    }
};

template <class C, class P>
struct Backward {
    static constexpr int PANEL = 2 * W;
    typedef typename P::element element;
    const Shape s;
    const float forward_clip, recurrent_clip;
    const bool cut;
    const element* R;
    const float *initial, *states, *saved, *dstates;
    float *delta, *dinitial;
    const int words = (s.D + P::PACK - 1) / P::PACK;  // of one gate's deltas
    Buffer packed{sizeof(float) * s.N * s.panels(PANEL) * C::RG * words * PANEL};
    Buffer operand{sizeof(float) * 2 * s.N * s.B * C::RG * words};  // deltas of the recurrent gates, by parity

    int steps() const { return s.T + 1; }  // the last one carries the gradient to the initial state
    float* deltas(int parity, int n, int b) {
        return reinterpret_cast<float*>(operand.p) + (((int64_t)parity * s.N + n) * s.B + b) * C::RG * words;
    }
    float* panel_words(int n, int panel) {
        return reinterpret_cast<float*>(packed.p) + ((int64_t)n * s.panels(PANEL) + panel) * C::RG * words * PANEL;
    }
    void pack(int n, int panel) {  // [gate][word of outputs][unit in]
        element* to = reinterpret_cast<element*>(panel_words(n, panel));
        const int u0 = panel * PANEL, count = std::min(PANEL, s.D - u0);
        for (int g = 0; g < C::RG; g++)
            for (int k = 0; k < s.D; k++) {
                const element* from = R + (((int64_t)g * s.N + n) * s.D + k) * s.D + u0;
                for (int u = 0; u < count; u++)
                    to[((g * words + k / P::PACK) * PANEL + u) * P::PACK + k % P::PACK] = from[u];
            }
    }
    void step(int done, int n, int panel, int b0, int rows) {
        switch (rows) {
            case 1: return block<1>(s.T - 1 - done, n, panel, b0);
            case 2: return block<2>(s.T - 1 - done, n, panel, b0);
#if defined(__AVX512F__)
            case 4: return block<4>(s.T - 1 - done, n, panel, b0);
            case 6: return block<6>(s.T - 1 - done, n, panel, b0);
#endif
        }
    }
    template <int MB>
    void block(int t, int n, int panel, int b0) {
        constexpr int UNROLL = MB <= 2 ? 2 : 1;  // keeps enough independent sums in flight
        vf acc[UNROLL][MB][2] = {};
        if (t < s.T - 1 && !cut) {
            const float* weights = panel_words(n, panel);
            const float* from[MB];
            for (int m = 0; m < MB; m++) from[m] = deltas(~t & 1, n, b0 + m);
            int k = 0;
            for (; k + UNROLL <= C::RG * words; k += UNROLL)
                for (int j = 0; j < UNROLL; j++, weights += PANEL) {
                    const vf w0 = load(weights), w1 = load(weights + W);
                    for (int m = 0; m < MB; m++) {
                        const vf x = set1(from[m][k + j]);
                        acc[j][m][0] = P::dot(acc[j][m][0], w0, x);
                        acc[j][m][1] = P::dot(acc[j][m][1], w1, x);
                    }
                }
            if (k < C::RG * words)
                for (int m = 0; m < MB; m++)
                    for (int v = 0; v < 2; v++)
                        acc[0][m][v] = P::dot(acc[0][m][v], load(weights + v * W), set1(from[m][k]));
        }
        for (int v = 0; v < 2 && panel * PANEL + v * W < s.D; v++)
            for (int m = 0; m < MB; m++) {
                vf dh = UNROLL == 2 ? acc[0][m][v] + acc[UNROLL - 1][m][v] : acc[0][m][v];
                if (recurrent_clip > 0) dh = clamp(dh, recurrent_clip);
                pointwise(dh, t, n, b0 + m, panel * PANEL + v * W);
            }
    }
    // dinitial holds what flows to the previous step outside R, until at t = -1 it is the result.
    inline void pointwise(vf dh, int t, int n, int b, int u) {
        const int count = std::min(W, s.D - u);
        const int64_t ND = (int64_t)s.N * s.D, unit = (int64_t)n * s.D + u;
        vf dnext[C::S], dprev[C::S], prev[C::S], next[C::S], keep[C::SAVED + 1], da[C::G];
        for (int i = 0; i < C::S; i++) dnext[i] = load(dinitial + s.initial(i, b, n) + u, count);
        dnext[0] += dh;
        if (t < 0) return store(dinitial + s.initial(0, b, n) + u, dnext[0], count);
        for (int i = 0; i < C::S; i++) {
            dnext[i] += load(dstates + s.state(i, b, t, n) + u, count);
            next[i] = load(states + s.state(i, b, t, n) + u, count);
            prev[i] = load((t ? states + s.state(i, b, t - 1, n) : initial + s.initial(i, b, n)) + u, count);
        }
        for (int i = 0; i < C::SAVED; i++) keep[i] = load(saved + s.row(b, t, C::SAVED) + i * ND + unit, count);
        if (forward_clip > 0) dnext[0] = select(abs(next[0]) < forward_clip, dnext[0], vf{});
        C::backward(keep, prev, next, dnext, da, dprev);
        for (int i = 0; i < C::S; i++) store(dinitial + s.initial(i, b, n) + u, dprev[i], count);
        for (int g = 0; g < C::G; g++) store(delta + s.row(b, t, C::G) + g * ND + unit, da[g], count);
        for (int g = 0; g < C::RG; g++)
            store(reinterpret_cast<element*>(deltas(t & 1, n, b) + g * words) + u, da[g], count);
    }
};

template <class F>
int with_cell(int cell, F f) {
    switch (cell) {
#if defined(FLASHRNN_GENERATED)  // the one cell and precision that a generated text before this file asks for
        case 0: f(Generated{}); return 0;
#else
        case 0: f(Lstm{}); return 0;
        case 1: f(Slstm{}); return 0;
        case 2: f(Gru{}); return 0;
        case 3: f(Elman{}); return 0;
#endif
    }
    return 1;
}

template <class F>
void with_words(bool bf16, F f) {
#if defined(FLASHRNN_GENERATED)
    f(FLASHRNN_GENERATED{});
#else
    if (bf16) f(Bf16{}); else f(Fp32{});
#endif
}

}  // namespace
}  // namespace flambeau

using namespace flambeau;

// rows: most rows of the batch in one block. A clip of 0 is none; saved may be null when no gradient is wanted. Returns 0, or 1 for an unknown cell.
extern "C" int flashrnn_forward(int cell, int bf16, int B, int T, int N, int D, int rows, int threads, float forward_clip,
                                const void* wx, const void* R, const float* bias, const float* initial, float* states,
                                float* saved) {
    const Shape s{B, T, N, D, rows, threads};
    return with_cell(cell, [&](auto c) {
        auto go = [&](auto p) {
            typedef decltype(p) P;
            typedef const typename P::element* pointer;
            Forward<decltype(c), P> pass{s, forward_clip, (pointer)wx, (pointer)R, bias, initial, states, saved};
            run(s, pass);
        };
        with_words(bf16 != 0, go);
    });
}

// delta: gradient of every pre-activation, from which dWx, dR and db follow. dinitial must be zero on entry.
extern "C" int flashrnn_backward(int cell, int bf16, int B, int T, int N, int D, int rows, int threads, float forward_clip,
                                 float recurrent_clip, int cut, const void* R, const float* initial,
                                 const float* states, const float* saved, const float* dstates, float* delta,
                                 float* dinitial) {
    const Shape s{B, T, N, D, rows, threads};
    return with_cell(cell, [&](auto c) {
        auto go = [&](auto p) {
            typedef decltype(p) P;
            typedef const typename P::element* pointer;
            Backward<decltype(c), P> pass{s, forward_clip, recurrent_clip, cut != 0, (pointer)R, initial,
                                          states, saved, dstates, delta, dinitial};
            run(s, pass);
        };
        with_words(bf16 != 0, go);
    });
}
