#include "stan/onnx_file.hpp"

#include <cstdint>
#include <string_view>
#include <vector>

#include "stan/error.hpp"

namespace stan {
namespace {

constexpr int kMaxDepth = 100;         // protobuf's own limit
constexpr int kMaxFields = 2'000'000;  // a large graph has 60,000
constexpr std::size_t kMaxText = 65536;

enum class Message {
  model,
  graph,
  node,
  attribute,
  tensor,
  sparse,
  training,
  function,
  entry,
  none
};

// Field numbers of onnx.proto on every way from a model to a tensor's external_data.
Message below(Message parent, std::uint64_t field) {
  switch (parent) {
    case Message::model:
      return field == 7    ? Message::graph
             : field == 20 ? Message::training
             : field == 25 ? Message::function
                           : Message::none;
    case Message::graph:
      return field == 1    ? Message::node
             : field == 5  ? Message::tensor
             : field == 15 ? Message::sparse
                           : Message::none;
    case Message::node:
      return field == 5 ? Message::attribute : Message::none;
    case Message::attribute:
      return field == 5 || field == 10    ? Message::tensor
             : field == 6 || field == 11  ? Message::graph
             : field == 22 || field == 23 ? Message::sparse
                                          : Message::none;
    case Message::sparse:
      return field == 1 || field == 2 ? Message::tensor : Message::none;
    case Message::training:
      return field == 1 || field == 2 ? Message::graph : Message::none;
    case Message::function:
      return field == 7 ? Message::node : field == 11 ? Message::attribute : Message::none;
    case Message::tensor:
      return field == 13 ? Message::entry : Message::none;
    case Message::entry:
    case Message::none:
      break;
  }
  return Message::none;
}

class Walk {
 public:
  Walk(std::string_view bytes, const std::string& file) : bytes_(bytes), file_(file) {}

  std::set<std::string> run() {
    message(Message::model, 0, bytes_.size(), 0);
    if (!has_graph_) throw bad_input(file_ + " is not an ONNX model: it holds no graph");
    return found_;
  }

 private:
  [[noreturn]] void malformed(std::size_t at) const {
    throw bad_input(file_ + " is not a well-formed ONNX model (at byte " + std::to_string(at) +
                    " of " + std::to_string(bytes_.size()) + "); export the checkpoint again");
  }

  std::uint64_t varint(std::size_t& at, std::size_t end) const {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && at < end; shift += 7) {
      const auto byte = static_cast<unsigned char>(bytes_[at++]);
      value |= std::uint64_t{byte & 127u} << shift;
      if (byte < 128) return value;
    }
    malformed(at);
  }

  void message(Message kind, std::size_t at, std::size_t end, int depth) {
    if (depth > kMaxDepth) malformed(at);
    std::vector<std::string_view> keys, values;
    while (at < end) {
      if (++fields_ > kMaxFields) malformed(at);
      const std::uint64_t tag = varint(at, end);
      std::size_t length = 0;
      switch (tag & 7) {
        case 0:
          varint(at, end);
          break;
        case 1:
          length = 8;
          break;
        case 2: {
          const std::uint64_t said = varint(at, end);
          if (said > end - at) malformed(at);
          length = static_cast<std::size_t>(said);
          break;
        }
        case 5:
          length = 4;
          break;
        default:
          malformed(at);
      }
      if (length > end - at) malformed(at);
      const Message child = below(kind, tag >> 3);
      if (child != Message::none) {
        if ((tag & 7) != 2) malformed(at);
        has_graph_ = has_graph_ || child == Message::graph;
        message(child, at, at + length, depth + 1);
      } else if (kind == Message::entry && (tag >> 3 == 1 || tag >> 3 == 2)) {
        if ((tag & 7) != 2 || length > kMaxText) malformed(at);
        (tag >> 3 == 1 ? keys : values).push_back(bytes_.substr(at, length));
      }
      at += length;
    }
    // Of a field given twice a parser takes the last: so every value of such an entry counts.
    for (std::string_view key : keys) {
      if (key == "location") found_.insert(values.begin(), values.end());
    }
  }

  std::string_view bytes_;
  const std::string& file_;
  std::set<std::string> found_;
  int fields_ = 0;
  bool has_graph_ = false;
};

}  // namespace

std::set<std::string> external_locations(const Bytes& onnx, const std::string& file) {
  return Walk({reinterpret_cast<const char*>(onnx.data()), onnx.size()}, file).run();
}

}  // namespace stan
