// Which other files an ONNX file names. A runtime would open them, wherever they lie.
#pragma once

#include <set>
#include <string>

#include "stan/folder.hpp"

namespace stan {

// Walks the protobuf message without decoding weights; throws Error for a malformed file.
std::set<std::string> external_locations(const Bytes& onnx, const std::string& file);

}  // namespace stan
