// OpenVINO, through its C++ API.
#include <openvino/openvino.hpp>

#include "backend.hpp"
#include "call.hpp"
#include "error.hpp"

namespace stan_infer {
namespace {

DType dtype_of_element(const ov::element::Type& type, const std::string& name) {
  if (type == ov::element::f32) return DType::float32;
  if (type == ov::element::u8) return DType::uint8;
  if (type == ov::element::i32) return DType::int32;
  if (type == ov::element::i64) return DType::int64;
  throw bad_folder("'" + shown(name) + "' of the graph is " + type.get_type_name() +
                   "; known are f32, u8, i32 and i64");
}

ov::element::Type element_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return ov::element::f32;
    case DType::uint8:
      return ov::element::u8;
    case DType::int32:
      return ov::element::i32;
    case DType::int64:
      return ov::element::i64;
  }
  return ov::element::f32;
}

// A port has the names of all tensors that OpenVINO found to be the same.
std::string name_of_port(const ov::Output<const ov::Node>& port,
                         const std::vector<std::string>& preferred) {
  for (const std::string& name : preferred) {
    if (port.get_names().count(name)) return name;
  }
  return port.get_names().empty() ? "" : port.get_any_name();
}

std::vector<Slot> slots_of(const std::vector<ov::Output<const ov::Node>>& ports,
                           const std::vector<std::string>& preferred) {
  std::vector<Slot> slots;
  for (const auto& port : ports) {
    const std::string name = name_of_port(port, preferred);
    Slot slot{name, dtype_of_element(port.get_element_type(), name), {}};
    for (const ov::Dimension& size : port.get_partial_shape()) {
      slot.shape.push_back(size.is_static() ? size.get_length() : -1);
    }
    slots.push_back(std::move(slot));
  }
  return slots;
}

// OpenVINO's exceptions carry a stack of source places; the last line says what is wrong.
template <class Call>
auto told(const std::string& doing, const Call& call) -> decltype(call()) {
  try {
    return call();
  } catch (const ov::Exception& e) {
    std::string text = e.what();
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    if (text.find("SNIPPETS_MODE") != std::string::npos) {
      throw missing(
          "this OpenVINO no longer takes SNIPPETS_MODE, without which its results were "
          "wrong; use 2026.4");
    }
    throw engine_failed("OpenVINO: " + doing + ": " + shown(text, 400));
  }
}

class OpenVinoSession final : public Session {
 public:
  OpenVinoSession(ov::CompiledModel model, const GraphSource& source)
      : model_(std::move(model)),
        request_(model_.create_infer_request()),
        name_(source.name),
        inputs_(slots_of(model_.inputs(), source.ports)),
        outputs_(slots_of(model_.outputs(), source.ports)) {}

  const std::vector<Slot>& inputs() const override { return inputs_; }
  const std::vector<Slot>& outputs() const override { return outputs_; }

  std::vector<Tensor> run(const std::vector<View>& inputs, const Call& call) override {
    return told("running " + name_, [&] {
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        const View& tensor = inputs[i];
        ov::Tensor own(element_of(tensor.dtype),
                       ov::Shape(tensor.shape.begin(), tensor.shape.end()));
        std::memcpy(own.data(), tensor.data, tensor.size());
        request_.set_input_tensor(i, own);
      }
      {
        const Watch watch(call, [this] { request_.cancel(); });
        request_.infer();
      }
      std::vector<Tensor> results;
      for (std::size_t i = 0; i < outputs_.size(); ++i) {
        const ov::Tensor own = request_.get_output_tensor(i);
        const ov::Shape shape = own.get_shape();
        Tensor tensor = make_tensor(outputs_[i].dtype, Shape(shape.begin(), shape.end()));
        if (!tensor.bytes.empty())
          std::memcpy(tensor.bytes.data(), own.data(), tensor.bytes.size());
        results.push_back(std::move(tensor));
      }
      return results;
    });
  }

 private:
  ov::CompiledModel model_;
  ov::InferRequest request_;
  std::string name_;
  std::vector<Slot> inputs_, outputs_;
};

class OpenVinoBackend final : public Backend {
 public:
  explicit OpenVinoBackend(int threads) {
    // The default precision is bf16 on a CPU that has it; the golden data are fp32.
    settings_.emplace(ov::hint::inference_precision(ov::element::f32));
    // OpenVINO 2025.0 to 2026.4 may fuse attention into machine code that is wrong for 8 frames and
    // over once it ran for one; stan_infer/engines/ov_session.py tells more.
    settings_["SNIPPETS_MODE"] = "DISABLE";
    if (threads > 0) settings_.emplace(ov::inference_num_threads(threads));
  }

  std::string name() const override {
    return "OpenVINO " + version();
  }
  std::string version() const override { return ov::get_openvino_version().buildNumber; }
  std::string provider() const override { return "CPU"; }

  std::unique_ptr<Session> open(const GraphSource& source) const override {
    return told("opening " + source.name, [&]() -> std::unique_ptr<Session> {
      const auto model =
          source.path.empty()
              ? core_.read_model(std::string(reinterpret_cast<const char*>(source.content.data()),
                                             source.content.size()),
                                 ov::Tensor())
              : core_.read_model(source.path.string());
      ov::CompiledModel compiled = core_.compile_model(model, "CPU", settings_);
      if (compiled.get_property(ov::hint::inference_precision) != ov::element::f32) {
        throw missing(
            "OpenVINO does not compute in f32 here, whatever it is asked; use ONNX Runtime");
      }
      return std::make_unique<OpenVinoSession>(std::move(compiled), source);
    });
  }

 private:
  mutable ov::Core core_;
  ov::AnyMap settings_;
};

}  // namespace

std::unique_ptr<Backend> open_openvino(int threads) {
  try {
    return std::make_unique<OpenVinoBackend>(threads);
  } catch (const ov::Exception& e) {
    throw missing("cannot start OpenVINO: " + shown(e.what(), 400) + "; reinstall openvino");
  }
}

}  // namespace stan_infer
