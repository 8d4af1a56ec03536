// SHA-256 (FIPS 180-4), by OpenSSL unless the library is built without it.
#pragma once

#include <cstddef>
#include <string>

namespace stan_infer {

// plain: with our own code, which is several times as slow, also where OpenSSL is there (for tests).
std::string sha256_hex(const std::byte* data, std::size_t size, bool plain = false);

}  // namespace stan_infer
