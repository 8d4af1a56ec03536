// libFuzzer target: any bytes as an ONNX file.
#include "onnx_file.hpp"

#include <cstdint>
#include <string>

#include "error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto* bytes = reinterpret_cast<const std::byte*>(data);
    stan_infer::check_graph({bytes, bytes + size}, "x.onnx");
  } catch (const stan_infer::Error&) {
    // The one answer to bad input; anything else ends the run.
  }
  return 0;
}
