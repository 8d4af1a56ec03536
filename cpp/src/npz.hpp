// Arrays of a .npz file as numpy.savez writes it: a ZIP of .npy members, stored, not compressed.
#pragma once

#include <map>
#include <string>

#include "folder.hpp"
#include "tensor.hpp"

namespace stan_infer {

// Throws Error for anything else: compressed members, pickled or big-endian arrays, other dtypes.
std::map<std::string, Tensor> parse_npz(const Bytes& bytes, const std::string& file);

}  // namespace stan_infer
