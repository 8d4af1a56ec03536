// The public face: every entry checks what it is given, waits for its turn, and lets Error out
// only.
#include <algorithm>
#include <cmath>

#include "backend.hpp"
#include "call.hpp"
#include "error.hpp"
#include "pipeline.hpp"
#include "self_test.hpp"

namespace stan_infer {
namespace {

constexpr int kMostThreads = 1024, kMostClips = 64;

template <class Work>
auto guarded(const Work& work) -> decltype(work()) {
  try {
    return work();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::out_of_memory, "there is not enough memory");
  } catch (const std::exception& e) {
    throw Error(ErrorCode::internal, std::string("a bug of stan_infer: ") + e.what());
  } catch (...) {
    throw Error(ErrorCode::internal, "a bug of stan_infer");
  }
}

void check_range(const std::string& name, int value, int least, int most) {
  if (value >= least && value <= most) return;
  throw bad_argument(name + " is " + std::to_string(value) + "; allowed are " +
                     std::to_string(least) + " to " + std::to_string(most));
}

std::unique_ptr<Backend> open_backend(const Options& options) {
  check_range("threads", options.threads, 0, kMostThreads);
  check_range("batch", options.batch, 1, kMostClips);
  switch (options.engine) {
    case Engine::openvino:
      return open_openvino(options.threads);
    case Engine::onnxruntime:
      return open_onnxruntime(options);
    case Engine::tensorrt:
      return open_tensorrt(open_onnxruntime(options));
  }
  throw bad_argument("there is no such engine");
}

}  // namespace

struct Model::Impl {
  std::unique_ptr<Backend> backend;
  Pipeline pipeline;
  Info info;
  Turns turns;

  Impl(const std::filesystem::path& folder, const Options& options)
      : backend(open_backend(options)), pipeline(folder, *backend, options.batch) {
    const Manifest& manifest = pipeline.manifest();
    info.frames = manifest.model.frames;
    info.image_size = manifest.model.image_size;
    info.embed_dim = manifest.model.embed_dim;
    info.context_length = manifest.model.context_length;
    info.temperature = manifest.model.temperature;
    info.is_mug = manifest.model.head != Head::mean;
    info.has_texts =
        kReadsTexts && manifest.graph("text") && manifest.files.count("tokenizer.json") > 0;
    info.has_labels = manifest.labels.has_value();
    info.engine = backend->name();
    info.version = backend->version();
    info.provider = backend->provider();
    if (const Graph* video = manifest.graph("video")) info.precision = video->precision;
  }

  // Runs a call of the public interface, one at a time.
  template <class Work>
  auto run(const Call& call, const Work& work) -> decltype(work(pipeline)) {
    return guarded([&] {
      turns.take(call);
      const std::unique_ptr<Turns, void (*)(Turns*)> turn(&turns, [](Turns* t) { t->give_back(); });
      pipeline.use(call);
      return work(pipeline);
    });
  }
};

Model::Model(const std::filesystem::path& folder, const Options& options)
    : impl_(guarded([&] { return std::make_unique<Impl>(folder, options); })) {}
Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

Model::Impl& Model::impl() const {
  if (!impl_) throw bad_argument("this Model was moved from; use the one that it was moved to");
  return *impl_;
}

Info Model::info() const {
  return guarded([&] { return impl().info; });
}

Clip Model::read_clip(const std::filesystem::path& video, const Call& call) {
  return impl().run(call, [&](Pipeline& pipeline) { return pipeline.read_clip(video); });
}

Tensor Model::clip_of_frames(const std::vector<ImageView>& frames, const FrameOptions& options,
                              const Call& call) {
  return impl().run(
      call, [&](Pipeline& pipeline) { return pipeline.clip_of_frames(frames, options); });
}

VideoEmbeds Model::embed_clips(const Tensor& clips, const Call& call) {
  return impl().run(call, [&](Pipeline& pipeline) {
    expect_whole(clips, clips.dtype, clips.shape, "clips");
    return pipeline.embed_clips(clips);
  });
}

VideoEmbeds Model::embed_video(const std::filesystem::path& video, const Call& call) {
  return impl().run(call, [&](Pipeline& pipeline) { return pipeline.embed_videos({video}); });
}

VideoEmbeds Model::embed_videos(const std::vector<std::filesystem::path>& videos,
                                const Call& call) {
  return impl().run(call, [&](Pipeline& pipeline) { return pipeline.embed_videos(videos); });
}

VideoEmbeds Model::embed_frames(const std::vector<ImageView>& frames, const FrameOptions& options,
                              const Call& call) {
  return impl().run(call, [&](Pipeline& pipeline) {
    return pipeline.embed_clips(pipeline.clip_of_frames(frames, options));
  });
}

TextEmbeds Model::embed_texts(const std::vector<std::string>& texts, const Call& call) {
  return impl().run(call, [&](Pipeline& pipeline) { return pipeline.embed_texts(texts); });
}

Tensor Model::score(const TextEmbeds& texts, const VideoEmbeds& videos, const Call& call) {
  return impl().run(call, [&](Pipeline& pipeline) { return pipeline.score(texts, videos); });
}

std::vector<std::string> Model::labels(const Call& call) {
  return impl().run(call, [](Pipeline& pipeline) { return pipeline.labels(); });
}

std::vector<std::size_t> Model::cut_labels(const Call& call) {
  return impl().run(call, [](Pipeline& pipeline) { return pipeline.cut_labels(); });
}

Tensor Model::score_labels(const VideoEmbeds& videos, const Call& call) {
  return impl().run(call, [&](Pipeline& pipeline) { return pipeline.score_labels(videos); });
}

std::vector<double> Model::probabilities(const Tensor& scores) const {
  return guarded([&] {
    expect_whole(scores, DType::float32, {-1, 1}, "scores");
    const float* begin = scores.data<float>();
    std::vector<double> result(begin, begin + scores.shape[0]);
    const auto finite = [](double value) { return std::isfinite(value); };
    if (!std::all_of(result.begin(), result.end(), finite)) {
      throw bad_argument("a score is not a finite number");
    }
    const double top = *std::max_element(result.begin(), result.end());
    double sum = 0;
    for (double& value : result) {
      sum += value = std::exp((value - top) / impl().info.temperature);
    }
    for (double& value : result) value /= sum;
    return result;
  });
}

std::vector<Stage> Model::self_test(const Call& call) {
  return impl().run(call, [](Pipeline& pipeline) {
    try {
      return stan_infer::self_test(pipeline);
    } catch (const Error& e) {
      // The arguments are the folder's own.
      if (e.code() != ErrorCode::bad_argument) throw;
      throw bad_folder(e.what());
    }
  });
}

}  // namespace stan_infer
