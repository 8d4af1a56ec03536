// CLIP's rules for a caption before it is split: ftfy, HTML twice, white space, lower case.
#pragma once

#include "unicode.hpp"

namespace stan_infer {

// Throws Error (bad_text) for a text that ftfy would repair as mojibake: that repair is not here.
Text clean_text(const Text& text);

}  // namespace stan_infer
