// The command line of stan_classify.
#pragma once

#include <filesystem>
#include <stan_infer/stan_infer.hpp>
#include <string>
#include <vector>

namespace stan_infer {

enum class Exit { ok = 0, bug = 1, bad_input = 2, missing = 3, check_failed = 4 };

Exit exit_of(ErrorCode code);

// Compiled in from the library: text of a stranger for a message.
std::string shown(const std::string& text, std::size_t limit = 80);

void say(const std::string& line);  // to standard error

struct CommandLine {
  std::filesystem::path folder;
  std::vector<std::filesystem::path> videos, lists;  // lists: files with a name per line
  std::vector<std::string> texts;
  std::filesystem::path texts_file, labels_file;
  std::string provider = "CPU";
  double timeout = 60;  // seconds for the reading of one video
  int batch = 1;
  std::string engine = "ort";
  std::filesystem::path ort_library;  // empty: the system's
  int top = 5;
  int threads = 0;  // 0: the engine's choice
  bool embed = false, json = false, self_test = false, help = false, version = false;
};

extern const char* const kUsage;

// Throws Error (bad_argument) for what is unknown, missing or contradictory.
CommandLine parse_options(const std::vector<std::string>& arguments);

}  // namespace stan_infer
