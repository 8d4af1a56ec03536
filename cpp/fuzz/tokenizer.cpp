// libFuzzer target: any bytes as tokenizer.json.
#include "tokenizer.hpp"

#include <cstdint>
#include <string>

#include "error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    stan_infer::Tokenizer({reinterpret_cast<const char*>(data), size});
  } catch (const stan_infer::Error&) {
    // The one answer to bad input; anything else ends the run.
  }
  return 0;
}
