// The named character references of HTML, as text; html.cpp reads them.
#pragma once

namespace stan_infer {

extern const char* const kEntities;         // "AElig=c6 AMP=26 ..."
extern const char* const kLegacyEntities;   // "AElig AMP ..."
extern const char* const kCapitalEntities;  // "AACUTE=c1 ...": in capitals, for ftfy

}  // namespace stan_infer
