// ONNX Runtime, loaded at run time through its C ABI.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <functional>

#include "backend.hpp"
#include "call.hpp"
#include "error.hpp"

namespace stan_infer {
namespace {

using Api = OrtApi;

constexpr std::uint32_t kVersion = 18;  // of ONNX Runtime 1.18, the oldest that reads IR 10

// Read by ONNX Runtime, from 1.32 on, when it is loaded. Without it the library keeps a number of
// this machine and a queue of events in the user's cache, and looks for its collector.
constexpr const char* kSilence = "ORT_DISABLE_TELEMETRY";

template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

DType dtype_of_element(ONNXTensorElementDataType type, const std::string& name) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return DType::float32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return DType::uint8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return DType::int32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return DType::int64;
    default:
      break;
  }
  throw bad_folder("'" + shown(name) + "' of the graph has ONNX element type " +
                   std::to_string(static_cast<int>(type)) + "; known are 1, 2, 6 and 7");
}

ONNXTensorElementDataType element_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::uint8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case DType::int32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case DType::int64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

void check(const Api& api, OrtStatus* status, const std::string& doing) {
  if (!status) return;
  const Owned<OrtStatus> owned(status, api.ReleaseStatus);
  throw engine_failed("ONNX Runtime: " + doing + ": " + shown(api.GetErrorMessage(status), 400));
}

// What the C ABI returns through a pointer argument, owned.
template <class T>
Owned<T> make(const Api& api, void (*release)(T*), const std::string& doing,
              const std::function<OrtStatus*(T**)>& call) {
  T* raw = nullptr;
  check(api, call(&raw), doing);
  return {raw, release};
}

Slot slot_of(const Api& api, const OrtTensorTypeAndShapeInfo* info, const std::string& name) {
  Slot slot{name, DType::float32, {}};
  ONNXTensorElementDataType type{};
  std::size_t rank = 0;
  check(api, api.GetTensorElementType(info, &type), "element type");
  check(api, api.GetDimensionsCount(info, &rank), "rank");
  slot.dtype = dtype_of_element(type, name);
  slot.shape.resize(rank);
  check(api, api.GetDimensions(info, slot.shape.data(), rank), "shape");
  return slot;
}

class OpenSession final : public Session {
 public:
  OpenSession(const Api& api, Owned<OrtSession> session, const std::string& name)
      : api_(api),
        session_(std::move(session)),
        name_(name),
        memory_(make<OrtMemoryInfo>(api, api.ReleaseMemoryInfo, "memory", [&](OrtMemoryInfo** m) {
          return api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, m);
        })) {
    inputs_ = slots(api.SessionGetInputCount, api.SessionGetInputName, api.SessionGetInputTypeInfo);
    outputs_ =
        slots(api.SessionGetOutputCount, api.SessionGetOutputName, api.SessionGetOutputTypeInfo);
  }

  const std::vector<Slot>& inputs() const override { return inputs_; }
  const std::vector<Slot>& outputs() const override { return outputs_; }

  std::vector<Tensor> run(const std::vector<View>& inputs, const Call& call) override {
    std::vector<Owned<OrtValue>> values;
    std::vector<const OrtValue*> given;
    std::vector<const char*> input_names, output_names;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const View& tensor = inputs[i];
      values.push_back(make<OrtValue>(api_, api_.ReleaseValue, name_, [&](OrtValue** value) {
        // The ABI takes a mutable pointer, but an input is only read.
        return api_.CreateTensorWithDataAsOrtValue(
            memory_.get(), const_cast<std::byte*>(tensor.data), tensor.size(), tensor.shape.data(),
            tensor.shape.size(), element_of(tensor.dtype), value);
      }));
      given.push_back(values.back().get());
      input_names.push_back(inputs_[i].name.c_str());
    }
    for (const Slot& slot : outputs_) output_names.push_back(slot.name.c_str());
    std::vector<OrtValue*> raw(outputs_.size(), nullptr);
    const auto options = make<OrtRunOptions>(api_, api_.ReleaseRunOptions, name_,
                                             [&](auto** o) { return api_.CreateRunOptions(o); });
    OrtStatus* status = nullptr;
    {
      const Watch watch(call, [&] {
        const Owned<OrtStatus> failed(api_.RunOptionsSetTerminate(options.get()),
                                      api_.ReleaseStatus);
      });
      status = api_.Run(session_.get(), options.get(), input_names.data(), given.data(),
                        given.size(), output_names.data(), output_names.size(), raw.data());
    }
    std::vector<Owned<OrtValue>> results;
    for (OrtValue* value : raw) results.emplace_back(value, api_.ReleaseValue);
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
    OrtAllocator* allocator = nullptr;  // the library's own, never released
    check(api_, api_.GetAllocatorWithDefaultOptions(&allocator), "allocator");
    std::size_t n = 0;
    check(api_, count(session_.get(), &n), "inputs and outputs");
    std::vector<Slot> result;
    for (std::size_t i = 0; i < n; ++i) {
      char* text = nullptr;
      check(api_, name(session_.get(), i, allocator, &text), "name");
      const std::string spelled = text;
      check(api_, api_.AllocatorFree(allocator, text), "name");
      const auto info = make<OrtTypeInfo>(api_, api_.ReleaseTypeInfo, "type",
                                       [&](OrtTypeInfo** t) { return type(session_.get(), i, t); });
      const OrtTensorTypeAndShapeInfo* tensor = nullptr;
      check(api_, api_.CastTypeInfoToTensorInfo(info.get(), &tensor), "type");
      if (!tensor) throw bad_folder(name_ + ": '" + shown(spelled) + "' is no tensor");
      result.push_back(slot_of(api_, tensor, spelled));
    }
    return result;
  }

  Tensor copy(OrtValue* value, const std::string& name) const {
    const auto info = make<OrtTensorTypeAndShapeInfo>(
        api_, api_.ReleaseTensorTypeAndShapeInfo, name,
        [&](auto** t) { return api_.GetTensorTypeAndShape(value, t); });
    const Slot slot = slot_of(api_, info.get(), name);
    Tensor tensor = make_tensor(slot.dtype, slot.shape);
    void* data = nullptr;
    check(api_, api_.GetTensorMutableData(value, &data), name);
    if (!tensor.bytes.empty()) std::memcpy(tensor.bytes.data(), data, tensor.bytes.size());
    return tensor;
  }

  const Api& api_;
  Owned<OrtSession> session_;
  std::string name_;
  Owned<OrtMemoryInfo> memory_;
  std::vector<Slot> inputs_, outputs_;
};

std::string lower_case(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) {
    return static_cast<char>(std::tolower(c));
  });
  return text;
}

// The execution providers that a build of ONNX Runtime has, as "CPU", "CUDA", "Tensorrt".
std::vector<std::string> providers_of(const Api& api) {
  char** names = nullptr;
  int count = 0;
  check(api, api.GetAvailableProviders(&names, &count), "execution providers");
  std::vector<std::string> result;
  for (int i = 0; i < count; ++i) {
    const std::string name = names[i];
    result.push_back(name.substr(0, name.rfind("ExecutionProvider")));
  }
  const Owned<OrtStatus> released(api.ReleaseAvailableProviders(names, count), api.ReleaseStatus);
  return result;
}

// Adds the execution provider that `options` name to those of a session.
class Provider {
 public:
  Provider(const Api& api, void* library, const Options& options)
      : api_(api), library_(library), asked_(options.provider) {
    for (const auto& [key, value] : options.provider_options) {
      keys_.push_back(key.c_str());
      values_.push_back(value.c_str());
    }
  }

  // Returns its name in full.
  std::string add_to(OrtSessionOptions* session) const {
    const std::string name = lower_case(asked_);
    std::string all, spelled;
    for (const std::string& there : providers_of(api_)) {
      all += (all.empty() ? "" : ", ") + there;
      if (lower_case(there) == name) spelled = there;
    }
    const std::string full = spelled + "ExecutionProvider";
    if (spelled.empty()) {
      throw missing("this ONNX Runtime has no execution provider '" + shown(asked_) +
                    "'; it has: " + all + ". Use a build with it, or one of these");
    }
    if (name == "cpu" || name == "nnapi") {
      if (!keys_.empty()) throw bad_argument("the provider " + shown(asked_) + " has no options");
      if (name == "nnapi") add_nnapi(session);
    } else if (name == "cuda") {
      add<OrtCUDAProviderOptionsV2>(
          session, api_.CreateCUDAProviderOptions, api_.UpdateCUDAProviderOptions,
          api_.ReleaseCUDAProviderOptions, api_.SessionOptionsAppendExecutionProvider_CUDA_V2);
    } else if (name == "tensorrt") {
      add<OrtTensorRTProviderOptionsV2>(session, api_.CreateTensorRTProviderOptions,
                                        api_.UpdateTensorRTProviderOptions,
                                        api_.ReleaseTensorRTProviderOptions,
                                        api_.SessionOptionsAppendExecutionProvider_TensorRT_V2);
    } else {
      // These two are spelled otherwise here than in the list.
      if (name == "xnnpack" || name == "azure") {
        std::transform(spelled.begin(), spelled.end(), spelled.begin(),
                       [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
      }
      told(api_.SessionOptionsAppendExecutionProvider(session, spelled.c_str(), keys_.data(),
                                                      values_.data(), keys_.size()));
    }
    return full;
  }

 private:
  // A provider that is there may lack a library or a device, or refuse an option.
  void told(OrtStatus* status) const {
    if (!status) return;
    const Owned<OrtStatus> owned(status, api_.ReleaseStatus);
    throw missing("ONNX Runtime does not start the execution provider " + shown(asked_) + ": " +
                  shown(api_.GetErrorMessage(status), 400));
  }

  template <class T, class Create, class Update, class Release, class Append>
  void add(OrtSessionOptions* session, Create create, Update update, Release release,
           Append append) const {
    T* raw = nullptr;
    told(create(&raw));
    const std::unique_ptr<T, Release> settings(raw, release);
    told(update(raw, keys_.data(), values_.data(), keys_.size()));
    told(append(session, raw));
  }

  void add_nnapi(OrtSessionOptions* session) const {
    const auto append = reinterpret_cast<OrtStatus* (*)(OrtSessionOptions*, std::uint32_t)>(
        dlsym(library_, "OrtSessionOptionsAppendExecutionProvider_Nnapi"));
    if (!append) throw missing("this ONNX Runtime does not offer NNAPI to other programs");
    told(append(session, 0));
  }

  const Api& api_;
  void* library_;  // for dlsym
  std::string asked_;
  std::vector<const char*> keys_, values_;  // of the Options
};

class OrtBackend final : public Backend {
 public:
  OrtBackend(const Api& api, const std::string& version, void* library, const Options& options)
      : api_(api),
        version_(version),
        env_(new_env(options)),  // first: providers write to its log
        options_(new_options(library, options)),
        whole_options_(new_options(library, options)) {
    set(whole_options_.get(), "session.disable_quant_qdq", "1");
  }

  std::string name() const override { return "ONNX Runtime " + version_; }
  std::string version() const override { return version_; }
  std::string provider() const override { return provider_; }

  std::unique_ptr<Session> open(const GraphSource& source) const override {
    OrtSession* raw = nullptr;
    Owned<OrtStatus> status = start(source, options_.get(), &raw);
    // Before 1.32, linears in fp8 are fused to an operation that has int8 only. They run in fp32.
    const std::string reason = status ? api_.GetErrorMessage(status.get()) : "";
    if (reason.find("float8") != std::string::npos &&
        reason.find("MatMulInteger") != std::string::npos) {
      status = start(source, whole_options_.get(), &raw);
    }
    check(api_, status.release(), "opening " + source.name);
    return std::make_unique<OpenSession>(api_, Owned<OrtSession>(raw, api_.ReleaseSession),
                                        source.name);
  }

 private:
  Owned<OrtEnv> new_env(const Options& given) const {
    if (given.ort_env) return {given.ort_env, [](OrtEnv*) {}};
    auto env = make<OrtEnv>(api_, api_.ReleaseEnv, "start", [&](OrtEnv** e) {
      return api_.CreateEnv(ORT_LOGGING_LEVEL_FATAL, "stan_infer", e);
    });
    // Once more: a program may have loaded the library before us, when kSilence was not set.
    const char* silence = std::getenv(kSilence);
    if (!silence || silence == std::string("1"))
      check(api_, api_.DisableTelemetryEvents(env.get()), "telemetry");
    return env;
  }

  Owned<OrtSessionOptions> new_options(void* library, const Options& given) {
    auto options = make<OrtSessionOptions>(
        api_, api_.ReleaseSessionOptions, "options", [&](OrtSessionOptions** o) {
          return given.ort_session_options ? api_.CloneSessionOptions(given.ort_session_options, o)
                                           : api_.CreateSessionOptions(o);
        });
    if (!given.ort_session_options) {
      check(api_, api_.SetIntraOpNumThreads(options.get(), given.threads), "threads");
      provider_ = Provider(api_, library, given).add_to(options.get());
    }
    // Exact products of 8 bits on CPUs without VNNI, where the fast way cuts off large sums.
    set(options.get(), "session.x64quantprecision", "1");
    // Else bytes are searched for ONNX Runtime's own format, .ort; only ONNX was checked.
    set(options.get(), "session.load_model_format", "ONNX");
    // Else threads spin some 30 ms behind a run, and take a core from the next graph or a decoder.
    set(options.get(), "session.force_spinning_stop", "1");
    return options;
  }

  void set(OrtSessionOptions* options, const char* key, const char* value) const {
    check(api_, api_.AddSessionConfigEntry(options, key, value), key);
  }

  Owned<OrtStatus> start(const GraphSource& source, const OrtSessionOptions* options,
                      OrtSession** session) const {
    OrtStatus* status = source.path.empty()
                         ? api_.CreateSessionFromArray(env_.get(), source.content.data(),
                                                       source.content.size(), options, session)
                         : api_.CreateSession(env_.get(), source.path.c_str(), options, session);
    return {status, api_.ReleaseStatus};
  }

  const Api& api_;
  std::string version_, provider_;
  Owned<OrtEnv> env_;
  Owned<OrtSessionOptions> options_, whole_options_;  // whole: nothing is fused over Q/DQ nodes
};

void check_options(const Options& options) {
  const bool own = options.ort_api_base != nullptr;
  if (own && !options.onnxruntime.empty()) {
    throw bad_argument("ort_api_base and onnxruntime name two libraries; give one");
  }
  if (!own && (options.ort_env || options.ort_session_options)) {
    throw bad_argument("ort_env and ort_session_options need the ort_api_base that they are of");
  }
  const bool said = options.threads != 0 || lower_case(options.provider) != "cpu" ||
                    !options.provider_options.empty();
  if (options.ort_session_options && said) {
    throw bad_argument(
        "ort_session_options say the threads and execution providers; leave threads, provider and "
        "provider_options as they are");
  }
}

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const Options& options) {
  check_options(options);
  const std::string help =
      "; install it (pip install onnxruntime, or a release archive) and give its "
      "libonnxruntime.so in Options::onnxruntime, stan_classify's --ort-library PATH";
  const OrtApiBase* base = options.ort_api_base;
  void* library = RTLD_DEFAULT;
  if (!base) {
    const std::string file =
        options.onnxruntime.empty() ? "libonnxruntime.so.1" : options.onnxruntime.string();
    setenv(kSilence, "1", /*overwrite=*/0);  // a user who set it keeps his choice
    // Never closed: the library's threads may outlive any point where that would be safe.
    library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) throw missing("cannot load ONNX Runtime: " + std::string(dlerror()) + help);
    const auto get =
        reinterpret_cast<decltype(&OrtGetApiBase)>(dlsym(library, "OrtGetApiBase"));
    if (!get) throw missing(file + " is not ONNX Runtime: it has no OrtGetApiBase" + help);
    base = get();
  }
  const std::string version = base->GetVersionString();
  const Api* api = base->GetApi(kVersion);
  if (!api)
    throw missing("ONNX Runtime " + version + " is too old; 1.18 or newer is needed" + help);
  return std::make_unique<OrtBackend>(*api, version, library, options);
}

}  // namespace stan_infer
