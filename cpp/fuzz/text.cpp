// libFuzzer target: any bytes as a caption: HTML, Unicode, mojibake.
#include <cstdint>
#include <string>

#include "clean_text.hpp"
#include "error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    stan_infer::clean_text(stan_infer::from_utf8({reinterpret_cast<const char*>(data), size}));
  } catch (const stan_infer::Error&) {
    // The one answer to bad input; anything else ends the run.
  }
  return 0;
}
