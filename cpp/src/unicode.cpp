#include "unicode.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <new>
#include <stdexcept>

#include "error.hpp"
#include "unicode_tables.hpp"

namespace stan_infer {
namespace {

template <std::size_t N>
bool is_in(const Range (&ranges)[N], char32_t c) {
  return std::any_of(ranges, ranges + N, [c](Range r) { return c >= r.first && c <= r.last; });
}

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

// NFC, or NFKC with the option UTF8PROC_COMPAT.
Text mapped(const Text& text, int options) {
  const std::string utf8 = to_utf8(text);
  utf8proc_uint8_t* bytes = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(utf8.data()),
      static_cast<utf8proc_ssize_t>(utf8.size()), &bytes,
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE | options));
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(bytes, std::free);
  if (size == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  if (size < 0) throw std::runtime_error(std::string("utf8proc: ") + utf8proc_errmsg(size));
  return from_utf8({reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size)});
}

// Debian 12's utf8proc takes U+11A7, which joins nothing, for the first final consonant of Hangul,
// and drops it after a syllable without one. So what lies between two is normalized by itself.
Text normalized(const Text& text, int options) {
  constexpr char32_t kBeforeFinals = 0x11A7;
  Text result;
  for (std::size_t at = 0;;) {
    const std::size_t end = std::min(text.find(kBeforeFinals, at), text.size());
    result += mapped(text.substr(at, end - at), options);
    if (end == text.size()) return result;
    result += kBeforeFinals;
    at = end + 1;
  }
}

bool is_cased(char32_t c) { return is_lower(c) || is_upper(c) || is_in(kOtherCased, c); }

bool is_case_ignorable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return is_in(kOtherCaseIgnorable, c);
  }
}

// Final_Sigma of SpecialCasing.txt: a cased character before it and none behind, but for those that
// are ignored.
bool ends_a_word(const Text& text, std::size_t sigma) {
  const auto behind = text.begin() + static_cast<std::ptrdiff_t>(sigma);
  const auto before = std::make_reverse_iterator(behind);
  const auto left = std::find_if_not(before, text.rend(), is_case_ignorable);
  const auto right = std::find_if_not(behind + 1, text.end(), is_case_ignorable);
  return left != text.rend() && is_cased(*left) && (right == text.end() || !is_cased(*right));
}

}  // namespace

Text from_utf8(const std::string& utf8) {
  Text result;
  for (std::size_t i = 0; i < utf8.size();) {
    const auto lead = static_cast<unsigned char>(utf8[i]);
    const std::size_t length = lead < 0x80   ? 1
                               : lead < 0xC2 ? 0
                               : lead < 0xE0 ? 2
                               : lead < 0xF0 ? 3
                               : lead < 0xF5 ? 4
                                             : 0;
    bool valid = length > 0 && i + length <= utf8.size();
    char32_t c = length < 2 ? lead : lead & (0xFF >> (length + 1));
    for (std::size_t k = 1; valid && k < length; ++k) {
      const auto byte = static_cast<unsigned char>(utf8[i + k]);
      valid = (byte & 0xC0) == 0x80;
      c = c << 6 | (byte & 0x3F);
    }
    const bool shortest = length < 3 || c >= (length == 3 ? 0x800u : 0x10000u);
    if (!valid || !shortest || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) {
      throw bad_text("a text is not UTF-8 (at byte " + std::to_string(i) + " of " +
                     std::to_string(utf8.size()) + "); convert it first");
    }
    result += c;
    i += length;
  }
  return result;
}

std::string to_utf8(const Text& text) {
  std::string result;
  for (char32_t c : text) {
    if (c < 0x80) {
      result += static_cast<char>(c);
      continue;
    }
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    result += static_cast<char>((0xFF00 >> (more + 1) & 0xFF) | c >> (6 * more));
    for (int k = more - 1; k >= 0; --k) result += static_cast<char>(0x80 | (c >> (6 * k) & 0x3F));
  }
  return result;
}

Text nfc(const Text& text) { return normalized(text, 0); }
Text nfkc(const Text& text) { return normalized(text, UTF8PROC_COMPAT); }

Text lower(const Text& text) {
  Text result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    if (c == 0x130) {  // I with a dot: the only one that becomes two
      result += U"i\x307";
    } else if (c == 0x3A3) {
      result += ends_a_word(text, i) ? char32_t{0x3C2} : char32_t{0x3C3};
    } else {
      result += static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
    }
  }
  return result;
}

bool is_plain_letter(char32_t c) {
  return is_lower(c) || is_upper(c) || category(c) == UTF8PROC_CATEGORY_LO;
}
bool is_letter(char32_t c) {
  return is_plain_letter(c) || category(c) == UTF8PROC_CATEGORY_LM || is_in(kLaterLetters, c);
}
bool is_number(char32_t c) {
  const utf8proc_category_t found = category(c);
  return found == UTF8PROC_CATEGORY_ND || found == UTF8PROC_CATEGORY_NL ||
         found == UTF8PROC_CATEGORY_NO || is_in(kLaterNumbers, c);
}
bool is_lower(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LL; }
bool is_upper(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LU || category(c) == UTF8PROC_CATEGORY_LT;
}
bool is_digit(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }

bool is_space(char32_t c) {
  // Python also splits at the four information separators, which Unicode does not call white space.
  return (c >= 0x9 && c <= 0xD) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::vector<CodePage> code_pages() {
  Text bytes;
  for (char32_t byte = 0; byte < 256; ++byte) bytes += byte;
  std::vector<CodePage> result{{"iso-8859-1", bytes}};
  for (const UpperHalf& half : kCodePages) {
    result.push_back({half.name, bytes.substr(0, 128)});
    for (const char16_t* c = half.characters; *c; ++c) result.back().characters += char32_t{*c};
  }
  return result;
}

}  // namespace stan_infer
