#include "arrays.hpp"

#include <algorithm>

#include "error.hpp"

namespace stan_infer {

const Tensor& array(const std::map<std::string, Tensor>& arrays, const std::string& name,
                    const std::string& file) {
  const auto found = arrays.find(name);
  if (found == arrays.end()) {
    throw bad_folder(file + " has no array '" + name + "'; export the checkpoint again");
  }
  return found->second;
}

View rows_of(const View& rows, std::int64_t begin, std::int64_t count, Tensor& copy) {
  View part = rows;
  part.shape[0] = count;
  const std::size_t row = part.size() / static_cast<std::size_t>(count);
  const std::int64_t last = rows.shape[0] - 1;
  const auto at = [&](std::int64_t i) {
    return rows.data + static_cast<std::size_t>(std::min(i, last)) * row;
  };
  part.data = at(begin);
  if (begin + count <= rows.shape[0]) return part;
  copy = make_tensor(part.dtype, part.shape);
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(copy.bytes.data() + static_cast<std::size_t>(i) * row, at(begin + i), row);
  }
  return copy;
}

void keep_rows(Tensor& tensor, std::int64_t count) {
  if (tensor.shape[0] <= count) return;
  tensor.bytes.resize(tensor.bytes.size() / static_cast<std::size_t>(tensor.shape[0]) *
                      static_cast<std::size_t>(count));
  tensor.shape[0] = count;
}

Tensor normalized(const View& pixels, const Config& model) {
  const std::int64_t t = pixels.shape[0], area = pixels.shape[1] * pixels.shape[2];
  Tensor result = make_tensor(DType::float32, {t, 3, pixels.shape[1], pixels.shape[2]});
  const auto* from = reinterpret_cast<const std::uint8_t*>(pixels.data);
  auto* to = result.data<float>();
  for (std::int64_t frame = 0; frame < t; ++frame) {
    for (std::int64_t c = 0; c < 3; ++c) {
      for (std::int64_t i = 0; i < area; ++i) {
        to[(frame * 3 + c) * area + i] =
            (static_cast<float>(from[(frame * area + i) * 3 + c]) - model.mean[c]) / model.std[c];
      }
    }
  }
  return result;
}

}  // namespace stan_infer
