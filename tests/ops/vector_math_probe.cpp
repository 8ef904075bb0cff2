// Exposes the vector functions to test_vector_math.py.
#include "vector_math.h"
using namespace flambeau;

#define EXPOSE(name, expression)                                             \
    extern "C" void name(const float* in, float* out, int n) {               \
        for (int i = 0; i < n; i += W) {                                     \
            const int count = n - i < W ? n - i : W;                         \
            const vf x = load(in + i, count);                                \
            store(out + i, expression, count);                               \
        }                                                                    \
    }
EXPOSE(vector_exp, exp(x))
EXPOSE(vector_sigmoid, sigmoid(x))
EXPOSE(vector_tanh, tanh(x))
EXPOSE(vector_log_sigmoid, log_sigmoid(x))
EXPOSE(vector_clamp, clamp(x, 2.0f))

extern "C" int vector_width() { return W; }

extern "C" void to_bfloat16(const float* in, uint16_t* out, int n) {
    for (int i = 0; i < n; i += W) store(out + i, load(in + i, n - i < W ? n - i : W), n - i < W ? n - i : W);
}
