#include "sha256.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace stan_infer {
namespace {

using Words = std::array<std::uint32_t, 64>;
__extension__ using Wide = unsigned __int128;
using State = std::array<std::uint32_t, 8>;

// The standard's constants are the first 32 bits of the fractional parts of roots of primes.
template <std::size_t N>
std::array<std::uint32_t, N> fractions_of_roots(bool cube) {
  std::array<std::uint32_t, N> result{};
  std::size_t count = 0;
  for (unsigned n = 2; count < N; ++n) {
    bool prime = true;
    for (unsigned d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
    if (!prime) continue;
    // floor(root(n) * 2^32) in integers, bit by bit: floating point would not be exact everywhere.
    Wide low = 0;
    for (int bit = 35; bit >= 0; --bit) {
      const Wide x = low | (Wide{1} << bit);
      const Wide target = Wide{n} << (cube ? 96 : 64);
      if ((cube ? x * x * x : x * x) <= target) low = x;
    }
    result[count++] = static_cast<std::uint32_t>(low);
  }
  return result;
}

std::uint32_t rotate(std::uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

const Words& constants() {
  static const Words k = fractions_of_roots<64>(true);
  return k;
}

void add_block(State& state, const unsigned char* block) {
  const Words& k = constants();
  Words w{};
  for (std::size_t i = 0; i < 16; ++i) {
    for (std::size_t j = 0; j < 4; ++j) w[i] = w[i] << 8 | block[4 * i + j];
  }
  for (std::size_t i = 16; i < 64; ++i) {
    const auto s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
    const auto s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (std::size_t i = 0; i < 64; ++i) {
    const auto s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
    const auto t1 = h + s1 + ((e & f) ^ (~e & g)) + k[i] + w[i];
    const auto s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
    const auto t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
  }
  const State sum{a, b, c, d, e, f, g, h};
  for (std::size_t i = 0; i < 8; ++i) state[i] += sum[i];
}

#if defined(__x86_64__)
bool has_instructions() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool sse41 = __get_cpuid(1, &a, &b, &c, &d) && (c >> 19 & 1);
  return sse41 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1);
}

// The same with the processor's own instructions, which are several times as fast.
__attribute__((target("sha,sse4.1"))) void add_fast(State& state, const unsigned char* data,
                                                    std::size_t blocks) {
  const auto at = [](const void* p) __attribute__((target("sha,sse4.1"))) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  };
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);  // byte order
  const Words& k = constants();
  // The instructions want the eight words as A B E F and C D G H, the first in the highest place.
  const __m128i low = _mm_shuffle_epi32(at(&state[0]), 0xB1);
  const __m128i high = _mm_shuffle_epi32(at(&state[4]), 0x1B);
  __m128i abef = _mm_alignr_epi8(low, high, 8), cdgh = _mm_blend_epi16(high, low, 0xF0);
  for (; blocks > 0; --blocks, data += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];  // the latest 16 words
    for (int i = 0; i < 16; ++i) {
      __m128i& now = w[i % 4];
      if (i < 4) {
        now = _mm_shuffle_epi8(at(data + 16 * i), swap);
      } else {
        const __m128i before = w[(i + 3) % 4];
        const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(now, w[(i + 1) % 4]),
                                          _mm_alignr_epi8(before, w[(i + 2) % 4], 4));
        now = _mm_sha256msg2_epu32(sum, before);
      }
      const __m128i words = _mm_add_epi32(now, at(&k[static_cast<std::size_t>(4 * i)]));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, words);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(words, 0x0E));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i first = _mm_shuffle_epi32(abef, 0x1B), second = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(&state[0]), _mm_blend_epi16(first, second, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(&state[4]), _mm_alignr_epi8(second, first, 8));
}
#endif

void add_blocks(State& state, const unsigned char* data, std::size_t blocks,
                [[maybe_unused]] bool plain) {
#if defined(__x86_64__)
  static const bool fast = has_instructions();
  if (fast && !plain) return add_fast(state, data, blocks);
#endif
  for (std::size_t i = 0; i < blocks; ++i) add_block(state, data + 64 * i);
}

}  // namespace

std::string sha256_hex(const std::byte* data, std::size_t size, bool plain) {
  State state = fractions_of_roots<8>(false);
  const auto* bytes = reinterpret_cast<const unsigned char*>(data);
  const std::size_t whole = size / 64 * 64;
  add_blocks(state, bytes, whole / 64, plain);
  std::array<unsigned char, 128> tail{};
  std::copy(bytes + whole, bytes + size, tail.begin());
  tail[size - whole] = 0x80;
  const std::size_t end = size - whole < 56 ? 64 : 128;
  for (std::size_t i = 0; i < 8; ++i) {
    tail[end - 1 - i] = static_cast<unsigned char>(std::uint64_t{size} * 8 >> (8 * i));
  }
  add_blocks(state, tail.data(), end / 64, plain);
  std::string hex;
  for (std::uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15];
  }
  return hex;
}

}  // namespace stan_infer
