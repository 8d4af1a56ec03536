// The command line of stan_classify.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace stan_infer {

struct Options {
  std::filesystem::path folder, video;
  std::vector<std::string> texts;
  std::string engine = "ort";
  std::filesystem::path ort_library;  // empty: the system's
  int top = 5;
  int threads = 0;  // 0: the engine's choice
  bool embed = false, json = false, self_test = false, help = false, version = false;
};

extern const char* const kUsage;

// Throws Error (bad input) for what is unknown, missing or contradictory.
Options parse_options(const std::vector<std::string>& arguments);

}  // namespace stan_infer
