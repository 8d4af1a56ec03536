#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <thread>

#include "self_test.hpp"

namespace stan_infer {
namespace {

constexpr int kMostThreads = 1024, kMostClips = 64;

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

// That may decode a video.
int readers_of(const Options& options) {
  return options.threads ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

Model::Impl::Impl(const std::filesystem::path& folder, const Options& options)
    : backend(open_backend(options)), pipeline(folder, *backend, options.batch, readers_of(options)) {
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
  info.has_stream = backend->runs_parts() && manifest.graph("trunk") && manifest.graph("branch");
  if (const Graph* video = manifest.graph("video")) info.precision = video->precision;
}

Model::Model(const std::filesystem::path& folder, const Options& options)
    : impl_(guarded([&] { return std::make_shared<Impl>(folder, options); })) {}
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
