// Arrays by name, and rows of them.
#pragma once

#include <map>
#include <string>

#include "manifest.hpp"
#include "tensor.hpp"

namespace stan_infer {

// Throws Error (bad_folder) where `file` has no array of that name.
const Tensor& array(const std::map<std::string, Tensor>& arrays, const std::string& name,
                    const std::string& file);

// Rows from `begin` on; those past the end repeat the last one: a graph with a fixed batch wants
// them all. `copy` holds them where they are not in the memory of `rows`.
View rows_of(const View& rows, std::int64_t begin, std::int64_t count, Tensor& copy);

// Drops the rows behind the first `count`.
void keep_rows(Tensor& tensor, std::int64_t count);

// uint8 [T, S, S, 3] -> float32 [T, 3, S, S]
Tensor normalized(const View& pixels, const Config& model);

}  // namespace stan_infer
