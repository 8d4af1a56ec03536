#include "onnx_file.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string_view>
#include <vector>

#include "error.hpp"

namespace stan_infer {
namespace {

constexpr int kMaxDepth = 8;           // a model has six messages in each other
constexpr int kMaxFields = 2'000'000;  // a large graph has 60,000
constexpr std::size_t kMaxText = 65536;
constexpr std::string_view kConfigKey = "stan_infer.config_sha256";

// The operations that the exporters write; no other may stand in a graph. The same list as in
// stan_infer/artefacts/onnx_operations.py, which a test compares.
constexpr std::string_view kOperations[] = {
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "Cast",
    "CastLike",
    "Ceil",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "DequantizeLinear",
    "Div",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Floor",
    "Gather",
    "GatherElements",
    "Gelu",
    "Gemm",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "LayerNormalization",
    "Less",
    "LessOrEqual",
    "MatMul",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pow",
    "QuantizeLinear",
    "Range",
    "Reciprocal",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "Reshape",
    "Round",
    "Shape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
};

enum class Message { model, opset, property, graph, node, attribute, tensor, entry, none };

// Field numbers of onnx.proto on the ways from a model to its operations and to a tensor's
// external_data.
Message below(Message parent, std::uint64_t field) {
  switch (parent) {
    case Message::model:
      return field == 7    ? Message::graph
             : field == 8  ? Message::opset
             : field == 14 ? Message::property
                           : Message::none;
    case Message::graph:
      return field == 1 ? Message::node : field == 5 ? Message::tensor : Message::none;
    case Message::node:
      return field == 5 ? Message::attribute : Message::none;
    case Message::attribute:
      return field == 5 ? Message::tensor : Message::none;
    case Message::tensor:
      return field == 13 ? Message::entry : Message::none;
    case Message::opset:
    case Message::property:
    case Message::entry:
    case Message::none:
      break;
  }
  return Message::none;
}

// What the format has and no graph of ours: tensors and nodes could lie there unseen.
const char* foreign(Message parent, std::uint64_t field) {
  switch (parent) {
    case Message::model:
      return field == 20 ? "training information" : field == 25 ? "local functions" : nullptr;
    case Message::graph:
      return field == 15 ? "sparse weights" : nullptr;
    case Message::node:
      return field == 8 ? "a local function" : nullptr;
    case Message::attribute:
      return field <= 5 || field == 7 || field == 8 || field == 13 || field == 20
                 ? nullptr
                 : "a subgraph or the like";
    default:
      return nullptr;
  }
}

class Walk {
 public:
  Walk(std::string_view bytes, const std::string& file) : bytes_(bytes), file_(file) {}

  GraphForm run() {
    message(Message::model, 0, bytes_.size(), 0);
    if (!has_graph_) throw bad_folder(file_ + " is not an ONNX model: it holds no graph");
    if (opsets_ != 1 || opset_ < 18 || opset_ >= 100)
      refuse("other operator sets than one of ONNX");
    return found_;
  }

 private:
  [[noreturn]] void malformed(std::size_t at) const {
    throw bad_folder(file_ + " is not a well-formed ONNX model (at byte " + std::to_string(at) +
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

  [[noreturn]] void refuse(const std::string& what) const {
    throw bad_folder(file_ + " has " + what +
                     ", which no graph written by stan_infer has; export the checkpoint again");
  }

  // Of a field given twice some parsers take the last and some merge: here all must be right.
  void word(Message kind, std::uint64_t field, std::string_view text) const {
    const bool is_domain = (kind == Message::node && field == 7) || kind == Message::opset;
    if (is_domain && !text.empty() && text != "ai.onnx") {
      refuse("operations of the domain '" + printable(text) + "'");
    }
    const auto* end = std::end(kOperations);
    if (kind == Message::node && field == 4 &&
        std::find(std::begin(kOperations), end, text) == end) {
      refuse("the operation '" + printable(text) + "'");
    }
  }

  static std::string printable(std::string_view text) {
    std::string shown(text.substr(0, 80));
    for (char& c : shown) {
      if (c < 32 || c > 126) c = '?';
    }
    return shown;
  }

  void message(Message kind, std::size_t at, std::size_t end, int depth) {
    if (depth > kMaxDepth) malformed(at);
    std::vector<std::string_view> keys, values;
    while (at < end) {
      if (++fields_ > kMaxFields) malformed(at);
      const std::uint64_t tag = varint(at, end);
      std::size_t length = 0;
      switch (tag & 7) {
        case 0: {
          const std::uint64_t value = varint(at, end);
          if (kind == Message::opset && tag >> 3 == 2) opset_ = value;
          break;
        }
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
      if (const char* what = foreign(kind, tag >> 3)) refuse(what);
      const bool is_word = (kind == Message::node && (tag >> 3 == 4 || tag >> 3 == 7)) ||
                           (kind == Message::opset && tag >> 3 == 1);
      if (is_word) {
        if ((tag & 7) != 2 || length > kMaxText) malformed(at);
        word(kind, tag >> 3, bytes_.substr(at, length));
      }
      const Message child = below(kind, tag >> 3);
      if (child != Message::none) {
        if ((tag & 7) != 2) malformed(at);
        has_graph_ = has_graph_ || child == Message::graph;
        opsets_ += child == Message::opset;
        message(child, at, at + length, depth + 1);
      } else if ((kind == Message::entry || kind == Message::property) &&
                 (tag >> 3 == 1 || tag >> 3 == 2)) {
        if ((tag & 7) != 2 || length > kMaxText) malformed(at);
        (tag >> 3 == 1 ? keys : values).push_back(bytes_.substr(at, length));
      }
      at += length;
    }
    // Of a field given twice a parser takes the last: so every value of such an entry counts.
    for (std::string_view key : keys) {
      if (kind == Message::entry && key == "location") {
        found_.external.insert(values.begin(), values.end());
      }
      if (kind == Message::property && key == kConfigKey) {
        if (found_.config || values.size() != 1) refuse("several hashes of its config");
        found_.config = values[0];
      }
    }
  }

  std::string_view bytes_;
  const std::string& file_;
  GraphForm found_;
  int fields_ = 0, opsets_ = 0;
  std::uint64_t opset_ = 0;
  bool has_graph_ = false;
};

}  // namespace

GraphForm check_graph(const Bytes& onnx, const std::string& file) {
  return Walk({reinterpret_cast<const char*>(onnx.data()), onnx.size()}, file).run();
}

}  // namespace stan_infer
