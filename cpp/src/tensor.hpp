// A dense array in row-major order that owns its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace stan_infer {

enum class DType { uint8, int32, int64, float32 };

using Shape = std::vector<std::int64_t>;

struct Tensor {
  DType dtype = DType::uint8;
  Shape shape;
  std::vector<std::byte> bytes;

  // T must be the C++ type of dtype.
  template <class T>
  const T* data() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
  template <class T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }
};

std::size_t size_of(DType dtype);
const char* name_of(DType dtype);
DType dtype_of(const std::string& name);  // throws Error for a name that is none of the four
std::string to_string(const Shape& shape);

// Number of elements; throws Error for a negative size or more than 2^31 elements.
std::size_t element_count(const Shape& shape);

Tensor make_tensor(DType dtype, Shape shape);  // all zero

// Throws Error unless `tensor` has this dtype and shape; -1 stands for any size. `name` is for the
// message.
void expect(const Tensor& tensor, DType dtype, const Shape& shape, const std::string& name);

}  // namespace stan_infer
