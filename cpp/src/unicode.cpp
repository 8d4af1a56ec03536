#include "unicode.hpp"

#include <unicode/uchar.h>
#include <unicode/ucnv.h>
#include <unicode/unorm2.h>
#include <unicode/ustring.h>

#include <cstdint>
#include <memory>

#include "error.hpp"

namespace stan_infer {
namespace {

struct Range {
  char32_t first, last;
};

// What Unicode 15.1 and 16 added. The tokenizers library splits by Unicode 16, and Debian 12's ICU
// knows 15.0.
constexpr Range kLaterLetters[] = {
    {0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3},
    {0x10D4A, 0x10D65}, {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x11380, 0x11389},
    {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x113B5}, {0x113B7, 0x113B7},
    {0x113D1, 0x113D1}, {0x113D3, 0x113D3}, {0x11BC0, 0x11BE0}, {0x13460, 0x143FA},
    {0x16100, 0x1611D}, {0x16D40, 0x16D6C}, {0x18CFF, 0x18CFF}, {0x1E5D0, 0x1E5ED},
    {0x1E5F0, 0x1E5F0}, {0x2EBF0, 0x2EE5D}};
constexpr Range kLaterNumbers[] = {{0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9},
                                   {0x16130, 0x16139}, {0x16D70, 0x16D79}, {0x1CCF0, 0x1CCF9},
                                   {0x1E5F1, 0x1E5FA}};

template <std::size_t N>
bool is_in(const Range (&ranges)[N], char32_t c) {
  for (const Range& range : ranges) {
    if (c >= range.first && c <= range.last) return true;
  }
  return false;
}

void check(UErrorCode code) {
  if (U_FAILURE(code)) throw std::runtime_error(std::string("ICU: ") + u_errorName(code));
}

std::u16string to_utf16(const Text& text) {
  std::u16string result;
  for (char32_t c : text) {
    if (c < 0x10000) {
      result += static_cast<char16_t>(c);
    } else {
      result += static_cast<char16_t>(0xD7C0 + (c >> 10));
      result += static_cast<char16_t>(0xDC00 + (c & 0x3FF));
    }
  }
  return result;
}

Text from_utf16(const std::u16string& text) {
  Text result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char32_t unit = text[i];
    if (unit >= 0xD800 && unit < 0xDC00 && i + 1 < text.size()) {
      result += 0x10000 + ((unit - 0xD800) << 10) + (text[++i] - char32_t{0xDC00});
    } else {
      result += unit;
    }
  }
  return result;
}

// Calls an ICU function of the form (target, capacity, &code) -> length, with room enough.
template <class Call>
Text mapped(const Text& text, const Call& call) {
  const std::u16string from = to_utf16(text);
  std::u16string to(from.size() * 3 + 16, u'\0');
  for (int attempt = 0; attempt < 2; ++attempt) {
    UErrorCode code = U_ZERO_ERROR;
    const std::int32_t length = call(from, to, code);
    if (code != U_BUFFER_OVERFLOW_ERROR) check(code);
    const bool fits = static_cast<std::size_t>(length) <= to.size();
    to.resize(static_cast<std::size_t>(length));
    if (fits) break;
  }
  return from_utf16(to);
}

std::int32_t size(const std::u16string& text) { return static_cast<std::int32_t>(text.size()); }

Text normalized(const Text& text, const UNormalizer2* form) {
  return mapped(text, [&](const std::u16string& from, std::u16string& to, UErrorCode& code) {
    return unorm2_normalize(form, from.data(), size(from), to.data(), size(to), &code);
  });
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

Text nfc(const Text& text) {
  UErrorCode code = U_ZERO_ERROR;
  const UNormalizer2* form = unorm2_getNFCInstance(&code);
  check(code);
  return normalized(text, form);
}

Text nfkc(const Text& text) {
  UErrorCode code = U_ZERO_ERROR;
  const UNormalizer2* form = unorm2_getNFKCInstance(&code);
  check(code);
  return normalized(text, form);
}

Text lower(const Text& text) {
  return mapped(text, [](const std::u16string& from, std::u16string& to, UErrorCode& code) {
    return u_strToLower(to.data(), size(to), from.data(), size(from), "", &code);
  });
}

Text upper(const Text& text) {
  return mapped(text, [](const std::u16string& from, std::u16string& to, UErrorCode& code) {
    return u_strToUpper(to.data(), size(to), from.data(), size(from), "", &code);
  });
}

bool is_letter(char32_t c) {
  return U_GET_GC_MASK(static_cast<UChar32>(c)) & U_GC_L_MASK || is_in(kLaterLetters, c);
}
bool is_plain_letter(char32_t c) {
  return U_GET_GC_MASK(static_cast<UChar32>(c)) & (U_GC_L_MASK & ~U_GC_LM_MASK);
}
bool is_number(char32_t c) {
  return U_GET_GC_MASK(static_cast<UChar32>(c)) & U_GC_N_MASK || is_in(kLaterNumbers, c);
}
bool is_lower(char32_t c) { return u_charType(static_cast<UChar32>(c)) == U_LOWERCASE_LETTER; }
bool is_upper(char32_t c) {
  return U_GET_GC_MASK(static_cast<UChar32>(c)) & (U_GC_LU_MASK | U_GC_LT_MASK);
}
bool is_digit(char32_t c) { return u_charType(static_cast<UChar32>(c)) == U_DECIMAL_DIGIT_NUMBER; }

bool is_space(char32_t c) {
  // Python also splits at the four information separators, which Unicode does not call white space.
  return u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_WHITE_SPACE) ||
         (c >= 0x1C && c <= 0x1F);
}

std::u32string code_page(const char* name) {
  UErrorCode code = U_ZERO_ERROR;
  const std::unique_ptr<UConverter, void (*)(UConverter*)> converter(ucnv_open(name, &code),
                                                                     ucnv_close);
  check(code);
  std::u32string page;
  for (int byte = 0; byte < 256; ++byte) {
    const char raw = static_cast<char>(byte);
    UChar unit[4] = {};
    code = U_ZERO_ERROR;
    ucnv_toUChars(converter.get(), unit, 4, &raw, 1, &code);
    check(code);
    page += byte < 128 || unit[0] == 0xFFFD ? static_cast<char32_t>(byte) : char32_t{unit[0]};
  }
  return page;
}

}  // namespace stan_infer
