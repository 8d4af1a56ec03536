#include "sha256.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

#ifdef STAN_INFER_OPENSSL
#include <openssl/evp.h>

#include <stdexcept>
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

std::string hex_of(const std::array<unsigned char, 32>& digest) {
  std::string hex;
  for (unsigned char byte : digest) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

}  // namespace

std::string sha256_hex(const std::byte* data, std::size_t size, [[maybe_unused]] bool plain) {
  std::array<unsigned char, 32> digest{};
#ifdef STAN_INFER_OPENSSL
  if (!plain) {
    if (EVP_Digest(data, size, digest.data(), nullptr, EVP_sha256(), nullptr) != 1) {
      throw std::runtime_error("OpenSSL computes no SHA-256");
    }
    return hex_of(digest);
  }
#endif
  State state = fractions_of_roots<8>(false);
  const auto* bytes = reinterpret_cast<const unsigned char*>(data);
  const std::size_t whole = size / 64 * 64;
  for (std::size_t at = 0; at < whole; at += 64) add_block(state, bytes + at);
  std::array<unsigned char, 128> tail{};
  std::copy(bytes + whole, bytes + size, tail.begin());
  tail[size - whole] = 0x80;
  const std::size_t end = size - whole < 56 ? 64 : 128;
  for (std::size_t i = 0; i < 8; ++i) {
    tail[end - 1 - i] = static_cast<unsigned char>(std::uint64_t{size} * 8 >> (8 * i));
  }
  for (std::size_t at = 0; at < end; at += 64) add_block(state, tail.data() + at);
  for (std::size_t i = 0; i < digest.size(); ++i) {
    digest[i] = static_cast<unsigned char>(state[i / 4] >> (24 - 8 * (i % 4)));
  }
  return hex_of(digest);
}

}  // namespace stan_infer
