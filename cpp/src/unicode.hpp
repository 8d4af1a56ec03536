// Unicode text as code points, and what utf8proc and unicode_tables.hpp know about them.
#pragma once

#include <string>
#include <vector>

namespace stan_infer {

using Text = std::u32string;

Text from_utf8(const std::string& utf8);  // throws Error where it is not UTF-8
std::string to_utf8(const Text& text);

Text nfc(const Text& text);
Text nfkc(const Text& text);
Text lower(const Text& text);  // as Python's str.lower, with the final sigma

// General categories. Letters and numbers are those of Unicode 16, also with an older utf8proc.
bool is_letter(char32_t c);        // L
bool is_plain_letter(char32_t c);  // L, but not Lm
bool is_number(char32_t c);        // N
bool is_lower(char32_t c);         // Ll
bool is_upper(char32_t c);         // Lu or Lt
bool is_digit(char32_t c);         // Nd
bool is_space(char32_t c);         // as Python's str.split

// The characters of the 256 bytes; a byte without one stands for itself.
struct CodePage {
  std::string name;
  Text characters;
};

std::vector<CodePage> code_pages();  // those that ftfy takes mojibake from

}  // namespace stan_infer
