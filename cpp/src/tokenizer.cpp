#include "tokenizer.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "clean_text.hpp"
#include "error.hpp"

namespace stan_infer {
namespace {

using Json = nlohmann::json;

constexpr std::int32_t kStart = 49406, kEnd = 49407;
constexpr std::size_t kMerges = 48894;  // 49408 entries - 2 * 256 bytes - 2 special tokens
constexpr std::size_t kMaxCharacters = 10'000;
constexpr const char* kPattern =
    "<\\|[sſ]tartoftext\\|>|<\\|endoftext\\|>"
    "|'[sſ]|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}\\x{345}]+";
constexpr char32_t kLongS = 0x17F;

[[noreturn]] void fail(const std::string& what) {
  throw bad_folder("tokenizer.json is not one that stan-infer export writes (" + shown(what, 120) +
                   "); export the checkpoint again");
}

bool is_printable(int byte) {
  return (byte >= 33 && byte < 127) || (byte >= 161 && byte < 173) || byte >= 174;
}

// Byte-level BPE spells every byte as one visible character; in the order of their ids.
std::vector<std::pair<unsigned char, std::string>> byte_symbols() {
  std::vector<std::pair<unsigned char, std::string>> symbols;
  for (bool printable : {true, false}) {
    for (int byte = 0; byte < 256; ++byte) {
      if (is_printable(byte) != printable) continue;
      const auto hidden = static_cast<char32_t>(symbols.size() + 256 - 188);
      symbols.emplace_back(static_cast<unsigned char>(byte),
                           to_utf8({printable ? static_cast<char32_t>(byte) : hidden}));
    }
  }
  return symbols;
}

// Id of a byte: its place in byte_symbols(); the same byte at the end of a word is 256 further on.
const std::vector<std::int32_t>& byte_ids() {
  static const std::vector<std::int32_t> ids = [] {
    std::vector<std::int32_t> result(256);
    std::int32_t next = 0;
    for (const auto& [byte, symbol] : byte_symbols()) result[byte] = next++;
    return result;
  }();
  return ids;
}

std::pair<std::string, std::string> parts_of(const Json& merge) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  // Older versions of the tokenizers library write "a b" in place of ["a", "b"].
  if (merge.is_string()) {
    const std::string& text = merge.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  }
  fail("a merge is no pair of strings");
}

void check_rules(const Json& root) {
  const Json& model = root.at("model");
  const Json& steps = root.at("pre_tokenizer").at("pretokenizers");
  if (model.at("type") != "BPE" || model.at("end_of_word_suffix") != "</w>") {
    fail("its model is not a BPE with words ending in </w>");
  }
  if (!root.at("normalizer").is_null() || !root.at("added_tokens").empty()) {
    fail("it has a normalizer or added tokens");
  }
  if (steps.size() != 2 || steps.at(0).at("type") != "Split" ||
      steps.at(1).at("type") != "ByteLevel" ||
      steps.at(0).at("pattern") != Json{{"Regex", kPattern}}) {
    fail("it splits words in another way");
  }
}

bool starts(const Text& text, std::size_t at, const char32_t* word) {
  return text.compare(at, std::char_traits<char32_t>::length(word), word) == 0;
}

// Length of the piece that OpenAI's pattern finds at `at`; 0: the character belongs to none.
std::size_t piece_at(const Text& text, std::size_t at) {
  if (starts(text, at, U"<|startoftext|>") || starts(text, at, U"<|\x17Ftartoftext|>")) return 15;
  if (starts(text, at, U"<|endoftext|>")) return 13;
  if (text[at] == U'\'' && at + 1 < text.size()) {
    const char32_t c = text[at + 1];
    if (c == U's' || c == kLongS || c == U't') return 2;
    if (starts(text, at, U"'re") || starts(text, at, U"'ve") || starts(text, at, U"'ll")) return 3;
    if (c == U'm' || c == U'd') return 2;
  }
  if (is_number(text[at])) return 1;
  const auto other = [](char32_t c) {
    return !is_space(c) && !is_letter(c) && !is_number(c) && c != 0x345;
  };
  std::size_t end = at;
  if (is_letter(text[at])) {
    while (end < text.size() && is_letter(text[end])) ++end;
  } else {
    while (end < text.size() && other(text[end])) ++end;
  }
  return end - at;
}

std::uint64_t key(std::int32_t a, std::int32_t b) {
  return static_cast<std::uint64_t>(a) << 32 | static_cast<std::uint32_t>(b);
}

}  // namespace

const bool kReadsTexts = true;

Tokenizer::Tokenizer(const std::string& json) {
  try {
    const Json root = Json::parse(json);
    check_rules(root);
    const Json& vocab = root.at("model").at("vocab");
    const Json& merges = root.at("model").at("merges");
    if (!merges.is_array() || merges.size() != kMerges) {
      fail("it has " + std::to_string(merges.size()) + " merges, not " + std::to_string(kMerges));
    }
    std::unordered_map<std::string, std::int32_t> ids;
    std::int32_t next = 0;
    for (const char* suffix : {"", "</w>"}) {
      for (const auto& [byte, symbol] : byte_symbols()) ids[symbol + suffix] = next++;
    }
    std::vector<std::pair<std::string, std::string>> pairs;
    for (const Json& merge : merges) {
      pairs.push_back(parts_of(merge));
      ids[pairs.back().first + pairs.back().second] = next++;
    }
    ids["<|startoftext|>"] = kStart;
    ids["<|endoftext|>"] = kEnd;
    bool same = vocab.is_object() && vocab.size() == ids.size();
    for (auto entry = vocab.begin(); same && entry != vocab.end(); ++entry) {
      const auto found = ids.find(entry.key());
      same = found != ids.end() && *entry == found->second;
    }
    if (!same) fail("its token ids are not those that follow from its merges");
    int rank = 0;
    for (const auto& [a, b] : pairs) {
      const auto left = ids.find(a), right = ids.find(b);
      if (left == ids.end() || right == ids.end()) fail("a merge joins what is no token");
      merges_[key(left->second, right->second)] = {rank++, ids.at(a + b)};
    }
  } catch (const Json::exception& e) {
    fail(e.what());
  }
}

std::vector<std::int32_t> Tokenizer::encode(const std::string& utf8) const {
  const Text text = from_utf8(utf8);
  if (text.size() > kMaxCharacters) {
    throw bad_text("a text has " + std::to_string(text.size()) + " characters; allowed are " +
                   std::to_string(kMaxCharacters) + ": this is not a caption");
  }
  const Text clean = clean_text(text);
  std::vector<std::int32_t> ids{kStart};
  for (std::size_t at = 0; at < clean.size();) {
    const std::size_t length = piece_at(clean, at);
    const std::string word = to_utf8(clean.substr(at, length));
    if (word == "<|startoftext|>") {
      ids.push_back(kStart);
    } else if (word == "<|endoftext|>") {
      ids.push_back(kEnd);
    } else if (length) {
      append_word(word, ids);
    }
    at += std::max<std::size_t>(length, 1);
  }
  ids.push_back(kEnd);
  return ids;
}

void Tokenizer::append_word(const std::string& word, std::vector<std::int32_t>& ids) const {
  std::vector<std::int32_t> parts;
  for (char c : word) parts.push_back(byte_ids()[static_cast<unsigned char>(c)]);
  parts.back() += 256;
  // The pair of lowest rank is joined first, of several the leftmost. Parts are a list, pairs a
  // queue: time grows with the word, not with its square.
  const std::size_t end = parts.size();
  std::vector<std::size_t> next(end), previous(end);
  for (std::size_t i = 0; i < end; ++i) next[i] = i + 1, previous[i] = i - 1;
  std::set<std::pair<int, std::size_t>> pairs;  // rank and place of the left part
  const auto pair_at = [&](std::size_t i) {
    const auto found = merges_.find(key(parts[i], parts[next[i]]));
    return found == merges_.end() ? nullptr : &found->second;
  };
  const auto add = [&](std::size_t i) {
    if (next[i] == end) return;
    if (const Merge* merge = pair_at(i)) pairs.emplace(merge->rank, i);
  };
  const auto drop = [&](std::size_t i) {
    if (next[i] == end) return;
    if (const Merge* merge = pair_at(i)) pairs.erase({merge->rank, i});
  };
  for (std::size_t i = 0; i < end; ++i) add(i);
  while (!pairs.empty()) {
    const std::size_t i = pairs.begin()->second, right = next[i];
    const std::int32_t id = pair_at(i)->id;
    drop(i);
    drop(right);
    if (i > 0) drop(previous[i]);
    parts[i] = id;
    next[i] = next[right];
    if (next[i] != end) previous[next[i]] = i;
    add(i);
    if (i > 0) add(previous[i]);
  }
  for (std::size_t i = 0; i < end; i = next[i]) ids.push_back(parts[i]);
}

bool is_blank(const std::string& text) {
  const Text points = from_utf8(text);
  return std::all_of(points.begin(), points.end(), is_space);
}

std::vector<std::int32_t> fit(const std::vector<std::int32_t>& ids, std::size_t length) {
  std::vector<std::int32_t> result = ids;
  const bool cut = ids.size() > length;
  result.resize(length);
  if (cut) result.back() = kEnd;
  return result;
}

}  // namespace stan_infer
