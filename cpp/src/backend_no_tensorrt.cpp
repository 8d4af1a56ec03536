// In place of backend_tensorrt.cpp where the program is built without TensorRT.
#include "backend.hpp"
#include "error.hpp"

namespace stan_infer {

std::unique_ptr<Backend> open_tensorrt(std::unique_ptr<Backend>) {
  throw missing(
      "this program was built without TensorRT; install it with its headers, then configure again "
      "with cmake -DSTAN_INFER_TENSORRT=ON -DTENSORRT_ROOT=FOLDER");
}

}  // namespace stan_infer
