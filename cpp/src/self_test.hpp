// The folder's golden data, run again and compared.
#pragma once

#include <string>
#include <vector>

#include "pipeline.hpp"

namespace stan_infer {

struct Stage {
  std::string name;  // "preprocess", "video_embeds", ...
  double error = 0;  // of preprocess in levels of 255; of ids their number; else relative
  double allowed = 0;
  bool passed() const { return error <= allowed; }  // false for NaN
};

// One entry per stage that the folder has data and a graph for. Throws Error for malformed data
// or where there is nothing to check.
std::vector<Stage> self_test(Pipeline& pipeline);

}  // namespace stan_infer
