// Captions -> CLIP token ids: the text rules, then byte-level BPE.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace stan_infer {

extern const bool kReadsTexts;  // false where the library was built without them

class Tokenizer {
 public:
  // The content of the tokenizer.json that export writes. Only its merges are used; everything
  // else in it must be what follows from them. Throws Error (bad_folder).
  explicit Tokenizer(const std::string& json);

  // All ids of a text, with the start and the end token. Throws Error for a text that is not
  // UTF-8, is longer than 10,000 characters, or would need a repair that is not here.
  std::vector<std::int32_t> encode(const std::string& text) const;

 private:
  struct Merge {
    int rank;
    std::int32_t id;
  };

  void append_word(const std::string& word, std::vector<std::int32_t>& ids) const;

  std::unordered_map<std::uint64_t, Merge> merges_;  // by the ids of both parts
};

// Whether a text has nothing but white space. Throws Error where it is not UTF-8.
bool is_blank(const std::string& text);

// The ids in `length` places: too long a text is cut and keeps its end token; 0 fills the rest.
std::vector<std::int32_t> fit(const std::vector<std::int32_t>& ids, std::size_t length);

}  // namespace stan_infer
