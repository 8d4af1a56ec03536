// The folder's golden data, run again and compared.
#pragma once

#include <string>
#include <vector>

#include "pipeline.hpp"

namespace stan_infer {

// One entry per stage that the folder has data and a graph for. Throws Error for malformed data
// or where there is nothing to check.
std::vector<Stage> self_test(Pipeline& pipeline);

}  // namespace stan_infer
