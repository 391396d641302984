// What this machine can do at most: arithmetic from registers, and reading memory. benchmarks/kernels.py compiles and runs
// it: prints "name value" in operations (multiply and add: two) or bytes a second.
//     c++ -O2 -std=c++17 -march=native -pthread peak.cpp && ./a.out THREADS
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__AMX_BF16__) && defined(__linux__)
#  include <sys/syscall.h>
#  include <unistd.h>
#endif
#if defined(__x86_64__)
#  include <immintrin.h>
#endif

template <typename Work> double seconds(int threads, Work work) {
    double best = 1e9;
    for (int run = 0; run < 5; run++) {
        const auto               start = std::chrono::steady_clock::now();
        std::vector<std::thread> running;
        for (int t = 0; t < threads; t++) {
            running.emplace_back(work, t);
        }
        for (auto & thread : running) {
            thread.join();
        }
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best;
}

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif
typedef float V __attribute__((vector_size(4 * lanes)));

volatile float sink;

// Compilers know that sums which begin alike stay alike, and compute one for several.
template <typename Sums> void forget(Sums & sums) {
    for (auto & sum : sums) {
        __asm__ volatile("" : "+x"(sum));
    }
}

int main(int argc, char ** argv) {
    const int      threads = argc > 1 ? std::atoi(argv[1]) : 2;
    constexpr long rounds  = 20000000;

    const double fma = seconds(threads, [](int) {
        V sums[12] = {}, a = V{} + 1.0f, b = V{} + 1e-9f;
        __asm__ volatile("" : "+x"(a), "+x"(b));
        forget(sums);
        for (long i = 0; i < rounds; i++) {
#pragma GCC unroll 12
            for (auto & sum : sums) {
                sum = sum * a + b;  // with a and b alone the product would be computed once
            }
        }
        for (const auto & sum : sums) {
            sink = sum[0];
        }
    });
    std::printf("f32 %.4g\n", threads * double(rounds) * 12 * lanes * 2 / fma);

#if defined(__AVX2__)
    const double bytes_product = seconds(threads, [](int) {
#  if defined(__AVX512VNNI__)
        using Register = __m512i;
        Register a     = _mm512_set1_epi8(1);
        const auto add = [&](Register sum) { return _mm512_dpbusd_epi32(sum, a, a); };
#  else
        using Register = __m256i;
        Register a     = _mm256_set1_epi8(1);
        const auto add = [&](Register sum) { return _mm256_maddubs_epi16(sum, a); };
#  endif
        Register sums[12] = {};
        __asm__ volatile("" : "+x"(a));
        forget(sums);
        for (long i = 0; i < rounds; i++) {
#pragma GCC unroll 12
            for (auto & sum : sums) {
                sum = add(sum);
            }
        }
        for (const auto & sum : sums) {
            sink = static_cast<float>(((V)sum)[0]);
        }
    });
    std::printf("int8 %.4g\n", threads * double(rounds) * 12 * 4 * lanes * 2 / bytes_product);
#endif

#if defined(__AVX512BF16__)
    const double dot = seconds(threads, [](int) {
        __m512   sums[12] = {};
        __m512bh a        = (__m512bh) _mm512_set1_epi32(0x3f803f80);
        forget(sums);
        for (long i = 0; i < rounds; i++) {
#pragma GCC unroll 12
            for (auto & sum : sums) {
                sum = _mm512_dpbf16_ps(sum, a, a);
            }
        }
        for (const auto & sum : sums) {
            sink = ((V) sum)[0];
        }
    });
    std::printf("bf16 %.4g\n", threads * double(rounds) * 12 * 32 * 2 / dot);
#endif

#if defined(__AMX_BF16__) && defined(__linux__)
    struct alignas(64) Config {
        uint8_t  palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t  rows[16]  = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    if (syscall(SYS_arch_prctl, 0x1023, 18) == 0) {
        constexpr long tiles = 1000000;
        const double   amx   = seconds(threads, [](int) {
            const Config config;
            _tile_loadconfig(&config);
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            _tile_zero(4);
            _tile_zero(5);
            for (long i = 0; i < tiles; i++) {
                _tile_dpbf16ps(0, 4, 5);
                _tile_dpbf16ps(1, 4, 5);
                _tile_dpbf16ps(2, 4, 5);
                _tile_dpbf16ps(3, 4, 5);
            }
            alignas(64) float out[256];
            _tile_stored(0, out, 64);
            sink = out[0];
            _tile_release();
        });
        std::printf("amx %.4g\n", threads * double(tiles) * 4 * 16 * 16 * 32 * 2 / amx);
    }
#endif

    const size_t          bytes = size_t(1) << 29;
    std::vector<uint64_t> memory(bytes / 8 * static_cast<size_t>(threads), 1);
    const double          read = seconds(threads, [&](int t) {
        const uint64_t * from   = memory.data() + bytes / 8 * static_cast<size_t>(t);
        uint64_t         sum[8] = {};
        for (size_t i = 0; i < bytes / 8; i += 8) {
            for (size_t j = 0; j < 8; j++) {
                sum[j] += from[i + j];
            }
        }
        sink = static_cast<float>(sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7]);
    });
    std::printf("read %.4g\n", threads * double(bytes) / read);
}
