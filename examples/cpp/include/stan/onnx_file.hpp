// What an ONNX file holds, from its bytes, before a runtime sees it.
#pragma once

#include <set>
#include <string>

#include "stan/folder.hpp"

namespace stan {

// Refuses operations that no exporter of ours writes, subgraphs and functions, and returns the names
// of the other files that the graph reads: a runtime would open them, wherever they lie. Walks the
// protobuf message without decoding weights; throws Error for a malformed file.
std::set<std::string> check_graph(const Bytes& onnx, const std::string& file);

}  // namespace stan
