#include "self_test.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.hpp"

namespace stan_infer {
namespace {

using Arrays = std::map<std::string, Tensor>;

const Tensor* find(const Arrays& arrays, const std::string& name) {
  const auto found = arrays.find(name);
  return found == arrays.end() ? nullptr : &found->second;
}

Stage not_run(Stage stage, const std::string& why) {
  stage.ran = false;
  stage.note = why;
  return stage;
}

// Largest difference relative to the largest wanted value.
Stage compare(const std::string& name, const Tensor& got, const Tensor& wanted, double allowed) {
  expect(wanted, got.dtype, got.shape, "'" + name + "' of the golden data");
  double difference = 0, largest = 0;
  for (std::size_t i = 0; i < element_count(wanted.shape); ++i) {
    const double a = got.data<float>()[i], b = wanted.data<float>()[i];
    if (!std::isfinite(a) || !std::isfinite(b)) {
      return {name, std::numeric_limits<double>::quiet_NaN(), allowed};
    }
    difference = std::max(difference, std::abs(a - b));
    largest = std::max(largest, std::abs(b));
  }
  return {name, difference == 0 ? 0 : difference / largest, allowed};
}

Stage compare_levels(const std::string& name, const Tensor& got, const Tensor& wanted,
                     double allowed) {
  int worst = 0;
  for (std::size_t i = 0; i < got.bytes.size(); ++i) {
    worst = std::max(worst, std::abs(std::to_integer<int>(got.bytes[i]) -
                                     std::to_integer<int>(wanted.bytes[i])));
  }
  return {name, static_cast<double>(worst), allowed};
}

Stage decode(Pipeline& pipeline, const Tensor* wanted) {
  Stage stage{"decode"};
  const bool has_clip = pipeline.manifest().golden->clip.has_value();
  if (!has_clip && !wanted) {
    return not_run(stage, "the folder has no golden clip; export it again for one");
  }
  if (!has_clip || !wanted) {
    throw bad_folder("the golden data have a clip without its frames, or frames without the clip; "
                     "export the checkpoint again");
  }
  expect(*wanted, DType::uint8, {pipeline.manifest().model.frames, -1, -1, 3},
         "'clip' of the golden data");
  const std::int64_t side = wanted->shape[1];
  expect(*wanted, DType::uint8, {-1, side, side, 3}, "'clip' of the golden data");
  try {
    return compare_levels(stage.name, pipeline.golden_frames(side), *wanted, 0);
  } catch (const Error& e) {
    if (e.code() == ErrorCode::missing) return not_run(stage, e.what());
    if (e.code() != ErrorCode::bad_video) throw;
    stage.error = std::numeric_limits<double>::infinity();  // the file is the one of the export
    stage.note = e.what();
    return stage;
  }
}

Stage compare_ids(const Tensor& got, const Tensor& wanted) {
  expect(wanted, DType::int32, got.shape, "'input_ids' of the golden data");
  double wrong = 0;
  for (std::size_t i = 0; i < element_count(got.shape); ++i) {
    wrong += got.data<std::int32_t>()[i] != wanted.data<std::int32_t>()[i];
  }
  return {"input_ids", wrong, 0};
}

// The clips through trunk and branch, compared with what video.onnx gave.
Stage compare_parts(Pipeline& pipeline, const Tensor& clips, const VideoEmbeds& whole,
                    double allowed) {
  pipeline.parts();
  const std::int64_t b = clips.shape[0], t = clips.shape[1];
  const Shape one(clips.shape.begin() + 2, clips.shape.end());
  VideoEmbeds made;
  for (std::int64_t i = 0; i < b; ++i) {
    View frames = clips;
    frames.shape = one;
    frames.shape.insert(frames.shape.begin(), t);
    frames.data += static_cast<std::size_t>(i) * frames.size();
    const std::vector<Tensor> rows = pipeline.trunk(frames);
    std::vector<View> windows(rows.begin(), rows.end());
    for (View& window : windows) window.shape.insert(window.shape.begin(), 1);
    VideoEmbeds embeds = pipeline.branch(windows);
    append_rows(made.clips, std::move(embeds.clips));
    append_rows(made.frames, std::move(embeds.frames));
  }
  const Stage mean = compare("parts", made.clips, whole.clips, allowed);
  const Stage each = compare("parts", made.frames, whole.frames, allowed);
  return mean.passed() && !(each.error <= mean.error) ? each : mean;  // the worse one, NaN too
}

}  // namespace

std::vector<Stage> self_test(Pipeline& pipeline) {
  const Manifest& manifest = pipeline.manifest();
  const Arrays arrays = pipeline.golden();
  const Golden& golden = *manifest.golden;
  std::vector<Stage> stages;
  if (manifest.graph("video")) stages.push_back(decode(pipeline, find(arrays, "clip")));
  const Tensor *frames = find(arrays, "frames"), *pixels = find(arrays, "pixels");
  if (frames && pixels && manifest.graph("preprocess")) {
    const std::int64_t side = manifest.model.image_size;
    expect(*frames, DType::uint8, {-1, -1, -1, 3}, "'frames' of the golden data");
    expect(*pixels, DType::uint8, {frames->shape[0], side, side, 3}, "'pixels' of the golden data");
    stages.push_back(compare_levels("preprocess", pipeline.preprocess(*frames), *pixels, 1));
  }
  std::optional<VideoEmbeds> video;
  if (const Tensor* clips = find(arrays, "video"); clips && manifest.graph("video")) {
    // Any count of clips and frames: the graph's own limits are checked when it runs.
    if (clips->shape.size() != 5 || element_count(clips->shape) == 0) {
      throw bad_folder("'video' of the golden data is " + to_string(clips->shape) +
                       "; it must have 5 axes, none of them empty: export the checkpoint again");
    }
    video = pipeline.embed_clips(*clips);
    for (const auto& [name, got] :
         {std::pair("video_embeds", &video->clips), std::pair("frame_embeds", &video->frames)}) {
      if (const Tensor* wanted = find(arrays, name)) {
        stages.push_back(compare(name, *got, *wanted, golden.video_tolerance));
      }
    }
    const Tensor* classes = find(arrays, "class_scores");
    if (classes && video->class_scores) {
      stages.push_back(
          compare("class_scores", *video->class_scores, *classes, golden.score_tolerance));
    }
    if (pipeline.has_parts()) {
      stages.push_back(compare_parts(pipeline, *clips, *video, golden.video_tolerance));
    }
  }
  const Tensor* ids = find(arrays, "input_ids");
  if (ids && !golden.texts.empty()) {
    std::vector<std::size_t> cut;
    stages.push_back(kReadsTexts ? compare_ids(pipeline.tokenize(golden.texts, cut), *ids)
                                 : not_run({"input_ids"}, "this library was built without texts"));
  }
  if (ids && manifest.graph("text")) {
    expect(*ids, DType::int32, {-1, -1}, "'input_ids' of the golden data");
    if (element_count(ids->shape) == 0) throw bad_folder("'input_ids' of the golden data is empty");
    const TextEmbeds texts = pipeline.embed_ids(*ids);
    for (const auto& [name, got] :
         {std::pair("text_embeds", &texts.texts), std::pair("token_embeds", &texts.tokens)}) {
      if (const Tensor* wanted = find(arrays, name)) {
        stages.push_back(compare(name, *got, *wanted, golden.text_tolerance));
      }
    }
    const Tensor* scores = find(arrays, "scores");
    if (scores && video) {
      stages.push_back(
          compare("scores", pipeline.score(texts, *video), *scores, golden.score_tolerance));
    }
  }
  if (std::none_of(stages.begin(), stages.end(), [](const Stage& s) { return s.ran; })) {
    throw bad_folder("the golden data of the folder checks nothing of it here; export it again");
  }
  return stages;
}

}  // namespace stan_infer
