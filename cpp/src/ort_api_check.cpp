// Compiled only with -DONNXRUNTIME_ROOT: our declarations against the official header.
#include <onnxruntime_c_api.h>

#include "ort_api.hpp"

#define SAME_PLACE(name)                                                  \
  static_assert(offsetof(OrtApi, name) == offsetof(stan_infer::ort::Api, name), \
                "ort_api.hpp declares " #name " at another place than the official header")

SAME_PLACE(GetErrorMessage);
SAME_PLACE(CreateEnv);
SAME_PLACE(DisableTelemetryEvents);
SAME_PLACE(CreateSession);
SAME_PLACE(CreateSessionFromArray);
SAME_PLACE(Run);
SAME_PLACE(CreateSessionOptions);
SAME_PLACE(SetIntraOpNumThreads);
SAME_PLACE(SessionGetInputCount);
SAME_PLACE(SessionGetOutputCount);
SAME_PLACE(SessionGetInputTypeInfo);
SAME_PLACE(SessionGetOutputTypeInfo);
SAME_PLACE(SessionGetInputName);
SAME_PLACE(SessionGetOutputName);
SAME_PLACE(CreateTensorWithDataAsOrtValue);
SAME_PLACE(GetTensorMutableData);
SAME_PLACE(CastTypeInfoToTensorInfo);
SAME_PLACE(GetTensorElementType);
SAME_PLACE(GetDimensionsCount);
SAME_PLACE(GetDimensions);
SAME_PLACE(GetTensorTypeAndShape);
SAME_PLACE(CreateCpuMemoryInfo);
SAME_PLACE(AllocatorFree);
SAME_PLACE(GetAllocatorWithDefaultOptions);
SAME_PLACE(ReleaseEnv);
SAME_PLACE(ReleaseStatus);
SAME_PLACE(ReleaseMemoryInfo);
SAME_PLACE(ReleaseSession);
SAME_PLACE(ReleaseValue);
SAME_PLACE(ReleaseTypeInfo);
SAME_PLACE(ReleaseTensorTypeAndShapeInfo);
SAME_PLACE(ReleaseSessionOptions);
SAME_PLACE(AddSessionConfigEntry);

static_assert(offsetof(OrtApiBase, GetVersionString) ==
              offsetof(stan_infer::ort::ApiBase, GetVersionString));
static_assert(int{stan_infer::ort::kFloat} == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(int{stan_infer::ort::kUint8} == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
static_assert(int{stan_infer::ort::kInt32} == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
static_assert(int{stan_infer::ort::kInt64} == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
static_assert(stan_infer::ort::kLogFatal == ORT_LOGGING_LEVEL_FATAL);
static_assert(stan_infer::ort::kCpuArena == OrtArenaAllocator);
static_assert(stan_infer::ort::kDefaultMemory == OrtMemTypeDefault);
