// stan_classify: results on standard output, everything else on standard error.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <numeric>

#include "options.hpp"
#include "backend.hpp"
#include "error.hpp"
#include "pipeline.hpp"
#include "self_test.hpp"

namespace {

using Json = nlohmann::ordered_json;
using stan_infer::Exit;
using stan_infer::Options;

void say(const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }

void print(const Json& record) {
  // A file name need not be UTF-8; what is not becomes U+FFFD, and all else plain ASCII.
  const std::string line = record.dump(-1, ' ', true, Json::error_handler_t::replace);
  std::printf("%s\n", line.c_str());
}

std::unique_ptr<stan_infer::Backend> open_backend(const Options& options) {
  if (options.engine == "openvino") return stan_infer::open_openvino(options.threads);
  auto ort = stan_infer::open_onnxruntime(options.ort_library, options.threads);
  return options.engine == "tensorrt" ? stan_infer::open_tensorrt(std::move(ort)) : std::move(ort);
}

Exit self_test(const Options& options, const stan_infer::Backend& backend) {
  stan_infer::Pipeline pipeline(options.folder, backend);
  const std::vector<stan_infer::Stage> stages = stan_infer::self_test(pipeline);
  const bool passed =
      std::all_of(stages.begin(), stages.end(), [](const stan_infer::Stage& s) { return s.passed(); });
  if (options.json) {
    Json record = {{"schema", "stan-classify/self-test/1"}, {"engine", backend.name()}};
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
  say("error: the results of " + backend.name() +
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

void classify(const Options& options, stan_infer::Pipeline& pipeline, const stan_infer::VideoEmbeds& video) {
  const bool own = !options.texts.empty();
  const std::vector<std::string> texts = own ? options.texts : pipeline.labels();
  const stan_infer::Tensor scores =
      own ? pipeline.score(pipeline.embed_texts(pipeline.tokenize(texts)), video)
          : pipeline.score_labels(video);
  for (const std::string& text : pipeline.cut_texts()) {
    say("warning: only the first " + std::to_string(pipeline.manifest().model.context_length - 2) +
        " tokens are used of the text '" + stan_infer::shown(text) + "'");
  }
  const auto chances = stan_infer::probabilities(scores, pipeline.manifest().model.temperature);
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
  const auto backend = open_backend(options);
  if (options.self_test) return self_test(options, *backend);
  stan_infer::Pipeline pipeline(options.folder, *backend);
  const stan_infer::VideoEmbeds video = pipeline.embed_video(pipeline.read_clip(options.video));
  options.embed ? embed(options, video) : classify(options, pipeline, video);
  return Exit::ok;
}

}  // namespace

int main(int argc, char** argv) {
  Exit code = Exit::bug;
  try {
    code = run({argv + 1, argv + argc});
  } catch (const stan_infer::Error& e) {
    say(std::string("error: ") + e.what());
    code = e.code();
  } catch (const std::exception& e) {
    say(std::string("internal error: ") + e.what() + "\nThis is a bug of stan_classify.");
  }
  if (std::fflush(stdout) != 0 && code == Exit::ok) {
    say("error: cannot write to standard output; is its disk full?");
    code = Exit::bad_input;
  }
  return static_cast<int>(code);
}
