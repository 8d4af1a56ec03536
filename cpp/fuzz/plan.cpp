// libFuzzer target: any bytes as the sidecar of a plan, and its profiles asked for a shape.
#include "plan.hpp"

#include <cstdint>

#include "error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto plan = stan_infer::parse_sidecar("x.plan", {reinterpret_cast<const char*>(data), size});
    if (plan) stan_infer::profile_of(*plan, "video", {1, 8, 224, 224, 3});
  } catch (const stan_infer::Error&) {
    // The one answer to bad input; anything else ends the run.
  }
  return 0;
}
