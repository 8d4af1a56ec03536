#include "npz.hpp"

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "error.hpp"

namespace stan_infer {
namespace {

constexpr std::size_t kMaxMembers = 1000;

class Reader {
 public:
  Reader(const Bytes& bytes, const std::string& file)
      : bytes_(reinterpret_cast<const char*>(bytes.data()), bytes.size()), file_(file) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw bad_folder(file_ + " is no .npz as numpy.savez writes it: " + what +
                     "; export the checkpoint again");
  }

  std::string_view part(std::uint64_t at, std::uint64_t size) const {
    if (at > bytes_.size() || size > bytes_.size() - at) fail("it is cut off");
    return bytes_.substr(static_cast<std::size_t>(at), static_cast<std::size_t>(size));
  }

  std::uint64_t number(std::uint64_t at, int width) const {
    std::uint64_t value = 0;
    const std::string_view raw = part(at, static_cast<std::uint64_t>(width));
    for (int i = width; i-- > 0;)
      value = value << 8 | static_cast<unsigned char>(raw[static_cast<std::size_t>(i)]);
    return value;
  }

  std::uint64_t size() const { return bytes_.size(); }

 private:
  std::string_view bytes_;
  const std::string& file_;
};

// One member as the central directory describes it.
struct Member {
  std::string name;
  std::uint64_t method = 0, packed = 0, size = 0, header = 0;
};

// numpy writes ZIP64 extra fields always; they hold only the values that are all ones outside.
void read_zip64(const Reader& in, std::uint64_t at, std::uint64_t end, Member& member) {
  while (at + 4 <= end) {
    const std::uint64_t id = in.number(at, 2), length = in.number(at + 2, 2);
    at += 4;
    if (length > end - at) in.fail("an extra field is cut off");
    if (id == 1) {
      std::uint64_t from = at;
      for (std::uint64_t* value : {&member.size, &member.packed, &member.header}) {
        if (*value != 0xFFFFFFFF) continue;
        if (from + 8 > at + length) in.fail("a ZIP64 field is cut off");
        *value = in.number(from, 8);
        from += 8;
      }
    }
    at += length;
  }
}

std::vector<Member> read_directory(const Reader& in) {
  // The end record is the last 22 bytes, as numpy writes no comment.
  if (in.size() < 22 || in.number(in.size() - 22, 4) != 0x06054b50)
    in.fail("it has no ZIP directory");
  const std::uint64_t count = in.number(in.size() - 12, 2);
  std::uint64_t at = in.number(in.size() - 6, 4);
  if (count > kMaxMembers) in.fail("it has more than 1000 members");
  std::vector<Member> members;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (in.number(at, 4) != 0x02014b50) in.fail("its ZIP directory is damaged");
    Member member;
    member.method = in.number(at + 10, 2);
    member.packed = in.number(at + 20, 4);
    member.size = in.number(at + 24, 4);
    member.header = in.number(at + 42, 4);
    const std::uint64_t name = in.number(at + 28, 2), extra = in.number(at + 30, 2);
    const std::uint64_t comment = in.number(at + 32, 2);
    member.name = std::string(in.part(at + 46, name));
    in.part(at + 46 + name, extra);
    read_zip64(in, at + 46 + name, at + 46 + name + extra, member);
    members.push_back(std::move(member));
    at += 46 + name + extra + comment;
  }
  return members;
}

// The value of `key` in a header such as {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3),
// }.
std::string_view value_of(const Reader& in, std::string_view header, const std::string& key) {
  const std::string spelled = "'" + key + "': ";
  const std::size_t found = header.find(spelled);
  if (found == std::string_view::npos) in.fail("an array's header has no " + key);
  return header.substr(found + spelled.size());
}

DType dtype_in(const Reader& in, std::string_view header) {
  const std::string_view text = value_of(in, header, "descr");
  if (text.substr(0, 5) == "'|u1'") return DType::uint8;
  if (text.substr(0, 5) == "'<i4'") return DType::int32;
  if (text.substr(0, 5) == "'<i8'") return DType::int64;
  if (text.substr(0, 5) == "'<f4'") return DType::float32;
  in.fail("an array has the dtype " + shown(std::string(text), 12) +
          "; read are |u1, <i4, <i8 and <f4");
}

Shape shape_in(const Reader& in, std::string_view header) {
  std::string_view text = value_of(in, header, "shape");
  if (text.empty() || text[0] != '(') in.fail("an array's shape is no tuple");
  Shape shape;
  std::int64_t value = -1;
  for (char c : text.substr(1)) {
    if (c >= '0' && c <= '9') {
      value = std::max<std::int64_t>(value, 0) * 10 + (c - '0');
      if (value > std::int64_t{1} << 31) in.fail("an array is too large");
    } else if (c == ',' || c == ')') {
      if (value >= 0) shape.push_back(value);
      value = -1;
      if (c == ')') return shape;
    } else if (c != ' ') {
      break;
    }
    if (shape.size() > 16) break;
  }
  in.fail("an array's shape cannot be read");
}

// numpy keeps the order of a transposed array: the first axis then runs fastest.
Tensor rows_first(const Tensor& tensor) {
  Tensor result = make_tensor(tensor.dtype, tensor.shape);
  const std::size_t width = size_of(tensor.dtype), count = element_count(tensor.shape);
  Shape place(tensor.shape.size(), 0);  // of the element that is written next
  for (std::size_t i = 0; i < count; ++i) {
    std::int64_t from = 0;
    for (std::size_t axis = place.size(); axis-- > 0;)
      from = from * tensor.shape[axis] + place[axis];
    std::memcpy(result.bytes.data() + i * width,
                tensor.bytes.data() + static_cast<std::size_t>(from) * width, width);
    for (std::size_t axis = place.size(); axis-- > 0;) {
      if (++place[axis] < tensor.shape[axis]) break;
      place[axis] = 0;
    }
  }
  return result;
}

Tensor read_array(const Reader& in, std::uint64_t at, std::uint64_t size) {
  if (size < 10 || in.part(at, 6) != "\x93NUMPY") in.fail("a member is no .npy array");
  const std::uint64_t major = in.number(at + 6, 1);
  const int width = major == 1 ? 2 : 4;
  const std::uint64_t length = in.number(at + 8, width);
  const std::uint64_t begin = 8 + static_cast<std::uint64_t>(width);
  if (begin > size || length > size - begin) in.fail("an array's header is cut off");
  const std::string_view header = in.part(at + begin, length);
  const bool columns_first = value_of(in, header, "fortran_order").substr(0, 4) == "True";
  Tensor tensor{dtype_in(in, header), shape_in(in, header), {}};
  const std::uint64_t bytes = element_count(tensor.shape) * size_of(tensor.dtype);
  if (bytes != size - begin - length) in.fail("an array's data has another size than its shape");
  const auto* data = reinterpret_cast<const std::byte*>(in.part(at + begin + length, bytes).data());
  tensor.bytes.assign(data, data + bytes);
  return columns_first ? rows_first(tensor) : tensor;
}

}  // namespace

std::map<std::string, Tensor> parse_npz(const Bytes& bytes, const std::string& file) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "arrays are taken as they lie");
  const Reader in(bytes, file);
  std::map<std::string, Tensor> arrays;
  std::uint64_t total = 0;
  for (const Member& member : read_directory(in)) {
    if (member.method != 0 || member.packed != member.size) {
      in.fail("'" + shown(member.name) + "' is compressed");
    }
    // Members that share bytes would let a small file claim a lot of memory.
    if (member.size > in.size() || (total += member.size) > in.size()) in.fail("members overlap");
    if (in.number(member.header, 4) != 0x04034b50) in.fail("a member has no header");
    const std::uint64_t name = in.number(member.header + 26, 2);
    const std::uint64_t at = member.header + 30 + name + in.number(member.header + 28, 2);
    std::string key = member.name;
    if (key.size() > 4 && key.substr(key.size() - 4) == ".npy") key.resize(key.size() - 4);
    if (!arrays.emplace(key, read_array(in, at, member.size)).second)
      in.fail("a name appears twice");
  }
  return arrays;
}

}  // namespace stan_infer
