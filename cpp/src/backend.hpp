// The engines that run a graph, behind one small interface.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "folder.hpp"
#include "tensor.hpp"

namespace stan_infer {

// An input or output of an opened graph; -1 in its shape is a dynamic axis.
struct Slot {
  std::string name;
  DType dtype = DType::float32;
  Shape shape;
};

// One graph, opened.
class Session {
 public:
  virtual ~Session() = default;
  virtual const std::vector<Slot>& inputs() const = 0;
  virtual const std::vector<Slot>& outputs() const = 0;

  // inputs: in the order of inputs(). The result is in the order of outputs(). Throws some Error
  // where `call` ended it, and runs again after that.
  virtual std::vector<Tensor> run(const std::vector<View>& inputs, const Call& call) = 0;
};

// A graph's content.
struct GraphSource {
  std::string name;
  Bytes content;
  std::filesystem::path path;      // set only for a graph with weights in files beside it
  std::vector<std::string> ports;  // names to prefer where an engine knows several for one port
  std::string role;                // video, text, trunk, branch, preprocess or score
  const Folder* folder = nullptr;  // where an engine finds more than the graph
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;     // with its version
  virtual std::string version() const = 0;  // alone
  virtual std::string provider() const { return ""; }
  virtual bool runs_parts() const { return true; }  // the graphs trunk and branch
  virtual std::unique_ptr<Session> open(const GraphSource& source) const = 0;
};

// All throw Error (missing) where the engine is not there.
std::unique_ptr<Backend> open_onnxruntime(const Options& options);
std::unique_ptr<Backend> open_openvino(int threads);  // 0: its choice
// The folder's plans on an NVIDIA GPU for the towers; preprocessing and score run in `other`.
std::unique_ptr<Backend> open_tensorrt(std::unique_ptr<Backend> other);

}  // namespace stan_infer
