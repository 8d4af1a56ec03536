// Compiled into the program, too, which sees the library's public header only.
#include "error.hpp"

namespace stan_infer {

std::string shown(const std::string& text, std::size_t limit) {
  std::string result = text.substr(0, limit);
  for (char& c : result) {
    if (static_cast<unsigned char>(c) < 32 || c == 127) c = '?';
  }
  // A cut must not leave half of a UTF-8 character.
  if (text.size() > limit) {
    while (!result.empty() && (static_cast<unsigned char>(result.back()) & 0xC0) == 0x80)
      result.pop_back();
    if (!result.empty() && static_cast<unsigned char>(result.back()) >= 0xC0) result.pop_back();
    result += "...";
  }
  return result;
}

}  // namespace stan_infer
