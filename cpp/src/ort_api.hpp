// The part of ONNX Runtime's C ABI that is used, declared here so that no headers are needed.
//
// The library hands out a table of function pointers whose order never changes; new ones are only
// added at its end. With -DONNXRUNTIME_ROOT the places are compared with the official header
// (ort_api_check.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace stan_infer::ort {

struct Status;
struct Env;
struct SessionOptions;
struct RawSession;
struct Value;
struct MemoryInfo;
struct RunOptions;
struct TypeInfo;
struct TensorInfo;
struct Allocator;

enum ElementType : int { kFloat = 1, kUint8 = 2, kInt32 = 6, kInt64 = 7 };

constexpr int kLogFatal = 4;            // ORT_LOGGING_LEVEL_FATAL
constexpr int kCpuArena = 1;            // OrtArenaAllocator
constexpr int kDefaultMemory = 0;       // OrtMemTypeDefault
constexpr std::uint32_t kVersion = 18;  // of ONNX Runtime 1.18, the oldest that reads IR 10

struct Api {
  void* unused_0_1[2];
  const char* (*GetErrorMessage)(const Status*);           // 2
  Status* (*CreateEnv)(int level, const char* id, Env**);  // 3
  void* unused_4_5[2];
  Status* (*DisableTelemetryEvents)(const Env*);  // 6
  Status* (*CreateSession)(const Env*, const char* path, const SessionOptions*, RawSession**);  // 7
  Status* (*CreateSessionFromArray)(const Env*, const void* data, std::size_t size,
                                    const SessionOptions*, RawSession**);  // 8
  Status* (*Run)(RawSession*, const RunOptions*, const char* const* input_names,
                 const Value* const* inputs, std::size_t input_count,
                 const char* const* output_names, std::size_t output_count, Value** outputs);  // 9
  Status* (*CreateSessionOptions)(SessionOptions**);                                           // 10
  void* unused_11_23[13];
  Status* (*SetIntraOpNumThreads)(SessionOptions*, int threads);  // 24
  void* unused_25_29[5];
  Status* (*SessionGetInputCount)(const RawSession*, std::size_t*);   // 30
  Status* (*SessionGetOutputCount)(const RawSession*, std::size_t*);  // 31
  void* unused_32;
  Status* (*SessionGetInputTypeInfo)(const RawSession*, std::size_t, TypeInfo**);   // 33
  Status* (*SessionGetOutputTypeInfo)(const RawSession*, std::size_t, TypeInfo**);  // 34
  void* unused_35;
  Status* (*SessionGetInputName)(const RawSession*, std::size_t, Allocator*, char**);   // 36
  Status* (*SessionGetOutputName)(const RawSession*, std::size_t, Allocator*, char**);  // 37
  void* unused_38_48[11];
  Status* (*CreateTensorWithDataAsOrtValue)(const MemoryInfo*, void* data, std::size_t bytes,
                                            const std::int64_t* shape, std::size_t rank,
                                            ElementType, Value**);  // 49
  void* unused_50;
  Status* (*GetTensorMutableData)(Value*, void**);  // 51
  void* unused_52_54[3];
  Status* (*CastTypeInfoToTensorInfo)(const TypeInfo*, const TensorInfo**);  // 55
  void* unused_56_59[4];
  Status* (*GetTensorElementType)(const TensorInfo*, ElementType*);         // 60
  Status* (*GetDimensionsCount)(const TensorInfo*, std::size_t*);           // 61
  Status* (*GetDimensions)(const TensorInfo*, std::int64_t*, std::size_t);  // 62
  void* unused_63_64[2];
  Status* (*GetTensorTypeAndShape)(const Value*, TensorInfo**);  // 65
  void* unused_66_68[3];
  Status* (*CreateCpuMemoryInfo)(int allocator, int memory, MemoryInfo**);  // 69
  void* unused_70_75[6];
  Status* (*AllocatorFree)(Allocator*, void*);  // 76
  void* unused_77;
  Status* (*GetAllocatorWithDefaultOptions)(Allocator**);  // 78
  void* unused_79_91[13];
  void (*ReleaseEnv)(Env*);                // 92
  void (*ReleaseStatus)(Status*);          // 93
  void (*ReleaseMemoryInfo)(MemoryInfo*);  // 94
  void (*ReleaseSession)(RawSession*);     // 95
  void (*ReleaseValue)(Value*);            // 96
  void* unused_97;
  void (*ReleaseTypeInfo)(TypeInfo*);                  // 98
  void (*ReleaseTensorTypeAndShapeInfo)(TensorInfo*);  // 99
  void (*ReleaseSessionOptions)(SessionOptions*);      // 100
  void* unused_101_129[29];
  Status* (*AddSessionConfigEntry)(SessionOptions*, const char* key, const char* value);  // 130
};

struct ApiBase {
  const Api* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

static_assert(offsetof(Api, DisableTelemetryEvents) == 6 * sizeof(void*));
static_assert(offsetof(Api, Run) == 9 * sizeof(void*));
static_assert(offsetof(Api, CreateTensorWithDataAsOrtValue) == 49 * sizeof(void*));
static_assert(offsetof(Api, GetAllocatorWithDefaultOptions) == 78 * sizeof(void*));
static_assert(offsetof(Api, ReleaseSessionOptions) == 100 * sizeof(void*));
static_assert(offsetof(Api, AddSessionConfigEntry) == 130 * sizeof(void*));

}  // namespace stan_infer::ort
