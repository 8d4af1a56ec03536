// TensorRT and CUDA without a GPU: runs the ONNX graph inside the plans that tests/tensorrt_plans/fake.py
// makes, in ONNX Runtime. STAND_IN_SM, STAND_IN_VERSION and STAND_IN_FAULT set up the machine.
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "NvInfer.h"
#include "backend.hpp"

namespace {

using nvinfer1::Dims;

std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

bool fails(const char* fault) { return setting("STAND_IN_FAULT", "") == fault; }

Dims dims_of(const stan_infer::Shape& shape) {
  Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

struct Content {
  nlohmann::json head;
  std::unique_ptr<stan_infer::Backend> backend;
  std::unique_ptr<stan_infer::Session> session;
  nvinfer1::ILogger* log;

  const stan_infer::Slot* slot(const std::string& name, bool* is_input = nullptr) const {
    for (const bool input : {true, false}) {
      for (const stan_infer::Slot& slot : input ? session->inputs() : session->outputs()) {
        if (slot.name != name) continue;
        if (is_input) *is_input = input;
        return &slot;
      }
    }
    return nullptr;
  }
};

class Context final : public nvinfer1::IExecutionContext {
 public:
  explicit Context(const Content& content) : content_(content) {}

  bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t) noexcept override {
    profile_ = profile;
    return profile >= 0 && static_cast<std::size_t>(profile) < content_.head["profiles"].size();
  }

  bool setInputShape(const char* name, const Dims& dims) noexcept override {
    const stan_infer::Shape shape(dims.d, dims.d + dims.nbDims);
    shapes_[name] = shape;
    const auto& range = content_.head["profiles"].at(static_cast<std::size_t>(profile_)).at(name);
    for (std::size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] < range[0][i].get<std::int64_t>() || shape[i] > range[2][i].get<std::int64_t>())
        return false;
    }
    return true;
  }

  bool setTensorAddress(const char* name, void* data) noexcept override {
    addresses_[name] = data;
    return true;
  }

  std::int32_t inferShapes(std::int32_t, const char**) noexcept override {
    std::vector<stan_infer::View> given;
    for (const stan_infer::Slot& slot : content_.session->inputs()) {
      stan_infer::Tensor tensor = stan_infer::make_tensor(slot.dtype, shapes_.at(slot.name));
      std::memcpy(tensor.bytes.data(), addresses_.at(slot.name), tensor.bytes.size());
      inputs_[slot.name] = std::move(tensor);
      given.push_back(inputs_.at(slot.name));
    }
    results_ = content_.session->run(given, stan_infer::Call::endless());  // its shapes are those of the results
    return 0;
  }

  Dims getTensorShape(const char* name) const noexcept override {
    for (std::size_t i = 0; i < results_.size(); ++i) {
      if (content_.session->outputs()[i].name == name) return dims_of(results_[i].shape);
    }
    return dims_of(shapes_.at(name));
  }

  bool enqueueV3(cudaStream_t) noexcept override {
    if (fails("run")) {
      content_.log->log(nvinfer1::ILogger::Severity::kERROR, "an illegal memory access");
      return false;
    }
    for (std::size_t i = 0; i < results_.size(); ++i) {
      std::memcpy(addresses_.at(content_.session->outputs()[i].name), results_[i].bytes.data(),
                  results_[i].bytes.size());
    }
    return true;
  }

 private:
  const Content& content_;
  std::int32_t profile_ = 0;
  std::map<std::string, stan_infer::Shape> shapes_;
  std::map<std::string, void*> addresses_;
  std::map<std::string, stan_infer::Tensor> inputs_;
  std::vector<stan_infer::Tensor> results_;
};

class Engine final : public nvinfer1::ICudaEngine {
 public:
  explicit Engine(Content content) : content_(std::move(content)) {
    for (const stan_infer::Slot& slot : content_.session->inputs()) names_.push_back(slot.name);
    for (const stan_infer::Slot& slot : content_.session->outputs()) names_.push_back(slot.name);
  }

  std::int32_t getNbIOTensors() const noexcept override {
    return static_cast<std::int32_t>(names_.size());
  }
  const char* getIOTensorName(std::int32_t index) const noexcept override {
    return names_[static_cast<std::size_t>(index)].c_str();
  }
  nvinfer1::DataType getTensorDataType(const char* name) const noexcept override {
    switch (content_.slot(name)->dtype) {
      case stan_infer::DType::uint8:
        return nvinfer1::DataType::kUINT8;
      case stan_infer::DType::int32:
        return nvinfer1::DataType::kINT32;
      case stan_infer::DType::int64:
        return nvinfer1::DataType::kINT64;
      case stan_infer::DType::float32:
        break;
    }
    return nvinfer1::DataType::kFLOAT;
  }
  nvinfer1::TensorIOMode getTensorIOMode(const char* name) const noexcept override {
    bool is_input = false;
    content_.slot(name, &is_input);
    return is_input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
  }
  Dims getTensorShape(const char* name) const noexcept override {
    return dims_of(content_.slot(name)->shape);
  }
  nvinfer1::IExecutionContext* createExecutionContext() noexcept override {
    return fails("context") ? nullptr : new Context(content_);
  }

 private:
  Content content_;
  std::vector<std::string> names_;
};

class Runtime final : public nvinfer1::IRuntime {
 public:
  explicit Runtime(nvinfer1::ILogger& log) : log_(log) {}

  nvinfer1::ICudaEngine* deserializeCudaEngine(const void* blob,
                                               std::size_t size) noexcept override {
    const auto* bytes = static_cast<const std::byte*>(blob);
    if (fails("deserialise") || size < 68 || std::memcmp(bytes, "ftrt", 4) != 0) {
      log_.log(nvinfer1::ILogger::Severity::kERROR, "the version tag does not match");
      return nullptr;
    }
    std::uint32_t length = 0;
    std::memcpy(&length, bytes + 64, 4);
    const char* text = reinterpret_cast<const char*>(bytes) + 68;
    stan_infer::Options options;
    options.onnxruntime = setting("STAN_INFER_ORT_LIBRARY", "");
    options.threads = 1;
    Content content{nlohmann::json::parse(text, text + length),
                    stan_infer::open_onnxruntime(options), nullptr, &log_};
    stan_infer::GraphSource source;
    source.name = "the plan";
    source.content.assign(bytes + 68 + length, bytes + size);
    content.session = content.backend->open(source);
    return new Engine(std::move(content));
  }

 private:
  nvinfer1::ILogger& log_;
};

}  // namespace

nvinfer1::IRuntime* nvinfer1::createInferRuntime(ILogger& logger) noexcept {
  return new Runtime(logger);
}

extern "C" {

std::int32_t getInferLibVersion() noexcept {
  return std::stoi(setting("STAND_IN_VERSION", "101601"));
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return fails("no gpu") ? cudaErrorNoDevice : cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int sm = std::stoi(setting("STAND_IN_SM", "89"));
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? sm / 10 : sm % 10;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "out of memory";
}
cudaError_t cudaMalloc(void** at, std::size_t bytes) {
  *at = fails("memory") ? nullptr : std::malloc(bytes);
  return *at ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* at) {
  std::free(at);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
}
