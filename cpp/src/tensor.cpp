#include "tensor.hpp"

#include "error.hpp"

namespace stan_infer {

std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::uint8:
      return 1;
    case DType::int64:
      return 8;
    case DType::int32:
    case DType::float32:
      return 4;
  }
  return 0;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::uint8:
      return "uint8";
    case DType::int32:
      return "int32";
    case DType::int64:
      return "int64";
    case DType::float32:
      return "float32";
  }
  return "?";
}

DType dtype_of(const std::string& name) {
  for (DType dtype : {DType::uint8, DType::int32, DType::int64, DType::float32}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw bad_folder("dtype is '" + shown(name) + "'; known are uint8, int32, int64 and float32");
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("?") : std::to_string(shape[i]));
  }
  return text + "]";
}

std::size_t element_count(const Shape& shape) {
  constexpr std::int64_t limit = std::int64_t{1} << 31;
  std::int64_t count = 1;
  for (std::int64_t size : shape) {
    if (size < 0 || (size > 0 && count > limit / size)) {
      throw bad_folder("a tensor has the shape " + to_string(shape) +
                       "; sizes must be 0 or more, their product at most 2147483648");
    }
    count *= size;
  }
  return static_cast<std::size_t>(count);
}

Tensor make_tensor(DType dtype, Shape shape) {
  const std::size_t bytes = element_count(shape) * size_of(dtype);
  return {dtype, std::move(shape), std::vector<std::byte>(bytes)};
}

void append_rows(Tensor& tensor, Tensor rows) {
  if (tensor.shape.empty()) {
    tensor = std::move(rows);
    return;
  }
  tensor.shape[0] += rows.shape[0];
  tensor.bytes.insert(tensor.bytes.end(), rows.bytes.begin(), rows.bytes.end());
}

namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 33;

bool fits(const View& tensor, DType dtype, const Shape& shape) {
  bool same = tensor.dtype == dtype && tensor.shape.size() == shape.size();
  for (std::size_t i = 0; same && i < shape.size(); ++i) {
    same = shape[i] < 0 || shape[i] == tensor.shape[i];
  }
  return same;
}

std::string other(const View& tensor, DType dtype, const Shape& shape, const std::string& name) {
  return name + " is " + name_of(tensor.dtype) + " " + to_string(tensor.shape) + "; it must be " +
         name_of(dtype) + " " + to_string(shape);
}

}  // namespace

void expect(const View& tensor, DType dtype, const Shape& shape, const std::string& name) {
  if (!fits(tensor, dtype, shape)) {
    throw bad_folder(other(tensor, dtype, shape, name) + ": export the checkpoint again");
  }
}

void expect_argument(const View& tensor, DType dtype, const Shape& shape, const std::string& name) {
  if (!fits(tensor, dtype, shape)) throw bad_argument(other(tensor, dtype, shape, name));
}

void expect_whole(const Tensor& tensor, DType dtype, const Shape& shape, const std::string& name) {
  expect_argument(tensor, dtype, shape, name);
  std::size_t bytes = size_of(tensor.dtype);
  for (std::int64_t size : tensor.shape) {
    // Before it is multiplied: a product that overflows would pass for a small one.
    if (size < 1 || bytes == 0 || static_cast<std::uint64_t>(size) > kMostBytes / bytes) {
      throw bad_argument(name + " has the shape " + to_string(tensor.shape) +
                         "; sizes must be 1 or more, and the whole not too large");
    }
    bytes *= static_cast<std::size_t>(size);
  }
  if (tensor.bytes.size() != bytes) {
    throw bad_argument(name + " holds " + std::to_string(tensor.bytes.size()) +
                       " bytes; its shape " + to_string(tensor.shape) + " needs " +
                       std::to_string(bytes));
  }
}

}  // namespace stan_infer
