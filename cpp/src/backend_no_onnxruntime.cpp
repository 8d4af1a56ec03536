// In place of backend_ort.cpp where the library is built without ONNX Runtime.
#include "backend.hpp"
#include "error.hpp"

namespace stan_infer {

std::unique_ptr<Backend> open_onnxruntime(const Options&) {
  throw missing(
      "this program was built without ONNX Runtime; use another engine, or configure again with "
      "cmake -DSTAN_INFER_ONNXRUNTIME=ON");
}

}  // namespace stan_infer
