// Unicode text as code points, and what ICU knows about them.
//
// ICU rather than a smaller library: lower case here must be Python's, with the final sigma, which
// needs properties that small libraries do not carry; and ICU holds the code pages for mojibake.
#pragma once

#include <string>

namespace stan_infer {

using Text = std::u32string;

Text from_utf8(const std::string& utf8);  // throws Error where it is not UTF-8
std::string to_utf8(const Text& text);

Text nfc(const Text& text);
Text nfkc(const Text& text);
Text lower(const Text& text);
Text upper(const Text& text);

// General categories. Letters and numbers are those of Unicode 16, also with an older ICU.
bool is_letter(char32_t c);        // L
bool is_plain_letter(char32_t c);  // L, but not Lm
bool is_number(char32_t c);        // N
bool is_lower(char32_t c);         // Ll
bool is_upper(char32_t c);         // Lu or Lt
bool is_digit(char32_t c);         // Nd
bool is_space(char32_t c);         // as Python's str.split

// The character of each byte of a code page by ICU's name; bytes without one stand for themselves.
std::u32string code_page(const char* name);

}  // namespace stan_infer
