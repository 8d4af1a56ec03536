// Values of manifest.json, checked as they are taken. Private to the manifest's reader.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "manifest.hpp"

namespace stan_infer {

using Json = nlohmann::json;

[[noreturn]] void fail(const std::string& what);  // of manifest.json, as Error (bad_folder)

// The value of UTF-8 without a byte order mark, where no key stands twice in an object and nothing
// is nested deeply.
Json parse_json(const std::string& text);

// Every reader takes the place of the value for its message, as "graphs[0].file".
const Json& member(const Json& object, std::string_view key, std::string_view where);
std::string text(const Json& value, const std::string& where);
std::int64_t integer(const Json& value, std::int64_t least, std::int64_t most,
                     const std::string& where);
double number(const Json& value, const std::string& where);
const Json& list(const Json& value, std::string_view where);
std::string spelled(double value);  // as in JSON, for a message

Config model_of(const Json& json);  // of "model"

}  // namespace stan_infer
