#include <algorithm>
#include <cstdlib>
#include <stan_infer/stan_infer.hpp>

// The embedding of a video; the number of its values, or -1 - ErrorCode.
extern "C" __attribute__((visibility("default"))) int embed(const char* folder, const char* video,
                                                            float* values, int most) {
  try {
    stan_infer::Options options;
    options.onnxruntime = std::getenv("STAN_INFER_ORT_LIBRARY");
    stan_infer::Model model(folder, options);
    const stan_infer::Tensor clips = model.embed_video(video).clips;
    const int count = std::min(most, static_cast<int>(clips.shape[1]));
    std::copy_n(clips.data<float>(), count, values);
    return count;
  } catch (const stan_infer::Error& e) {
    return -1 - static_cast<int>(e.code());
  }
}
