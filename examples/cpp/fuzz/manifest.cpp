// libFuzzer target: any bytes as manifest.json.
#include "stan/manifest.hpp"

#include <cstdint>
#include <string>

#include "stan/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    stan::parse_manifest({reinterpret_cast<const char*>(data), size});
  } catch (const stan::Error&) {
    // The one answer to bad input; anything else ends the run.
  }
  return 0;
}
