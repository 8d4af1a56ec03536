// HTML character references in captions.
#pragma once

#include "unicode.hpp"

namespace stan_infer {

// As Python's html.unescape: also references without a semicolon, as browsers read them.
Text html_unescape(const Text& text);

// As ftfy does before anything else: only what ends in a semicolon, but also names in capitals.
Text unescape_clear_entities(const Text& text);

// Windows-1252's character for a C1 control (0x80 to 0x9F), which is what browsers take it for.
char32_t c1_as_windows_1252(char32_t c);

}  // namespace stan_infer
