// What an ONNX file holds, from its bytes, before a runtime sees it.
#pragma once

#include <optional>
#include <set>
#include <string>

#include "folder.hpp"

namespace stan_infer {

struct GraphForm {
  std::set<std::string> external;     // the other files that it reads: a runtime would open them
  std::optional<std::string> config;  // the hash of the config that it was exported with
};

// Refuses operations that no exporter of ours writes, subgraphs and functions. Walks the protobuf
// message without decoding weights; throws Error for a malformed file.
GraphForm check_graph(const Bytes& onnx, const std::string& file);

}  // namespace stan_infer
