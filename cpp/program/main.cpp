// stan_classify: results on standard output, everything else on standard error.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "files.hpp"
#include "options.hpp"

#ifdef STAN_INFER_FFMPEG
extern "C" {
#include <libavutil/log.h>
}
#endif

namespace stan_infer {

void say(const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }

}  // namespace stan_infer

namespace {

using stan_infer::say;
using Json = nlohmann::ordered_json;
using stan_infer::Exit;
using Options = stan_infer::CommandLine;

void print(const Json& record) {
  // A file name need not be UTF-8; what is not becomes U+FFFD, and all else plain ASCII.
  const std::string line = record.dump(-1, ' ', true, Json::error_handler_t::replace);
  std::printf("%s\n", line.c_str());
}

stan_infer::Model open_model(const Options& options) {
  stan_infer::Options chosen;
  chosen.engine = options.engine == "openvino"   ? stan_infer::Engine::openvino
                  : options.engine == "tensorrt" ? stan_infer::Engine::tensorrt
                                                 : stan_infer::Engine::onnxruntime;
  chosen.onnxruntime = options.ort_library;
  chosen.threads = options.threads;
  chosen.batch = options.batch;
  chosen.provider = options.provider;
  return stan_infer::Model(options.folder, chosen);
}

Exit self_test(const Options& options) {
  stan_infer::Model model = open_model(options);
  const std::vector<stan_infer::Stage> stages = model.self_test();
  const bool failed = std::any_of(stages.begin(), stages.end(),
                                  [](const stan_infer::Stage& s) { return s.failed(); });
  const std::string engine = model.info().engine;
  if (options.json) {
    Json record = {{"schema", "stan-classify/self-test/1"}, {"engine", engine}};
    for (const stan_infer::Stage& s : stages) {
      Json row = {{"stage", s.name}, {"error", s.error}, {"allowed", s.allowed}};
      row["pass"] = s.ran ? Json(s.passed()) : Json(nullptr);
      if (!s.ran) row["error"] = row["allowed"] = nullptr;
      if (!s.note.empty()) row["note"] = s.note;
      record["stages"].push_back(row);
    }
    print(record);
  } else {
    std::printf("%-13s %10s %10s\n", "stage", "error", "allowed");
    for (const stan_infer::Stage& s : stages) {
      if (!s.ran) {
        std::printf("%-13s not run: %s\n", s.name.c_str(), s.note.c_str());
        continue;
      }
      const std::string end = s.passed() ? "" : s.note.empty() ? "  FAILED" : "  FAILED: " + s.note;
      std::printf("%-13s %10.2g %10.2g%s\n", s.name.c_str(), s.error, s.allowed, end.c_str());
    }
  }
  if (!failed) return Exit::ok;
  say("error: the results of " + engine +
      " differ from the golden data by more than is allowed; try another engine or version");
  return Exit::check_failed;
}

// The texts that videos are scored against: those of the command line, or the folder's labels.
struct Texts {
  std::vector<std::string> names;
  std::optional<stan_infer::TextEmbeds> embeds;  // of the command line
  std::vector<std::size_t> cut;
};

Texts read_texts(const Options& options, stan_infer::Model& model) {
  Texts texts;
  texts.names = !options.texts_file.empty() ? stan_infer::read_lines(options.texts_file, "texts")
                : !options.labels_file.empty()
                    ? stan_infer::read_label_file(options.labels_file)
                    : options.texts;
  if (texts.names.empty()) {
    texts.names = model.labels();
  } else {
    stan_infer::check_once(texts.names, "the texts");
    texts.embeds = model.embed_texts(texts.names);
    texts.cut = texts.embeds->cut;
  }
  return texts;
}

// Reads, embeds and prints video after video.
class Run {
 public:
  Run(const Options& options, stan_infer::Model& model, std::size_t count)
      : options_(options), model_(model), info_(model.info()), count_(count) {
    if (!options.embed) texts_ = read_texts(options, model);
    tell_cut();
  }

  void add(const std::filesystem::path& video) {
    try {
      const auto limit = std::chrono::duration<double>(options_.timeout);
      const auto call = stan_infer::Call::within(
          std::chrono::duration_cast<std::chrono::steady_clock::duration>(limit));
      waiting_.emplace_back(video, model_.read_clip(video, call));
    } catch (const stan_infer::Error& e) {
      const bool late = e.code() == stan_infer::ErrorCode::deadline;
      if (!late && e.code() != stan_infer::ErrorCode::bad_video) throw;
      finish();  // results come in the order of the videos
      std::string what = e.what();
      const std::string name = stan_infer::shown(video.string(), 4096);
      if (late) what = name + " was not read in time (--timeout)";
      say("error: " + what);
      if (options_.json) print({{"schema", schema()}, {"video", video.string()}, {"error", what}});
      ++failed_;
      return;
    }
    if (!waiting_.back().second.hdr.empty()) {
      say("note: " + stan_infer::shown(video.string(), 4096) + " is HDR (" +
          waiting_.back().second.hdr + "); its values are taken as they are stored");
    }
    if (waiting_.size() == static_cast<std::size_t>(options_.batch)) finish();
  }

  // What is left of a batch.
  void finish() {
    if (waiting_.empty()) return;
    stan_infer::Tensor clips = std::move(waiting_[0].second.pixels);
    for (std::size_t i = 1; i < waiting_.size(); ++i) {
      const std::vector<std::byte>& more = waiting_[i].second.pixels.bytes;
      clips.bytes.insert(clips.bytes.end(), more.begin(), more.end());
    }
    clips.shape[0] = static_cast<std::int64_t>(waiting_.size());
    const stan_infer::VideoEmbeds embeds = model_.embed_clips(clips);
    options_.embed ? print_embeds(embeds) : print_scores(embeds);
    std::fflush(stdout);
    waiting_.clear();
  }

  Exit end() const {
    if (failed_ == 0) return Exit::ok;
    say(std::to_string(failed_) + " of " + std::to_string(count_) + " videos could not be read");
    return Exit::bad_input;
  }

 private:
  const char* schema() const {
    return options_.embed ? "stan-classify/embed/1" : "stan-infer/run/1";
  }

  void tell_cut() const {
    for (const std::size_t i : texts_.cut) {
      say("warning: only the first " + std::to_string(info_.context_length - 2) +
          " tokens are used of the text '" + stan_infer::shown(texts_.names[i]) + "'");
    }
  }

  void print_head(const std::filesystem::path& video) const {
    if (count_ > 1) std::printf("%s\n", stan_infer::shown(video.string(), 4096).c_str());
  }

  void print_embeds(const stan_infer::VideoEmbeds& embeds) const {
    const auto width = static_cast<std::size_t>(embeds.clips.shape[1]);
    for (std::size_t i = 0; i < waiting_.size(); ++i) {
      const float* row = embeds.clips.data<float>() + i * width;
      const std::vector<float> values(row, row + width);
      if (options_.json) {
        print({{"schema", schema()}, {"video", waiting_[i].first.string()}, {"embedding", values}});
        continue;
      }
      print_head(waiting_[i].first);
      for (float value : values) std::printf("%.9g\n", static_cast<double>(value));
    }
  }

  void print_scores(const stan_infer::VideoEmbeds& embeds) {
    const stan_infer::Tensor all =
        texts_.embeds ? model_.score(*texts_.embeds, embeds) : model_.score_labels(embeds);
    if (!texts_.embeds && texts_.cut.empty()) {  // known only now
      texts_.cut = model_.cut_labels();
      tell_cut();
    }
    const std::size_t clips = waiting_.size();
    for (std::size_t clip = 0; clip < clips; ++clip) {
      stan_infer::Tensor scores = all;  // the column of this clip
      scores.shape[1] = 1;
      for (std::size_t i = 0; i < texts_.names.size(); ++i) {
        scores.data<float>()[i] = all.data<float>()[i * clips + clip];
      }
      scores.bytes.resize(texts_.names.size() * sizeof(float));
      print_ranking(waiting_[clip].first, waiting_[clip].second, scores);
    }
  }

  void print_ranking(const std::filesystem::path& video, const stan_infer::Clip& clip,
                     const stan_infer::Tensor& scores) const {
    const std::vector<double> chances = model_.probabilities(scores);
    std::vector<std::size_t> best(texts_.names.size());
    std::iota(best.begin(), best.end(), std::size_t{0});
    std::stable_sort(best.begin(), best.end(), [&](std::size_t a, std::size_t b) {
      return scores.data<float>()[a] > scores.data<float>()[b];
    });
    if (options_.top > 0)
      best.resize(std::min(best.size(), static_cast<std::size_t>(options_.top)));
    Json rows = Json::array();
    if (!options_.json) print_head(video);
    for (const std::size_t i : best) {
      const double score = static_cast<double>(scores.data<float>()[i]);
      const std::string& text = texts_.names[i];
      if (!options_.json) {
        std::printf("%8.4f %8.4f  %s\n", score, chances[i], stan_infer::shown(text, 200).c_str());
        continue;
      }
      // One text alone would always have probability 1.
      const Json chance = best.size() == 1 && texts_.names.size() == 1 ? Json() : Json(chances[i]);
      rows.push_back({{"rank", rows.size() + 1},
                      {"text", text},
                      {"score", score},
                      {"probability", chance},
                      {"cut", std::binary_search(texts_.cut.begin(), texts_.cut.end(), i)}});
    }
    if (!options_.json) return;
    print({{"schema", schema()},
           {"video", video.string()},
           {"decoder", "ffmpeg"},
           {"total_frames", clip.total_frames},
           {"frame_indices", clip.frame_indices},
           {"sampling", "clip"},
           {"hdr", clip.hdr.empty() ? Json() : Json(clip.hdr)},
           {"session", session()},
           {"texts", texts_.names.size()},
           {"scores", rows}});
  }

  // As `stan-infer run` describes its session.
  Json session() const {
    const bool cuda = options_.engine == "tensorrt" || info_.provider.find("CUDA") == 0 ||
                      info_.provider.find("Tensorrt") == 0;
    Json result = {{"engine", options_.engine == "tensorrt" ? "trt" : options_.engine},
                   {"device", cuda ? "cuda" : "cpu"},
                   {"precision", info_.precision}};
    if (!info_.provider.empty()) result["provider"] = info_.provider;
    result[options_.engine == "ort" ? "onnxruntime" : options_.engine] = info_.version;
    result["threads"] = options_.threads > 0 ? Json(options_.threads) : Json("all");
    return result;
  }

  const Options& options_;
  stan_infer::Model& model_;
  const stan_infer::Info info_;
  Texts texts_;
  std::vector<std::pair<std::filesystem::path, stan_infer::Clip>> waiting_;  // of a batch
  std::size_t count_, failed_ = 0;
};

Exit run(const std::vector<std::string>& arguments) {
  const Options options = stan_infer::parse_options(arguments);
  if (options.help) {
    std::fputs(stan_infer::kUsage, stdout);
    return Exit::ok;
  }
  if (options.version) {
    std::puts("stan_classify " STAN_INFER_VERSION);
    return Exit::ok;
  }
#ifdef STAN_INFER_FFMPEG
  // Warnings of FFmpeg about a stranger's file say nothing that an error here does not.
  av_log_set_level(AV_LOG_QUIET);
#endif
  if (options.self_test) return self_test(options);
  std::vector<std::filesystem::path> named = options.videos;
  for (const std::filesystem::path& list : options.lists) {
    for (std::string& line : stan_infer::read_lines(list, "list")) named.emplace_back(line);
  }
  const std::vector<std::filesystem::path> videos = stan_infer::list_videos(named);
  stan_infer::Model model = open_model(options);
  Run results(options, model, videos.size());
  for (const std::filesystem::path& video : videos) results.add(video);
  results.finish();
  return results.end();
}

}  // namespace

int main(int argc, char** argv) {
  Exit code = Exit::bug;
  try {
    code = run({argv + 1, argv + argc});
  } catch (const stan_infer::Error& e) {
    code = stan_infer::exit_of(e.code());
    say(code == Exit::bug ? std::string("internal error: ") + e.what()
                          : std::string("error: ") + e.what());
  } catch (const std::exception& e) {
    say(std::string("internal error: ") + e.what() + "\nThis is a bug of stan_classify.");
  }
  if (std::fflush(stdout) != 0 && code == Exit::ok) {
    say("error: cannot write to standard output; is its disk full?");
    code = Exit::bad_input;
  }
  return static_cast<int>(code);
}
