// TensorRT 10 and 11: the plans of a folder on an NVIDIA GPU.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <utility>

#include "backend.hpp"
#include "error.hpp"
#include "plan.hpp"
#include "sha256.hpp"

namespace stan_infer {
namespace {

constexpr std::uint64_t kMaxManifest = 16 << 20;

void check(cudaError_t status, const std::string& doing) {
  if (status == cudaSuccess) return;
  throw missing("CUDA: " + doing + ": " + cudaGetErrorString(status) +
                "; an NVIDIA GPU with its driver is needed, or ONNX Runtime as the engine");
}

class Log final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard lock(mutex_);  // called from TensorRT's own threads
    last_ = message ? message : "";
  }
  std::string last() const {
    const std::lock_guard lock(mutex_);
    return last_;
  }

 private:
  mutable std::mutex mutex_;
  std::string last_ = "no reason was logged";
};

// TensorRT's log lives as long as the process: it keeps the first that it is given.
Log& the_log() {
  static Log log;
  return log;
}

class CudaStream {
 public:
  CudaStream() { check(cudaStreamCreate(&stream_), "a stream"); }
  ~CudaStream() { cudaStreamDestroy(stream_); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Memory {
 public:
  explicit Memory(std::size_t bytes) { check(cudaMalloc(&at_, bytes ? bytes : 1), "memory"); }
  ~Memory() { cudaFree(at_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* get() const { return at_; }

 private:
  void* at_ = nullptr;
};

DType dtype_of_plan(nvinfer1::DataType type, const std::string& name) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return DType::float32;
    case nvinfer1::DataType::kUINT8:
      return DType::uint8;
    case nvinfer1::DataType::kINT32:
      return DType::int32;
    case nvinfer1::DataType::kINT64:
      return DType::int64;
    default:
      throw bad_folder("'" + shown(name) +
                       "' of the plan is neither float, uint8, int32 nor int64");
  }
}

Shape shape_of_dims(const nvinfer1::Dims& dims) {
  return Shape(dims.d, dims.d + std::max(dims.nbDims, 0));
}

class PlanSession final : public Session {
 public:
  PlanSession(nvinfer1::IRuntime& runtime, Plan plan, const Bytes& content)
      : plan_(std::move(plan)),
        engine_(runtime.deserializeCudaEngine(content.data(), content.size())) {
    if (!engine_) {
      throw missing("TensorRT does not take " + plan_.file + ": " + shown(the_log().last(), 300));
    }
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      const Slot slot{name, dtype_of_plan(engine_->getTensorDataType(name), name),
                      shape_of_dims(engine_->getTensorShape(name))};
      const bool is_input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
      (is_input ? inputs_ : outputs_).push_back(slot);
    }
  }

  const std::vector<Slot>& inputs() const override { return inputs_; }
  const std::vector<Slot>& outputs() const override { return outputs_; }

  std::vector<Tensor> run(const std::vector<View>& inputs, const Call&) override {
    nvinfer1::IExecutionContext& context = context_of(profile_of_inputs(inputs));
    std::vector<std::unique_ptr<Memory>> memory;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const View& tensor = inputs[i];
      nvinfer1::Dims dims{};
      dims.nbDims = static_cast<int>(tensor.shape.size());
      std::copy(tensor.shape.begin(), tensor.shape.end(), dims.d);
      const char* name = inputs_[i].name.c_str();
      memory.push_back(std::make_unique<Memory>(tensor.size()));
      check(cudaMemcpyAsync(memory.back()->get(), tensor.data, tensor.size(),
                            cudaMemcpyHostToDevice, stream_.get()),
            "upload");
      told(context.setInputShape(name, dims) &&
           context.setTensorAddress(name, memory.back()->get()));
    }
    told(context.inferShapes(0, nullptr) == 0);
    std::vector<Tensor> results;
    for (const Slot& slot : outputs_) {
      const char* name = slot.name.c_str();
      results.push_back(make_tensor(slot.dtype, shape_of_dims(context.getTensorShape(name))));
      memory.push_back(std::make_unique<Memory>(results.back().bytes.size()));
      told(context.setTensorAddress(name, memory.back()->get()));
    }
    told(context.enqueueV3(stream_.get()));
    for (std::size_t i = 0; i < results.size(); ++i) {
      check(cudaMemcpyAsync(results[i].bytes.data(), memory[inputs.size() + i]->get(),
                            results[i].bytes.size(), cudaMemcpyDeviceToHost, stream_.get()),
            "download");
    }
    check(cudaStreamSynchronize(stream_.get()), "running " + plan_.file);
    return results;
  }

 private:
  int profile_of_inputs(const std::vector<View>& inputs) const {
    int profile = 0;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      profile = profile_of(plan_, inputs_[i].name, inputs[i].shape);
    }
    return profile;
  }

  // A context for each profile: to change that of one waits for all that runs.
  nvinfer1::IExecutionContext& context_of(int profile) {
    auto& context = contexts_[profile];
    if (!context) {
      context.reset(engine_->createExecutionContext());
      told(context && context->setOptimizationProfileAsync(profile, stream_.get()));
    }
    return *context;
  }

  void told(bool ok) const {
    if (!ok) throw missing("TensorRT cannot run " + plan_.file + ": " + the_log().last());
  }

  Plan plan_;
  CudaStream stream_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::map<int, std::unique_ptr<nvinfer1::IExecutionContext>> contexts_;
  std::vector<Slot> inputs_, outputs_;
};

class TensorRtBackend final : public Backend {
 public:
  explicit TensorRtBackend(std::unique_ptr<Backend> other) : other_(std::move(other)) {
    const int version = getInferLibVersion();
    version_ = {version / 10000, version / 100 % 100, version % 100};
    if (version_[0] != NV_TENSORRT_MAJOR) {
      throw missing("the installed TensorRT " + std::to_string(version_[0]) +
                    " is not the one that this program was built for, " +
                    std::to_string(NV_TENSORRT_MAJOR) + ": build it again");
    }
    int device = 0;
    check(cudaGetDevice(&device), "finding a GPU");
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "the GPU");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "the GPU");
    sm_ = "sm_" + std::to_string(major) + std::to_string(minor);
    runtime_.reset(nvinfer1::createInferRuntime(the_log()));
    if (!runtime_) throw missing("TensorRT does not start: " + the_log().last());
  }

  std::string name() const override {
    return "TensorRT " + version() + " (preprocessing and score: " + other_->name() + ")";
  }
  std::string version() const override {
    return std::to_string(version_[0]) + "." + std::to_string(version_[1]) + "." +
           std::to_string(version_[2]);
  }

  bool runs_parts() const override { return false; }  // there are no plans of them

  std::unique_ptr<Session> open(const GraphSource& source) const override {
    if (source.role != "video" && source.role != "text") return other_->open(source);
    const Bytes manifest = source.folder->read("manifest.json", kMaxManifest);
    const std::vector<Plan> plans = list_plans(*source.folder);
    const Plan& plan = choose_plan(plans, source.role, version_, sm_,
                                   sha256_hex(source.content.data(), source.content.size()),
                                   sha256_hex(manifest.data(), manifest.size()));
    return std::make_unique<PlanSession>(*runtime_, plan, read_plan(*source.folder, plan));
  }

 private:
  std::unique_ptr<Backend> other_;
  std::array<int, 3> version_{};
  std::string sm_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(std::unique_ptr<Backend> other) {
  return std::make_unique<TensorRtBackend>(std::move(other));
}

}  // namespace stan_infer
