// Decode attention whose work is cut into equal ranges of key tiles over all threads (Sanovar et al., "Lean Attention",
// 2024), for CPUs. The schedule is computed here from the lengths; plan.py states the same arithmetic.
//
// A work unit walks its range of tiles. Of each output tile (one row of the batch, one key/value head) it computes the
// softmax state (m, l, O) over a contiguous range of keys, for all query rows that share the head, chunk by chunk, so
// that every key and value is read once. A segment that is a whole output tile is stored as the result; others go to
// scratch, and whoever arrives last at an output tile's counter combines its segments in the order of their keys:
// nobody waits, and the result does not depend on who is last.
//
// Keys: [outer, kv head, key, dim] with any strides but the last, outer = row of the batch, or page of a paged cache.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "thread_pool.h"
#include "vectors.h"

namespace flambeau {
namespace {

constexpr int CHUNK = 64;  // keys between updates of the softmax state
constexpr float INF = std::numeric_limits<float>::infinity();

// q . k of one element type. A query row is packed so that lanes repeated by the cover are zero.
template <class E>
struct Dot {
    typedef float packed;
    static constexpr int WIDTH = W;
    static void pack(const E* q, const Cover& c, int i, float* to) {
        vf x = load(q + c.offset(i), c.count());
        for (int lane = 0; lane < c.repeated(i); lane++) x[lane] = 0;
        std::memcpy(to, &x, sizeof(x));
    }
    static inline vf operand(const E* k) { return load(k); }
    static inline vf multiply(vf acc, const float* q, vf k) { return acc + load(q) * k; }
};
#if defined(__AVX512BF16__)
template <>
struct Dot<uint16_t> {  // pairs of bfloat16, summed in float
    typedef uint16_t packed;
    static constexpr int WIDTH = 2 * W;
    static void pack(const uint16_t* q, const Cover& c, int i, uint16_t* to) {
        std::memset(to, 0, 2 * WIDTH);
        for (int lane = c.repeated(i); lane < c.count(); lane++) to[lane] = q[c.offset(i) + lane];
    }
    static inline __m512bh operand(const uint16_t* k) { return (__m512bh)_mm512_loadu_si512(k); }
    static inline vf multiply(vf acc, const uint16_t* q, __m512bh k) {
        return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_loadu_si512(q), k);
    }
};
#endif

// One call, as cpu.py fills it.
struct Call {
    const void *q, *k, *v;
    const int64_t* lengths;
    const int64_t* starts;       // first key of each row; null: 0
    const int32_t* block_table;  // [batch, blocks]; null: not paged
    const float* slopes;         // [batch, heads]; null: no ALiBi
    const float* sinks;          // [heads]; null: none
    const uint8_t* tail_mask;    // [batch, queries, queries]; null: causal
    void* out;                   // [batch, queries, heads, dim]
    float* lse;                  // [batch, queries, heads]
    int64_t* counts;             // bytes of keys and values read, partial segments, units
    int64_t q_batch, q_query, q_head, k_outer, k_head, k_key, v_outer, v_head, v_key;  // strides in elements
    int64_t batch, queries, heads, kv_heads, dim, page, blocks, window, tile, pieces, units, threads, type;
    double scale, softcap;
};

template <class E>
struct Decode {
    const Call& c;
    const int group = c.heads / c.kv_heads, rows = group * c.queries;
    const Cover values{(int)c.dim, W}, keys{(int)c.dim, Dot<E>::WIDTH};
    const int wide = values.vectors * W;  // floats of a row of O
    const int lines = (c.dim * sizeof(E) + 63) / 64;
    const bool plain = !c.slopes && !c.softcap;
    std::vector<int64_t> first;   // key each row starts from
    std::vector<int64_t> prefix;  // number of the first tile of each output tile, and the total
    int64_t units;
    std::unique_ptr<float[]> scratch;
    std::unique_ptr<std::atomic<int>[]> arrived;
    std::atomic<int64_t> next{0}, bytes{0}, partials{0};

    explicit Decode(const Call& call) : c(call), prefix(1, 0) {
        for (int64_t b = 0; b < c.batch; b++) {
            int64_t start = c.starts ? std::min(std::max<int64_t>(c.starts[b], 0), c.lengths[b]) : 0;
            if (c.window) start = std::max(start, c.lengths[b] - c.queries - c.window + 1);
            first.push_back(std::min(start, c.lengths[b]));
            for (int64_t h = 0; h < c.kv_heads; h++)
                prefix.push_back(prefix.back() + (c.lengths[b] - first[b] + c.tile - 1) / c.tile);
        }
        units = c.pieces ? c.pieces * c.batch * c.kv_heads : std::min(c.units, prefix.back());
        scratch.reset(new float[2 * units * state()]);
        arrived.reset(new std::atomic<int>[c.batch * c.kv_heads]());
    }
    int64_t state() const { return (int64_t)rows * (wide + 2); }  // floats of a state: O, m and l of every row
    int64_t tiles(int64_t t) const { return prefix[t + 1] - prefix[t]; }
    std::pair<int64_t, int64_t> range(int64_t u) const {
        if (!c.pieces) return {u * prefix.back() / units, (u + 1) * prefix.back() / units};
        const int64_t t = u / c.pieces, i = u % c.pieces, used = std::min(c.pieces, tiles(t));
        if (i >= used) return {0, 0};
        return {prefix[t] + i * tiles(t) / used, prefix[t] + (i + 1) * tiles(t) / used};
    }
    std::pair<int64_t, int64_t> units_of(int64_t t) const {  // first and last unit with a segment of an output tile
        if (c.pieces) return {t * c.pieces, t * c.pieces + std::min(c.pieces, tiles(t)) - 1};
        const auto owner = [&](int64_t tile) { return ((tile + 1) * units - 1) / prefix.back(); };
        return {owner(prefix[t]), owner(prefix[t + 1] - 1)};
    }

    struct Rows {
        int count = 0;
        const E *k[CHUNK], *v[CHUNK];
        std::vector<E> copies;  // of rows shorter than a vector, padded
    };
    // Everything a thread keeps for one segment.
    struct Work {
        std::vector<float> q, o, m, l, p;
        Rows chunks[2], *now = chunks, *ahead = chunks + 1;  // the chunk at work, and the next, fetched meanwhile
        explicit Work(const Decode& d)
            : q((size_t)d.rows * d.keys.vectors * W), o((size_t)d.rows * d.wide), m(d.rows), l(d.rows),
              p((size_t)d.rows * CHUNK) {}
    };
    typedef typename Dot<E>::packed packed;
    packed* query(Work& w, int row) const {
        return reinterpret_cast<packed*>(w.q.data()) + (int64_t)row * keys.vectors * Dot<E>::WIDTH;
    }

    void run_units() {
        Work w(*this);
        for (int64_t u; (u = next.fetch_add(1, std::memory_order_relaxed)) < units;) {
            auto [low, high] = range(u);
            if (low == high) continue;
            int64_t t = std::upper_bound(prefix.begin(), prefix.end(), low) - prefix.begin() - 1;
            for (int64_t end; low < high; low = end, t++) {
                while (!tiles(t)) t++;
                end = std::min(high, prefix[t + 1]);
                segment(w, t, (low - prefix[t]) * c.tile, (end - prefix[t]) * c.tile);
                if (low == prefix[t] && end == prefix[t + 1]) {
                    finish(t, w.o.data(), w.m.data(), w.l.data());
                    continue;
                }
                float* to = scratch.get() + (2 * u + (low == prefix[t])) * state();
                std::copy(w.o.begin(), w.o.end(), to);
                std::copy(w.m.begin(), w.m.end(), to + (int64_t)rows * wide);
                std::copy(w.l.begin(), w.l.end(), to + (int64_t)rows * (wide + 1));
                partials.fetch_add(1, std::memory_order_relaxed);
                const auto [from, last] = units_of(t);
                if (arrived[t].fetch_add(1, std::memory_order_acq_rel) == last - from) reduce(w, t, from, last);
            }
        }
    }

    void reduce(Work& w, int64_t t, int64_t from, int64_t last) {
        for (int row = 0; row < rows; row++) {
            float* o = w.o.data() + (int64_t)row * wide;
            float m = -INF, l = 0;
            std::fill(o, o + wide, 0.0f);
            for (int64_t u = from; u <= last; u++) {
                const float* s = scratch.get() + (2 * u + (u == from)) * state();
                const float sm = s[(int64_t)rows * wide + row], sl = s[(int64_t)rows * (wide + 1) + row];
                if (sm == -INF) continue;  // no key seen: the identity
                const float top = std::max(m, sm), mine = std::exp(m - top), theirs = std::exp(sm - top);
                m = top, l = mine * l + theirs * sl;
                for (int i = 0; i < wide; i += W)
                    store(o + i, load(o + i) * mine + load(s + (int64_t)row * wide + i) * theirs);
            }
            w.m[row] = m, w.l[row] = l;
        }
        finish(t, w.o.data(), w.m.data(), w.l.data());
    }

    void finish(int64_t t, const float* o, const float* m, const float* l) {
        const int64_t b = t / c.kv_heads, h = t % c.kv_heads;
        for (int row = 0; row < rows; row++) {
            const int64_t head = h * group + row / c.queries, at = (b * c.queries + row % c.queries) * c.heads + head;
            float top = m[row], total = l[row], factor = 1;
            if (c.sinks) {  // one more key, of value zero
                const float both = std::max(top, c.sinks[head]);
                factor = std::exp(top - both);
                total = total * factor + std::exp(c.sinks[head] - both);
                top = both;
            }
            const float norm = total > 0 || total != total ? factor / total : 0;
            E* to = static_cast<E*>(c.out) + at * c.dim;
            for (int i = 0; i < values.vectors; i++)
                store(to + values.offset(i), load(o + (int64_t)row * wide + i * W) * norm, values.count());
            c.lse[at] = top + std::log(total);
        }
    }

    // The state over keys [from, to) of an output tile, counted from the first key its row attends to.
    void segment(Work& w, int64_t t, int64_t from, int64_t to) {
        const int64_t b = t / c.kv_heads, h = t % c.kv_heads, length = c.lengths[b];
        from += first[b], to = std::min(to + first[b], length);
        for (int row = 0; row < rows; row++) {
            const E* q = static_cast<const E*>(c.q) + b * c.q_batch + row % c.queries * c.q_query +
                         (h * group + row / c.queries) * c.q_head;
            for (int i = 0; i < keys.vectors; i++) Dot<E>::pack(q, keys, i, query(w, row) + i * Dot<E>::WIDTH);
        }
        std::fill(w.o.begin(), w.o.end(), 0.0f);
        std::fill(w.m.begin(), w.m.end(), -INF);
        std::fill(w.l.begin(), w.l.end(), 0.0f);
        locate(*w.ahead, b, h, from, to);
        for (int64_t key = from; key < to; key += CHUNK) {
            std::swap(w.now, w.ahead);
            locate(*w.ahead, b, h, key + CHUNK, to);
            for (int row = 0; row < rows;) {
#if defined(__AVX512F__)
                const int most = 4;
#else
                const int most = 2;
#endif
                const int block = rows - row >= most ? most : rows - row >= 2 ? 2 : 1;
                if (block == 4) attend<4>(w, b, h, row, key);
                else if (block == 2) attend<2>(w, b, h, row, key);
                else attend<1>(w, b, h, row, key);
                row += block;
            }
        }
        bytes.fetch_add(2 * (to - from) * c.dim * (int64_t)sizeof(E), std::memory_order_relaxed);
    }

    void locate(Rows& rows, int64_t b, int64_t h, int64_t key, int64_t to) {
        const int n = rows.count = std::max<int64_t>(0, std::min<int64_t>(CHUNK, to - key));
        const E* k = static_cast<const E*>(c.k) + h * c.k_head;
        const E* v = static_cast<const E*>(c.v) + h * c.v_head;
        if (!c.block_table) {
            k += b * c.k_outer + key * c.k_key, v += b * c.v_outer + key * c.v_key;
            for (int i = 0; i < n; i++) rows.k[i] = k + i * c.k_key, rows.v[i] = v + i * c.v_key;
        } else for (int i = 0; i < n;) {
            const int64_t page = c.block_table[b * c.blocks + (key + i) / c.page], at = (key + i) % c.page;
            const E *pk = k + page * c.k_outer + at * c.k_key, *pv = v + page * c.v_outer + at * c.v_key;
            for (int64_t left = std::min<int64_t>(n - i, c.page - at); left > 0; left--, i++)
                rows.k[i] = pk, rows.v[i] = pv, pk += c.k_key, pv += c.v_key;
        }
        if (c.dim >= keys.width) return;
        rows.copies.assign((size_t)2 * n * keys.width, E{});
        E* copy = rows.copies.data();
        for (int i = 0; i < n; i++)
            for (const E** row : {rows.k + i, rows.v + i}) {
                std::memcpy(copy, *row, c.dim * sizeof(E));
                *row = copy;
                copy += keys.width;
            }
    }

    // The order in which rows are visited hides them from the processor's own prefetching. Into the second level: a
    // chunk and the next do not fit the first together.
    inline void fetch(const E* row) const {
        for (int i = 0; i < lines; i++) __builtin_prefetch(reinterpret_cast<const char*>(row) + 64 * i, 0, 2);
    }

    template <int R>
    void attend(Work& w, int64_t b, int64_t h, int row, int64_t key) {
        const int n = w.now->count, padded = (n + W - 1) / W * W;
        float* p = w.p.data() + (int64_t)row * CHUNK;
        scores<R>(w, row, p);
        for (int r = 0; r < R; r++) {
            float* s = p + r * CHUNK;
            mask(s, b, h, row + r, key, n, padded);
            vf top = set1(-INF);
            for (int i = 0; i < padded; i += W) top = max(top, load(s + i));
            const float m = std::max(w.m[row + r], largest(top));
            if (m == -INF) {  // no key of this chunk is seen, nor of an earlier one
                std::fill(s, s + padded, 0.0f);
                continue;
            }
            if (m > w.m[row + r]) {
                const float shrink = std::exp(w.m[row + r] - m);
                float* o = w.o.data() + (int64_t)(row + r) * wide;
                for (int i = 0; i < wide; i += W) store(o + i, load(o + i) * shrink);
                w.l[row + r] *= shrink;
                w.m[row + r] = m;
            }
            vf total{};
            for (int i = 0; i < padded; i += W) {
                const vf e = exp(load(s + i) - m);
                store(s + i, e);
                total += e;
            }
            w.l[row + r] += sum(total);
        }
        float* o = w.o.data() + (int64_t)row * wide;
        constexpr int MOST = R == 4 ? 4 : 8;  // R * MOST sums fit the registers
        int i = 0;
        if (W == 16)
            for (; i + MOST <= values.vectors; i += MOST) weigh<R, MOST>(w, row, p, i, o);
        for (; i + 4 <= values.vectors; i += 4) weigh<R, 4>(w, row, p, i, o);
        for (; i + 2 <= values.vectors; i += 2) weigh<R, 2>(w, row, p, i, o);
        for (; i < values.vectors; i++) weigh<R, 1>(w, row, p, i, o);
    }

    // q . k of R query rows, W / R keys at a time; keys beyond the last are the last again, and masked later.
    template <int R>
    void scores(Work& w, int row, float* to) {
        constexpr int K = W / R;
        const int n = w.now->count;
        const packed* q = query(w, row);
        const int next_row = keys.vectors * Dot<E>::WIDTH;
        for (int i = 0; i < n; i += K) {
            const E* k[K];
            for (int j = 0; j < K; j++) k[j] = w.now->k[std::min(i + j, n - 1)];
            if (row == 0)
                for (int j = i; j < std::min(i + K, w.ahead->count); j++) fetch(w.ahead->k[j]);
            vf acc[W] = {};
            constexpr int GROUP = R == 1 ? 4 : K;  // few enough rows at once that they are read nearly in order
#pragma GCC unroll 4
            for (int g = 0; g < K; g += GROUP)
                for (int x = 0; x < keys.vectors; x++) {
                    const int at = keys.offset(x);
#pragma GCC unroll 16
                    for (int j = g; j < g + GROUP; j++) {
                        const auto operand = Dot<E>::operand(k[j] + at);
#pragma GCC unroll 4
                        for (int r = 0; r < R; r++)
                            acc[r * K + j] =
                                Dot<E>::multiply(acc[r * K + j], q + r * next_row + x * Dot<E>::WIDTH, operand);
                    }
                }
            const vf s = sums(acc) * (float)c.scale;
            float lanes[W];
            std::memcpy(lanes, &s, sizeof(s));
            for (int r = 0; r < R; r++) std::memcpy(to + r * CHUNK + i, lanes + r * K, K * sizeof(float));
        }
    }

    // What comes between products and softmax: cap, ALiBi, and -inf for keys a query does not look at.
    void mask(float* s, int64_t b, int64_t h, int row, int64_t key, int n, int padded) {
        const int64_t length = c.lengths[b], query = row % c.queries, position = length - c.queries + query;
        if (!plain) {
            vf lane;
            for (int i = 0; i < W; i++) lane[i] = i;
            const float cap = c.softcap, slope = c.slopes ? c.slopes[b * c.heads + h * group + row / c.queries] : 0;
            for (int i = 0; i < padded; i += W) {
                vf x = load(s + i);
                if (cap) x = cap * tanh(x / cap);
                if (slope) x = x + slope * (lane + (float)(key + i - position));
                store(s + i, x);
            }
        }
        std::fill(s + n, s + padded, -INF);
        if (c.window)
            std::fill(s, s + std::min<int64_t>(n, std::max<int64_t>(0, position - c.window + 1 - key)), -INF);
        if (c.tail_mask) {
            const uint8_t* seen = c.tail_mask + (b * c.queries + query) * c.queries;
            for (int64_t i = std::max<int64_t>(0, length - c.queries - key); i < n; i++)
                if (position < 0 || !seen[key + i - (length - c.queries)]) s[i] = -INF;
        } else {
            std::fill(s + std::min<int64_t>(n, std::max<int64_t>(0, position + 1 - key)), s + n, -INF);
        }
    }

    // O of R rows, V vectors from vector x on, plus weights times values.
    template <int R, int V>
    void weigh(Work& w, int row, const float* p, int x, float* o) {
        vf acc[R][V];
        int at[V];
        for (int i = 0; i < V; i++) at[i] = values.offset(x + i);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int i = 0; i < V; i++) acc[r][i] = load(o + (int64_t)r * wide + (x + i) * W);
        const int fetched = row == 0 && x == 0 ? w.ahead->count : 0;
        for (int key = 0; key < w.now->count; key++) {
            if (key < fetched) fetch(w.ahead->v[key]);
            const E* from = w.now->v[key];
            vf weight[R];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) weight[r] = set1(p[r * CHUNK + key]);
#pragma GCC unroll 8
            for (int i = 0; i < V; i++) {
                const vf value = load(from + at[i]);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) acc[r][i] += weight[r] * value;
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int i = 0; i < V; i++) store(o + (int64_t)r * wide + (x + i) * W, acc[r][i]);
    }
};

template <class E>
void decode(const Call& c) {
    Decode<E> d(c);
    for (int64_t t = 0; t < c.batch * c.kv_heads; t++)
        if (!d.tiles(t)) {  // no keys: zeros, or the sink alone
            const std::vector<float> o((size_t)d.rows * d.wide), l(d.rows), m(d.rows, -INF);
            d.finish(t, o.data(), m.data(), l.data());
        }
    run_threads(std::min(c.threads, d.units), [&] { d.run_units(); });
    c.counts[0] = d.bytes, c.counts[1] = d.partials, c.counts[2] = d.units;
}

}  // namespace
}  // namespace flambeau

// type: 0 float, 1 bfloat16, 2 half, of q, k, v and out alike.
extern "C" void lean_decode(const flambeau::Call* call) {
    using namespace flambeau;
    switch (call->type) {
        case 0: return decode<float>(*call);
        case 1: return decode<uint16_t>(*call);
        case 2: return decode<Half>(*call);
    }
}
