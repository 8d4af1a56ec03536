// In place of the tokenizer and its text rules where the library is built without them.
#include "error.hpp"
#include "tokenizer.hpp"

namespace stan_infer {
namespace {

[[noreturn]] void fail() {
  throw missing(
      "this library was built without texts; use a folder whose labels have their embeddings, or "
      "configure again with cmake -DSTAN_INFER_TEXTS=ON");
}

}  // namespace

const bool kReadsTexts = false;

Tokenizer::Tokenizer(const std::string&) { fail(); }
std::vector<std::int32_t> Tokenizer::encode(const std::string&) const { fail(); }
bool is_blank(const std::string&) { fail(); }
std::vector<std::int32_t> fit(const std::vector<std::int32_t>&, std::size_t) { fail(); }

}  // namespace stan_infer
