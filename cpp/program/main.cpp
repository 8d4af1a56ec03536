// stan_classify: results on standard output, everything else on standard error.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <numeric>

#include "options.hpp"

#ifdef STAN_INFER_FFMPEG
extern "C" {
#include <libavutil/log.h>
}
#endif

namespace {

using Json = nlohmann::ordered_json;
using stan_infer::Exit;
using Options = stan_infer::CommandLine;

void say(const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }

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
  return stan_infer::Model(options.folder, chosen);
}

Exit self_test(const Options& options) {
  stan_infer::Model model = open_model(options);
  const std::vector<stan_infer::Stage> stages = model.self_test();
  const bool passed = std::all_of(stages.begin(), stages.end(),
                                  [](const stan_infer::Stage& s) { return s.passed(); });
  const std::string engine = model.info().engine;
  if (options.json) {
    Json record = {{"schema", "stan-classify/self-test/1"}, {"engine", engine}};
    for (const stan_infer::Stage& s : stages) {
      record["stages"].push_back(
          {{"stage", s.name}, {"error", s.error}, {"allowed", s.allowed}, {"pass", s.passed()}});
    }
    print(record);
  } else {
    std::printf("%-13s %10s %10s\n", "stage", "error", "allowed");
    for (const stan_infer::Stage& s : stages) {
      std::printf("%-13s %10.2g %10.2g%s\n", s.name.c_str(), s.error, s.allowed,
                  s.passed() ? "" : "  FAILED");
    }
  }
  if (passed) return Exit::ok;
  say("error: the results of " + engine +
      " differ from the golden data by more than is allowed; try another engine or version");
  return Exit::check_failed;
}

void embed(const Options& options, const stan_infer::VideoEmbeds& video) {
  const std::vector<float> values(video.clips.data<float>(),
                                  video.clips.data<float>() + video.clips.shape[1]);
  if (options.json) {
    print({{"schema", "stan-classify/embed/1"},
           {"video", options.video.string()},
           {"embedding", values}});
  } else {
    for (float value : values) std::printf("%.9g\n", static_cast<double>(value));
  }
}

void classify(const Options& options, stan_infer::Model& model,
              const stan_infer::VideoEmbeds& video) {
  const bool own = !options.texts.empty();
  const std::vector<std::string> texts = own ? options.texts : model.labels();
  std::vector<std::string> cut;
  stan_infer::Tensor scores;
  if (own) {
    const stan_infer::TextEmbeds embeds = model.embed_texts(texts);
    cut = embeds.cut;
    scores = model.score(embeds, video);
  } else {
    scores = model.score_labels(video);
    cut = model.cut_labels();
  }
  for (const std::string& text : cut) {
    say("warning: only the first " + std::to_string(model.info().context_length - 2) +
        " tokens are used of the text '" + stan_infer::shown(text) + "'");
  }
  const auto chances = model.probabilities(scores);
  std::vector<std::size_t> best(texts.size());
  std::iota(best.begin(), best.end(), std::size_t{0});
  std::stable_sort(best.begin(), best.end(), [&](std::size_t a, std::size_t b) {
    return scores.data<float>()[a] > scores.data<float>()[b];
  });
  if (options.top > 0) best.resize(std::min(best.size(), static_cast<std::size_t>(options.top)));
  Json record = {{"schema", "stan-classify/run/1"}, {"video", options.video.string()}};
  for (std::size_t i : best) {
    const double score = static_cast<double>(scores.data<float>()[i]);
    if (options.json) {
      record["scores"].push_back(
          {{"text", texts[i]}, {"score", score}, {"probability", chances[i]}});
    } else {
      std::printf("%8.4f %8.4f  %s\n", score, chances[i], stan_infer::shown(texts[i], 200).c_str());
    }
  }
  if (options.json) print(record);
}

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
  stan_infer::Model model = open_model(options);
  const stan_infer::VideoEmbeds video = model.embed_video(options.video);
  options.embed ? embed(options, video) : classify(options, model, video);
  return Exit::ok;
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
