// Element by element, and over all elements: gates, sums, the largest, softmax's denominator.
#pragma once

#include "kernels/simd.h"

namespace pcr {

namespace {

void silu_multiply(float * x, const float * gate, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        const int64_t some = n - i < 16 ? n - i : 16;
        const F       y    = load_some(x + i, some) * silu(load_some(gate + i, some));
        store_some(x + i, y, some);
    }
}

void add(float * x, const float * y, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] += y[i];
    }
}

float max_of(const float * x, int64_t n) {
    F       top = all(-3.4e38f);
    int64_t i   = 0;
    for (; i + 16 <= n; i += 16) {
        top = max(top, load<F>(x + i));
    }
    float result = largest_lane(top);
    for (; i < n; i++) {
        result = x[i] > result ? x[i] : result;
    }
    return result;
}

double sum_exp(const float * x, int64_t n, float minus) {
    double sum = 0.0;
    for (int64_t first = 0; first < n; first += 4096) {
        const int64_t last   = first + 4096 < n ? first + 4096 : n;
        F             lanes_ = {};
        int64_t       i      = first;
        for (; i + 16 <= last; i += 16) {
            lanes_ += exponential(load<F>(x + i) - minus);
        }
        if (i < last) {
            F rest = all(-3.4e38f);
            std::memcpy(&rest, x + i, static_cast<size_t>(last - i) * sizeof(float));
            lanes_ += exponential(rest - minus);
        }
        sum += static_cast<double>(sum_lanes(lanes_));
    }
    return sum;
}

}  // namespace

}  // namespace pcr
