#include "graph_check.hpp"

#include <algorithm>

#include "error.hpp"

namespace stan_infer {
namespace {

std::string described(DType dtype, const std::vector<Axis>& shape) {
  std::string text = std::string(name_of(dtype)) + " [";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") +
            (shape[i].name.empty() ? std::to_string(shape[i].size) : shown(shape[i].name, 40));
  }
  return text + "]";
}

void check_slots(const Graph& graph, const std::vector<Port>& ports, const std::vector<Slot>& slots,
                 const char* kind) {
  const auto fail = [&](const std::string& what) {
    throw bad_folder(graph.file + " is not the graph that manifest.json describes: " + what +
                     "; export the checkpoint again");
  };
  const bool output = *kind == 'o';
  if (ports.size() != slots.size() && !output) {
    fail("it has " + std::to_string(slots.size()) + " " + kind + "s, not " +
         std::to_string(ports.size()));
  }
  for (const Port& port : ports) {
    const auto slot = std::find_if(slots.begin(), slots.end(),
                                   [&](const Slot& s) { return s.name == port.name; });
    if (slot == slots.end()) fail(std::string("it has no ") + kind + " '" + shown(port.name) + "'");
    bool same = slot->dtype == port.dtype && slot->shape.size() == port.shape.size();
    for (std::size_t i = 0; same && i < port.shape.size(); ++i) {
      // An engine may know an output's size better or worse than the file says; sizes of results
      // are compared again after each run.
      const bool dynamic = slot->shape[i] < 0, named = !port.shape[i].name.empty();
      same = dynamic ? named || output : slot->shape[i] == port.shape[i].size || (named && output);
      // An axis with a range of sizes is dynamic in the graph, and one of a single size is fixed.
      const auto limits = graph.dims.find(port.shape[i].name);
      if (named && !output && limits != graph.dims.end()) {
        same = same && dynamic == (limits->second.first < limits->second.second);
      }
    }
    if (!same) {
      fail(std::string("its ") + kind + " '" + shown(port.name) + "' is " + name_of(slot->dtype) +
           " " + to_string(slot->shape) + ", not " + described(port.dtype, port.shape));
    }
  }
}

}  // namespace

void check_slots(const Graph& graph, const Session& session) {
  check_slots(graph, graph.inputs, session.inputs(), "input");
  check_slots(graph, graph.outputs, session.outputs(), "output");
}

void check_inputs(const Graph& graph, const std::map<std::string, View>& inputs) {
  std::map<std::string, std::int64_t> sizes;
  for (const Port& port : graph.inputs) {
    const auto found = inputs.find(port.name);
    if (found == inputs.end()) {
      throw bad_folder(graph.file + " wants an input '" + shown(port.name) +
                       "', which this program does not know; export the checkpoint again");
    }
    const View& tensor = found->second;
    Shape wanted;
    for (const Axis& axis : port.shape) wanted.push_back(axis.size);
    expect_argument(tensor, port.dtype, wanted,
                    "the input '" + shown(port.name) + "' of " + graph.file);
    for (std::size_t i = 0; i < port.shape.size(); ++i) {
      const std::string& name = port.shape[i].name;
      if (name.empty()) continue;
      const auto limits = graph.dims.find(name);
      const std::int64_t size = tensor.shape[i];
      if (limits != graph.dims.end() &&
          (size < limits->second.first || size > limits->second.second)) {
        throw bad_argument(graph.file + ": '" + shown(name) + "' would be " + std::to_string(size) +
                           "; allowed are " + std::to_string(limits->second.first) + " to " +
                           std::to_string(limits->second.second));
      }
      if (!sizes.emplace(name, size).second && sizes[name] != size) {
        throw bad_argument(graph.file + ": '" + shown(name) + "' has two sizes, " +
                           std::to_string(sizes[name]) + " and " + std::to_string(size));
      }
    }
  }
}

void check_outputs(const Graph& graph, const std::map<std::string, View>& inputs,
                   const std::map<std::string, Tensor>& outputs) {
  std::map<std::string, std::int64_t> sizes;
  for (const Port& port : graph.inputs) {
    for (std::size_t i = 0; i < port.shape.size(); ++i) {
      if (!port.shape[i].name.empty()) sizes[port.shape[i].name] = inputs.at(port.name).shape[i];
    }
  }
  for (const Port& port : graph.outputs) {
    Shape wanted;
    for (const Axis& axis : port.shape) {
      const auto named = sizes.find(axis.name);
      wanted.push_back(named == sizes.end() ? axis.size : named->second);
    }
    expect(outputs.at(port.name), port.dtype, wanted,
           "the output '" + shown(port.name) + "' of " + graph.file);
  }
}

}  // namespace stan_infer
