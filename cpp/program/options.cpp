#include "options.hpp"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <functional>
#include <map>

namespace stan_infer {

const char* const kUsage =
    R"(usage: stan_classify DIR VIDEO... [--text TEXT]... [--top N]
       stan_classify DIR VIDEO... --embed
       stan_classify DIR --self-test

DIR is a folder that `stan-infer export` wrote. Scores each VIDEO, a file or a folder of them,
against the labels of DIR. Videos that cannot be read are named and left out; the exit code is
then 2.

  --text TEXT         score against this text in place of the labels; may be repeated
  --texts FILE        score against the texts of a file, one per line
  --labels FILE       score against the class names of a file, one per line
  --list FILE         a file with one video or folder per line; may be repeated
  --top N             print the N best (default 5; 0: all)
  --embed             print the embeddings
  --self-test         run the golden data of DIR again and print the error of every stage
  --json              print a line of JSON per result, as `stan-infer run --json` does
  --batch N           clips that go through the network at once (default 1)
  --timeout SECONDS   time for the reading of one video (default 60)
  --engine ENGINE     ort (default), openvino or tensorrt (the plans of DIR)
  --provider NAME     execution provider of ort, as cuda, tensorrt, xnnpack (default cpu)
  --ort-library PATH  libonnxruntime.so (default: $STAN_INFER_ORT_LIBRARY, then the system's)
  --threads N         threads of the engine (default 0: its choice), and to decode a long video
  --help, --version

Exit codes: 0 done, 1 a bug of ours, 2 bad input, 3 a library is missing, 4 a check failed.
)";

namespace {

Error bad(const std::string& what) { return {ErrorCode::bad_argument, what}; }

int count(const std::string& text, int most, const std::string& option) {
  int value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > most) {
    throw bad(option + " is '" + shown(text) + "'; allowed are 0 to " + std::to_string(most));
  }
  return value;
}

double seconds(const std::string& text, const std::string& option) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  // Compared so that what is no number fails, too.
  if (error != std::errc() || end != text.data() + text.size() || !(value >= 0.001 && value <= 1e6))
    throw bad(option + " is '" + shown(text) + "'; allowed are 0.001 to 1000000 seconds");
  return value;
}

[[noreturn]] void contradiction(const std::string& what) {
  throw bad(what + "; see stan_classify --help");
}

void check(const CommandLine& options) {
  const int texts = !options.texts.empty() + !options.texts_file.empty() +
                    !options.labels_file.empty();
  if (options.folder.empty()) contradiction("the folder DIR is missing");
  if (options.engine != "ort" && options.engine != "openvino" && options.engine != "tensorrt") {
    throw bad("--engine is '" + shown(options.engine) +
              "'; allowed are ort, openvino and tensorrt");
  }
  if (options.engine == "openvino" && !options.ort_library.empty()) {
    contradiction("--ort-library has no meaning with --engine openvino");
  }
  if (options.engine == "openvino" && options.provider != "CPU") {
    contradiction("--provider has no meaning with --engine openvino");
  }
  const bool videos = !options.videos.empty() || !options.lists.empty();
  if (options.self_test) {
    if (videos || options.embed || texts) {
      contradiction("--self-test takes DIR and neither VIDEO, --embed nor texts");
    }
    return;
  }
  if (!videos) contradiction("VIDEO is missing");
  if (options.embed && texts) contradiction("--embed takes no texts");
  if (texts > 1) contradiction("give either --text (once or more), --texts or --labels");
  if (std::count(options.texts.begin(), options.texts.end(), "")) throw bad("--text is blank");
}

}  // namespace

Exit exit_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::bad_argument:
    case ErrorCode::bad_folder:
    case ErrorCode::bad_video:
    case ErrorCode::bad_text:
    case ErrorCode::engine:
    case ErrorCode::cancelled:
    case ErrorCode::deadline:
      return Exit::bad_input;
    case ErrorCode::missing:
      return Exit::missing;
    case ErrorCode::changed:
      return Exit::check_failed;
    case ErrorCode::out_of_memory:
    case ErrorCode::internal:
      break;
  }
  return Exit::bug;
}

CommandLine parse_options(const std::vector<std::string>& arguments) {
  CommandLine options;
  bool top_given = false;
  const std::map<std::string, std::function<void()>> flags = {
      {"--embed", [&] { options.embed = true; }},         {"--json", [&] { options.json = true; }},
      {"--self-test", [&] { options.self_test = true; }}, {"--help", [&] { options.help = true; }},
      {"--version", [&] { options.version = true; }},
  };
  const std::map<std::string, std::function<void(const std::string&)>> values = {
      {"--text", [&](const std::string& v) { options.texts.push_back(v); }},
      {"--texts", [&](const std::string& v) { options.texts_file = v; }},
      {"--labels", [&](const std::string& v) { options.labels_file = v; }},
      {"--list", [&](const std::string& v) { options.lists.push_back(v); }},
      {"--batch", [&](const std::string& v) { options.batch = count(v, 64, "--batch"); }},
      {"--timeout", [&](const std::string& v) { options.timeout = seconds(v, "--timeout"); }},
      {"--provider", [&](const std::string& v) { options.provider = v; }},
      {"--engine", [&](const std::string& v) { options.engine = v; }},
      {"--ort-library", [&](const std::string& v) { options.ort_library = v; }},
      {"--threads", [&](const std::string& v) { options.threads = count(v, 1024, "--threads"); }},
      {"--top",
       [&](const std::string& v) {
         options.top = count(v, 1'000'000, "--top");
         top_given = true;
       }},
  };
  bool only_positions = false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (only_positions || argument.size() < 2 || argument[0] != '-') {
      if (options.folder.empty()) {
        options.folder = argument;
      } else {
        options.videos.push_back(argument);
      }
      continue;
    }
    if (argument == "--") {
      only_positions = true;
      continue;
    }
    if (const auto flag = flags.find(argument); flag != flags.end()) {
      flag->second();
      continue;
    }
    const std::size_t equals = argument.find('=');
    const auto value = values.find(argument.substr(0, equals));
    if (value == values.end()) contradiction("unknown option '" + shown(argument) + "'");
    if (equals != std::string::npos) {
      value->second(argument.substr(equals + 1));
    } else if (i + 1 < arguments.size()) {
      value->second(arguments[++i]);
    } else {
      contradiction(argument + " needs a value");
    }
  }
  if (options.help || options.version) return options;
  check(options);
  if (top_given && (options.embed || options.self_test)) {
    contradiction("--top has no meaning with --embed and --self-test");
  }
  if (options.engine != "openvino" && options.ort_library.empty()) {
    if (const char* library = std::getenv("STAN_INFER_ORT_LIBRARY")) options.ort_library = library;
  }
  return options;
}

}  // namespace stan_infer
