// A graph against what the manifest says of it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "backend.hpp"
#include "manifest.hpp"

namespace stan_infer {

// Throws Error unless the opened graph has the inputs and outputs that the manifest names.
void check_slots(const Graph& graph, const Session& session);

// Throws Error unless these tensors may be given to the graph (ranges of its dimensions).
void check_inputs(const Graph& graph, const std::map<std::string, View>& inputs);

// Throws Error unless an output has the shape promised, each named size being that of the inputs.
void check_outputs(const Graph& graph, const std::map<std::string, View>& inputs,
                   const std::map<std::string, Tensor>& outputs);

}  // namespace stan_infer
