// ONNX Runtime, loaded at run time through its C ABI.
#include <dlfcn.h>

#include <cstdlib>
#include <functional>

#include "backend.hpp"
#include "error.hpp"
#include "ort_api.hpp"

namespace stan_infer {
namespace {

using namespace ort;

// Read by ONNX Runtime, from 1.32 on, when it is loaded. Without it the library keeps a number of
// this machine and a queue of events in the user's cache, and looks for its collector.
constexpr const char* kSilence = "ORT_DISABLE_TELEMETRY";

template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

DType dtype_of_element(ElementType type, const std::string& name) {
  switch (type) {
    case kFloat:
      return DType::float32;
    case kUint8:
      return DType::uint8;
    case kInt32:
      return DType::int32;
    case kInt64:
      return DType::int64;
  }
  throw bad_folder("'" + shown(name) + "' of the graph has ONNX element type " +
                   std::to_string(int{type}) + "; known are 1, 2, 6 and 7");
}

ElementType element_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return kFloat;
    case DType::uint8:
      return kUint8;
    case DType::int32:
      return kInt32;
    case DType::int64:
      return kInt64;
  }
  return kFloat;
}

void check(const Api& api, Status* status, const std::string& doing) {
  if (!status) return;
  const Owned<Status> owned(status, api.ReleaseStatus);
  throw engine_failed("ONNX Runtime: " + doing + ": " + shown(api.GetErrorMessage(status), 400));
}

// What the C ABI returns through a pointer argument, owned.
template <class T>
Owned<T> make(const Api& api, void (*release)(T*), const std::string& doing,
              const std::function<Status*(T**)>& call) {
  T* raw = nullptr;
  check(api, call(&raw), doing);
  return {raw, release};
}

Slot slot_of(const Api& api, const TensorInfo* info, const std::string& name) {
  Slot slot{name, DType::float32, {}};
  ElementType type{};
  std::size_t rank = 0;
  check(api, api.GetTensorElementType(info, &type), "element type");
  check(api, api.GetDimensionsCount(info, &rank), "rank");
  slot.dtype = dtype_of_element(type, name);
  slot.shape.resize(rank);
  check(api, api.GetDimensions(info, slot.shape.data(), rank), "shape");
  return slot;
}

class OrtSession final : public Session {
 public:
  OrtSession(const Api& api, Owned<RawSession> session, const std::string& name)
      : api_(api),
        session_(std::move(session)),
        name_(name),
        memory_(make<MemoryInfo>(api, api.ReleaseMemoryInfo, "memory", [&](MemoryInfo** m) {
          return api.CreateCpuMemoryInfo(kCpuArena, kDefaultMemory, m);
        })) {
    inputs_ = slots(api.SessionGetInputCount, api.SessionGetInputName, api.SessionGetInputTypeInfo);
    outputs_ =
        slots(api.SessionGetOutputCount, api.SessionGetOutputName, api.SessionGetOutputTypeInfo);
  }

  const std::vector<Slot>& inputs() const override { return inputs_; }
  const std::vector<Slot>& outputs() const override { return outputs_; }

  std::vector<Tensor> run(const std::vector<View>& inputs) override {
    std::vector<Owned<Value>> values;
    std::vector<const Value*> given;
    std::vector<const char*> input_names, output_names;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const View& tensor = inputs[i];
      values.push_back(make<Value>(api_, api_.ReleaseValue, name_, [&](Value** value) {
        // The ABI takes a mutable pointer, but an input is only read.
        return api_.CreateTensorWithDataAsOrtValue(
            memory_.get(), const_cast<std::byte*>(tensor.data), tensor.size(), tensor.shape.data(),
            tensor.shape.size(), element_of(tensor.dtype), value);
      }));
      given.push_back(values.back().get());
      input_names.push_back(inputs_[i].name.c_str());
    }
    for (const Slot& slot : outputs_) output_names.push_back(slot.name.c_str());
    std::vector<Value*> raw(outputs_.size(), nullptr);
    Status* status = api_.Run(session_.get(), nullptr, input_names.data(), given.data(),
                              given.size(), output_names.data(), output_names.size(), raw.data());
    std::vector<Owned<Value>> results;
    for (Value* value : raw) results.emplace_back(value, api_.ReleaseValue);
    check(api_, status, "running " + name_);
    std::vector<Tensor> tensors;
    for (std::size_t i = 0; i < results.size(); ++i) {
      tensors.push_back(copy(results[i].get(), outputs_[i].name));
    }
    return tensors;
  }

 private:
  template <class Count, class Name, class Type>
  std::vector<Slot> slots(Count count, Name name, Type type) const {
    Allocator* allocator = nullptr;  // the library's own, never released
    check(api_, api_.GetAllocatorWithDefaultOptions(&allocator), "allocator");
    std::size_t n = 0;
    check(api_, count(session_.get(), &n), "inputs and outputs");
    std::vector<Slot> result;
    for (std::size_t i = 0; i < n; ++i) {
      char* text = nullptr;
      check(api_, name(session_.get(), i, allocator, &text), "name");
      const std::string spelled = text;
      check(api_, api_.AllocatorFree(allocator, text), "name");
      const auto info = make<TypeInfo>(api_, api_.ReleaseTypeInfo, "type",
                                       [&](TypeInfo** t) { return type(session_.get(), i, t); });
      const TensorInfo* tensor = nullptr;
      check(api_, api_.CastTypeInfoToTensorInfo(info.get(), &tensor), "type");
      if (!tensor) throw bad_folder(name_ + ": '" + shown(spelled) + "' is no tensor");
      result.push_back(slot_of(api_, tensor, spelled));
    }
    return result;
  }

  Tensor copy(Value* value, const std::string& name) const {
    const auto info =
        make<TensorInfo>(api_, api_.ReleaseTensorTypeAndShapeInfo, name,
                         [&](TensorInfo** t) { return api_.GetTensorTypeAndShape(value, t); });
    const Slot slot = slot_of(api_, info.get(), name);
    Tensor tensor = make_tensor(slot.dtype, slot.shape);
    void* data = nullptr;
    check(api_, api_.GetTensorMutableData(value, &data), name);
    if (!tensor.bytes.empty()) std::memcpy(tensor.bytes.data(), data, tensor.bytes.size());
    return tensor;
  }

  const Api& api_;
  Owned<RawSession> session_;
  std::string name_;
  Owned<MemoryInfo> memory_;
  std::vector<Slot> inputs_, outputs_;
};

class OrtBackend final : public Backend {
 public:
  OrtBackend(const Api& api, const std::string& version, int threads)
      : api_(api),
        version_(version),
        env_(make<Env>(api, api.ReleaseEnv, "start",
                       [&](Env** e) { return api.CreateEnv(kLogFatal, "stan_infer", e); })),
        options_(new_options(api, threads)),
        whole_options_(new_options(api, threads)) {
    // Once more: a program may have loaded the library before us, when kSilence was not set.
    const char* silence = std::getenv(kSilence);
    if (silence && silence == std::string("1"))
      check(api, api.DisableTelemetryEvents(env_.get()), "telemetry");
    set(whole_options_.get(), "session.disable_quant_qdq", "1");
  }

  std::string name() const override { return "ONNX Runtime " + version_; }

  std::unique_ptr<Session> open(const GraphSource& source) const override {
    RawSession* raw = nullptr;
    Owned<Status> status = start(source, options_.get(), &raw);
    // Before 1.32, linears in fp8 are fused to an operation that has int8 only. They run in fp32.
    const std::string reason = status ? api_.GetErrorMessage(status.get()) : "";
    if (reason.find("float8") != std::string::npos &&
        reason.find("MatMulInteger") != std::string::npos) {
      status = start(source, whole_options_.get(), &raw);
    }
    check(api_, status.release(), "opening " + source.name);
    return std::make_unique<OrtSession>(api_, Owned<RawSession>(raw, api_.ReleaseSession),
                                        source.name);
  }

 private:
  Owned<SessionOptions> new_options(const Api& api, int threads) const {
    auto options =
        make<SessionOptions>(api, api.ReleaseSessionOptions, "options",
                             [&](SessionOptions** o) { return api.CreateSessionOptions(o); });
    check(api, api.SetIntraOpNumThreads(options.get(), threads), "threads");
    // Exact products of 8 bits on CPUs without VNNI, where the fast way cuts off large sums.
    set(options.get(), "session.x64quantprecision", "1");
    // Else bytes are searched for ONNX Runtime's own format, .ort; only ONNX was checked.
    set(options.get(), "session.load_model_format", "ONNX");
    return options;
  }

  void set(SessionOptions* options, const char* key, const char* value) const {
    check(api_, api_.AddSessionConfigEntry(options, key, value), key);
  }

  Owned<Status> start(const GraphSource& source, const SessionOptions* options,
                      RawSession** session) const {
    Status* status = source.path.empty()
                         ? api_.CreateSessionFromArray(env_.get(), source.content.data(),
                                                       source.content.size(), options, session)
                         : api_.CreateSession(env_.get(), source.path.c_str(), options, session);
    return {status, api_.ReleaseStatus};
  }

  const Api& api_;
  std::string version_;
  Owned<Env> env_;
  Owned<SessionOptions> options_, whole_options_;  // whole: nothing is fused over Q/DQ nodes
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const std::filesystem::path& library, int threads) {
  const std::string file = library.empty() ? "libonnxruntime.so.1" : library.string();
  const std::string help =
      "; install it (pip install onnxruntime, or a release archive) and give its "
      "libonnxruntime.so in Options::onnxruntime, stan_classify's --ort-library PATH";
  setenv(kSilence, "1", /*overwrite=*/0);  // a user who set it keeps his choice
  // Never closed: the library's threads may outlive any point where that would be safe.
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) throw missing("cannot load ONNX Runtime: " + std::string(dlerror()) + help);
  const auto base = reinterpret_cast<const ApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
  if (!base) throw missing(file + " is not ONNX Runtime: it has no OrtGetApiBase" + help);
  const std::string version = base()->GetVersionString();
  const Api* api = base()->GetApi(kVersion);
  if (!api)
    throw missing("ONNX Runtime " + version + " is too old; 1.18 or newer is needed" + help);
  return std::make_unique<OrtBackend>(*api, version, threads);
}

}  // namespace stan_infer
