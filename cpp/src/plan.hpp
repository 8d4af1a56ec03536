// A TensorRT plan of an exported folder and its sidecar, read and checked without TensorRT.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "folder.hpp"
#include "tensor.hpp"

namespace stan_infer {

// Smallest, optimal and largest shape of each input.
using Profile = std::map<std::string, std::array<Shape, 3>>;

struct Plan {
  std::string file;  // as engines/video.fp16.trt-sm_89.plan
  std::string role;
  std::array<int, 3> version{};  // of the TensorRT that built it: major, minor, patch
  bool version_compatible = false;
  bool ampere_plus = false;  // for every GPU from sm_80 on
  std::string sm;            // of the GPU that built it, as sm_89
  std::string onnx_sha256, manifest_sha256, sha256;
  std::uint64_t bytes = 0;
  std::vector<Profile> profiles;
};

// Content of X.plan.json; nothing for a plan of TensorRT for RTX. Throws Error if malformed.
std::optional<Plan> parse_sidecar(const std::string& file, std::string_view text);

// The plans of TensorRT (not of TensorRT for RTX) in the folder's engines/, by name; their content
// is not read. Throws Error for a sidecar that is missing or malformed.
std::vector<Plan> list_plans(const Folder& folder);

// The plan of a graph for this version and GPU; throws Error with what there is otherwise, and
// where it was built from another graph or manifest.
const Plan& choose_plan(const std::vector<Plan>& plans, const std::string& role,
                        const std::array<int, 3>& version, const std::string& sm,
                        const std::string& onnx_sha256, const std::string& manifest_sha256);

// Its content, whose size and hash are the sidecar's: a plan is code, and only such a one is run.
Bytes read_plan(const Folder& folder, const Plan& plan);

// The number of the narrowest profile that takes this shape; throws Error with the ranges if none.
int profile_of(const Plan& plan, const std::string& input, const Shape& shape);

}  // namespace stan_infer
