// In place of backend_openvino.cpp where the program is built without OpenVINO.
#include "backend.hpp"
#include "error.hpp"

namespace stan_infer {

std::unique_ptr<Backend> open_openvino(int) {
  throw missing(
      "this program was built without OpenVINO; pip install openvino, then configure again with "
      "cmake -DSTAN_INFER_OPENVINO=ON -DOpenVINO_DIR=FOLDER/cmake, FOLDER being that of the package "
      "openvino");
}

}  // namespace stan_infer
