// Uses the library as a program of one's own does, by its public header alone.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <limits>
#include <sstream>
#include <stan_infer/stan_infer.hpp>
#include <thread>

#include "codes.hpp"

namespace {

using namespace stan_infer;

Options options() {
  Options result;
  if (const char* library = std::getenv("STAN_INFER_ORT_LIBRARY")) result.onnxruntime = library;
  result.threads = 1;
  return result;
}

Tensor floats(Shape shape, float value = 1) {
  std::size_t count = 1;
  for (std::int64_t size : shape) count *= static_cast<std::size_t>(size);
  Tensor tensor{DType::float32, std::move(shape), std::vector<std::byte>(count * sizeof(float))};
  for (std::size_t i = 0; i < count; ++i) tensor.data<float>()[i] = value;
  return tensor;
}

Tensor with_bytes(Tensor tensor, std::size_t bytes) {
  tensor.bytes.resize(bytes);
  tensor.bytes.shrink_to_fit();
  return tensor;
}

Tensor with_shape(Tensor tensor, Shape shape) {
  tensor.shape = std::move(shape);
  return tensor;
}

TextEmbeds texts_of(Tensor rows) {
  TextEmbeds texts;
  texts.texts = std::move(rows);
  return texts;
}

VideoEmbeds clips_of(Tensor rows) {
  VideoEmbeds videos;
  videos.clips = std::move(rows);
  return videos;
}

// misuse FOLDER: a line for each mistake, with the code of its error or "none".
void misuse(const char* folder) {
  const auto tell = [](const char* name, const std::function<void()>& call) {
    std::string code = "none", what;
    try {
      call();
    } catch (const Error& e) {
      code = kCodes[static_cast<int>(e.code())];
      what = e.what();
    }
    std::cout << name << "\t" << code << "\t" << what << "\n";
  };
  Model model(folder, options());
  const Info info = model.info();
  const std::int64_t e = info.embed_dim;
  const std::vector<std::uint8_t> memory(std::size_t{64} * 48 * 3);
  const ImageView good = ImageView::packed(PixelFormat::rgb, memory.data(), memory.size(), 64, 48);
  const Tensor clip = model.clip_of_frames({good});
  const VideoEmbeds video = model.embed_clips(clip);
  TextEmbeds text = model.embed_texts({"a shape moves"});
  const auto nan = std::numeric_limits<float>::quiet_NaN();
  const auto huge = std::int64_t{1} << 62;

  tell("nothing wrong", [&] { model.probabilities(model.score(text, video)); });
  tell("own embeddings", [&] { model.score(texts_of(floats({2, e})), clips_of(floats({3, e}))); });
  tell("another width", [&] { model.score(texts_of(floats({2, e + 1})), video); });
  tell("less width", [&] { model.score(texts_of(floats({2, e})), clips_of(floats({1, e - 1}))); });
  tell("fewer bytes", [&] { model.score(texts_of(with_bytes(floats({2, e}), 8)), video); });
  tell("more bytes", [&] { model.score(texts_of(with_bytes(floats({1, e}), 9999)), video); });
  tell("no bytes", [&] { model.score(texts_of(with_bytes(floats({2, e}), 0)), video); });
  tell("empty tensor", [&] { model.score(TextEmbeds(), video); });
  tell("empty tensors", [&] { model.score(TextEmbeds(), VideoEmbeds()); });
  tell("no rows", [&] { model.score(texts_of(floats({0, e})), video); });
  tell("a negative size",
       [&] { model.score(texts_of(with_shape(floats({1, e}), {-1, e})), video); });
  tell("a size that overflows",
       [&] { model.score(texts_of(with_shape(floats({1, e}), {huge, e})), video); });
  tell("no axes", [&] { model.score(texts_of(with_shape(floats({1}), {})), video); });
  tell("another type", [&] {
    Tensor rows = floats({1, e});
    rows.dtype = DType::int32;
    model.score(texts_of(rows), video);
  });
  tell("no type", [&] {
    Tensor rows = floats({1, e});
    rows.dtype = static_cast<DType>(99);
    model.score(texts_of(rows), video);
  });
  tell("a zero vector", [&] { model.score(texts_of(floats({1, e}, 0)), video); });
  tell("a zero clip", [&] { model.score(text, clips_of(floats({1, e}, 0))); });
  tell("not a number", [&] { model.score(texts_of(floats({1, e}, nan)), video); });
  tell("class scores of another width", [&] {
    VideoEmbeds other = video;
    other.class_scores = floats({1, 2});
    model.score_labels(other);
  });
  tell("class scores of fewer bytes", [&] {
    VideoEmbeds other = video;
    const auto labels = static_cast<std::int64_t>(model.labels().size());
    other.class_scores = with_bytes(floats({1, labels}), 4);
    model.score_labels(other);
  });
  tell("probabilities of a matrix", [&] { model.probabilities(floats({2, 2})); });
  tell("probabilities of fewer bytes", [&] { model.probabilities(with_bytes(floats({2, 1}), 4)); });
  tell("probabilities of nothing", [&] { model.probabilities(Tensor()); });
  tell("probabilities of no number", [&] { model.probabilities(floats({2, 1}, nan)); });
  tell("clips without axes", [&] { model.embed_clips(Tensor()); });
  tell("clips of fewer bytes", [&] { model.embed_clips(with_bytes(clip, 7)); });
  tell("clips of another side", [&] {
    Tensor other = clip;
    std::swap(other.shape[1], other.shape[2]);
    model.embed_clips(other);
  });
  tell("clips of no frames",
       [&] { model.embed_clips(with_bytes(with_shape(clip, {1, 0, 64, 64, 3}), 0)); });
  tell("no text", [&] { model.embed_texts({}); });
  tell("a blank text", [&] { model.embed_texts({" \n"}); });
  tell("a text of other bytes", [&] { model.embed_texts({"\xFF"}); });
  tell("a video that is none", [&] { model.embed_video("/dev/null"); });
  tell("a path with a zero", [&] { model.embed_video(std::string("a\0b", 3)); });
  tell("no frames", [&] { model.clip_of_frames({}); });
  tell("too many frames",
       [&] { model.clip_of_frames(std::vector<ImageView>(65, good), {false, {}}); });
  tell("timestamps of some", [&] { model.clip_of_frames({good, good}, {true, {0.0}}); });
  tell("timestamps that fall", [&] { model.clip_of_frames({good, good}, {true, {1.0, 0.0}}); });
  tell("timestamps of no number",
       [&] { model.clip_of_frames({good, good}, {true, {0.0, static_cast<double>(nan)}}); });
  tell("timestamps for all", [&] { model.clip_of_frames({good}, {false, {0.0}}); });
  const auto image = [&](const char* name, const std::function<void(ImageView&)>& change) {
    tell(name, [&] {
      ImageView view = good;
      change(view);
      model.embed_frames({view});
    });
  };
  image("an image", [](ImageView&) {});
  image("no image", [](ImageView& v) { v = ImageView(); });
  image("a null pointer", [](ImageView& v) { v.planes[0].data = nullptr; });
  image("a negative width", [](ImageView& v) { v.width = -64; });
  image("a small stride", [](ImageView& v) { v.planes[0].stride = 191; });
  image("a large stride", [](ImageView& v) { v.planes[0].stride = 193; });
  image("the largest stride", [](ImageView& v) { v.planes[0].stride = SIZE_MAX; });
  image("few bytes", [](ImageView& v) { --v.planes[0].size; });
  image("a large height", [](ImageView& v) { v.height = 49; });
  image("the largest sides", [](ImageView& v) { v.width = v.height = INT32_MAX; });
  image("no format", [](ImageView& v) { v.format = static_cast<PixelFormat>(77); });
  image("nv12 without colour", [](ImageView& v) { v.format = PixelFormat::nv12; });
  tell("few bytes for packed",
       [&] { ImageView::packed(PixelFormat::i420, memory.data(), 1535, 32, 32); });
  tell("packed nowhere", [&] {
    model.clip_of_frames({ImageView::packed(PixelFormat::i420, nullptr, 1536, 32, 32)});
  });
  tell("elements of another type", [&] { clip.data<float>(); });
  tell("an engine that is none", [&] {
    Options other = options();
    other.engine = static_cast<Engine>(9);
    Model(folder, other);
  });
  const auto option = [&](const char* name, const std::function<void(Options&)>& change) {
    tell(name, [&] {
      Options other = options();
      change(other);
      Model(folder, other);
    });
  };
  option("negative threads", [](Options& o) { o.threads = -1; });
  option("no clip at once", [](Options& o) { o.batch = 0; });
  option("many clips at once", [](Options& o) { o.batch = 65; });
  option("a provider", [](Options& o) { o.provider = "cpu"; });
  option("a provider that this build has not", [](Options& o) { o.provider = "CUDA"; });
  option("a provider that is none", [](Options& o) { o.provider = "\x1b[31m"; });
  option("a provider without name", [](Options& o) { o.provider = ""; });
  option("options of the CPU", [](Options& o) { o.provider_options["a"] = "b"; });
  option("options of a library without it",
         [](Options& o) { o.ort_session_options = reinterpret_cast<OrtSessionOptions*>(8); });
  option("an environment without a library",
         [](Options& o) { o.ort_env = reinterpret_cast<OrtEnv*>(8); });
  tell("no videos", [&] { model.embed_videos({}); });
  tell("one video of two", [&] { model.embed_videos({"/dev/null", "/nowhere"}); });
  const Call gone;
  gone.cancel();
  tell("a call that was cancelled", [&] { model.embed_clips(clip, gone); });
  tell("a call past its deadline",
       [&] { model.embed_clips(clip, Call::until(std::chrono::steady_clock::time_point::min())); });
  tell("a call that cannot be cancelled", [&] {
    Call::endless().cancel();
    model.embed_clips(clip, Call::endless());
  });
  tell("no folder", [&] { Model("/nowhere", options()); });
  tell("no library", [&] {
    Options other = options();
    other.onnxruntime = "/nowhere.so";
    Model(folder, other);
  });
  Model moved = std::move(model);
  tell("a model that was moved from", [&] { model.embed_texts({"a"}); });
  tell("the info of one", [&] { model.info(); });
  tell("the one that it was moved to", [&] { moved.embed_texts({"a"}); });
}

// clip FOLDER FORMAT WIDTH HEIGHT GAP OPTIONS FILE: frames without gaps of FILE, each copied to
// rows with GAP bytes behind them; the clip takes their place in FILE. FORMAT: as nv12, or
// nv12:709:full. OPTIONS: sample, all, or seconds.
void clip(char** arguments) {
  Model model(arguments[0], options());
  const std::string form = arguments[1], name = form.substr(0, form.find(':'));
  const auto has = [&](const char* part) { return form.find(part) != std::string::npos; };
  const PixelFormat format = name == "rgb"    ? PixelFormat::rgb
                             : name == "bgr"  ? PixelFormat::bgr
                             : name == "nv12" ? PixelFormat::nv12
                                              : PixelFormat::i420;
  const int width = std::stoi(arguments[2]), height = std::stoi(arguments[3]);
  const std::size_t gap = std::stoul(arguments[4]);
  FrameOptions chosen;
  chosen.sample = arguments[5] != std::string("all");
  std::istringstream seconds(arguments[5]);  // no numbers in "sample" and "all"
  for (double value; seconds >> value;) chosen.timestamps.push_back(value);
  std::ifstream file(arguments[6], std::ios::binary);
  const std::string raw(std::istreambuf_iterator<char>(file), {});
  const std::size_t w = static_cast<std::size_t>(width), h = static_cast<std::size_t>(height);
  const std::size_t colour = (w + 1) / 2 * ((h + 1) / 2) * 2;
  const std::size_t size = name.size() == 3 ? w * h * 3 : w * h + colour;
  std::vector<std::unique_ptr<std::uint8_t[]>> kept;
  std::vector<ImageView> views;
  for (std::size_t at = 0; at + size <= raw.size(); at += size) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(raw.data()) + at;
    ImageView view = ImageView::packed(format, bytes, size, width, height);
    for (Plane& plane : view.planes) {
      if (!plane.data) continue;
      const std::size_t row = plane.stride, rows = plane.size / row;
      // Exactly as long as is said, so that a sanitizer sees a byte too many.
      const std::size_t total = (rows - 1) * (row + gap) + row;
      kept.emplace_back(new std::uint8_t[total]);
      for (std::size_t y = 0; y < rows; ++y) {
        std::copy_n(plane.data + y * row, row, kept.back().get() + y * (row + gap));
      }
      plane = {kept.back().get(), total, row + gap};
    }
    view.matrix = has(":709")    ? ColorMatrix::bt709
                  : has(":2020") ? ColorMatrix::bt2020
                                 : view.matrix;
    view.full_range = has(":full");
    views.push_back(view);
  }
  const Tensor made = model.clip_of_frames(views, chosen);
  std::ofstream(arguments[6], std::ios::binary)
      .write(reinterpret_cast<const char*>(made.bytes.data()),
             static_cast<std::streamsize>(made.bytes.size()));
}

// threads FOLDER VIDEO: one model used by four threads, which must all get the same.
void threads(const char* folder, const char* video) {
  Model model(folder, options());
  std::vector<std::thread> all;
  std::vector<std::vector<std::byte>> results(4);
  for (auto& result : results) {
    all.emplace_back([&] {
      const VideoEmbeds embeds = model.embed_video(video);
      result = model.score(model.embed_texts({"a", "b"}), embeds).bytes;
      const std::vector<std::byte> labels = model.score_labels(embeds).bytes;
      result.insert(result.end(), labels.begin(), labels.end());
    });
  }
  for (std::thread& thread : all) thread.join();
  for (const auto& result : results) {
    if (result.empty() || result != results[0]) throw Error(ErrorCode::internal, "other scores");
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "misuse" && argc == 3) {
      misuse(argv[2]);
    } else if (what == "clip" && argc == 9) {
      clip(argv + 2);
    } else if (what == "threads" && argc == 4) {
      threads(argv[2], argv[3]);
    } else {
      return 2;
    }
  } catch (const Error& e) {
    std::cerr << "error: " << e.what() << "\n";
    return 2;
  }
  return 0;
}
