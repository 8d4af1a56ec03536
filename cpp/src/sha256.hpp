// SHA-256 (FIPS 180-4). Own code: one function does not justify a crypto library as a dependency.
#pragma once

#include <cstddef>
#include <string>

namespace stan_infer {

// plain: without the processor's instructions for it, for tests.
std::string sha256_hex(const std::byte* data, std::size_t size, bool plain = false);

}  // namespace stan_infer
