// Dense arrays in row-major order: what the public Tensor does not say, and a view of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stan_infer/stan_infer.hpp>
#include <string>

namespace stan_infer {

std::size_t size_of(DType dtype);
const char* name_of(DType dtype);
DType dtype_of(const std::string& name);  // throws Error for a name that is none of the four
std::string to_string(const Shape& shape);

// Number of elements; throws Error for a negative size or more than 2^31 elements.
std::size_t element_count(const Shape& shape);

Tensor make_tensor(DType dtype, Shape shape);  // all zero

// Adds rows to a tensor that has such rows, or none and no shape yet.
void append_rows(Tensor& tensor, Tensor rows);

// Memory of somebody else that is read as a tensor.
struct View {
  DType dtype = DType::uint8;
  Shape shape;
  const std::byte* data = nullptr;

  View() = default;
  View(const Tensor& tensor)
      : dtype(tensor.dtype), shape(tensor.shape), data(tensor.bytes.data()) {}
  View(DType type, Shape sizes, const void* memory)
      : dtype(type), shape(std::move(sizes)), data(static_cast<const std::byte*>(memory)) {}
  std::size_t size() const { return element_count(shape) * size_of(dtype); }  // in bytes
};

// Throws Error (bad_folder) unless a tensor has this dtype and shape; -1 stands for any size.
// `name` is for the message.
void expect(const View& tensor, DType dtype, const Shape& shape, const std::string& name);

// The same of what a caller gave (bad_argument).
void expect_argument(const View& tensor, DType dtype, const Shape& shape, const std::string& name);

// As that, and no axis may be empty, and it must hold the bytes of its shape.
void expect_whole(const Tensor& tensor, DType dtype, const Shape& shape, const std::string& name);

}  // namespace stan_infer
