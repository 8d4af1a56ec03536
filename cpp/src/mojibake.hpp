// Whether a text looks as if it had been decoded with the wrong code page ("Ã©" for "é").
#pragma once

#include "unicode.hpp"

namespace stan_infer {

// True wherever ftfy would repair the text, and for a few texts more, but never for ASCII.
bool looks_like_mojibake(const Text& line);

}  // namespace stan_infer
