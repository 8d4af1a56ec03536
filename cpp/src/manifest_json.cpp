#include "manifest_json.hpp"

#include <cmath>
#include <set>
#include <vector>

#include "error.hpp"

namespace stan_infer {
namespace {

constexpr std::size_t kMaxItems = 1000;  // graphs, ports, axes
constexpr int kMaxDepth = 32;            // lists and objects inside each other

}  // namespace

void fail(const std::string& what) {
  throw bad_folder("manifest.json: " + what + "; export the checkpoint again");
}

Json parse_json(const std::string& text) {
  if (text.rfind("\xEF\xBB\xBF", 0) == 0) fail("it is not JSON: it begins with a byte order mark");
  std::vector<std::set<std::string>> open;  // the keys of each object that is not closed yet
  try {
    return Json::parse(text, [&](int depth, Json::parse_event_t event, const Json& value) {
      if (depth > kMaxDepth) fail("it is nested too deeply");
      if (event == Json::parse_event_t::object_start) open.emplace_back();
      if (event == Json::parse_event_t::object_end) open.pop_back();
      if (event == Json::parse_event_t::key &&
          !open.back().insert(value.get_ref<const std::string&>()).second) {
        fail("the key '" + shown(value.get_ref<const std::string&>(), 40) + "' is there twice");
      }
      return true;
    });
  } catch (const Json::exception& e) {
    fail("it is not JSON (" + shown(e.what(), 120) + ")");
  }
}

const Json& member(const Json& object, std::string_view key, std::string_view where) {
  const std::string place(where), name(key);
  if (!object.is_object()) fail(shown(place) + " is no object");
  const auto found = object.find(name);
  if (found == object.end()) fail("'" + name + "' is missing in " + shown(place));
  return *found;
}

std::string text(const Json& value, const std::string& where) {
  if (!value.is_string()) fail(shown(where) + " is no string");
  return value.get<std::string>();
}

std::int64_t integer(const Json& value, std::int64_t least, std::int64_t most,
                     const std::string& where) {
  // As double first: an unsigned number or a float may be beyond what int64 holds.
  const double size = value.is_number() ? value.get<double>() : NAN;
  if (!(std::abs(size) <= 1e15) || size != std::floor(size) || value.get<std::int64_t>() < least ||
      value.get<std::int64_t>() > most) {
    fail(shown(where) + " is " + shown(value.dump(-1, ' ', true), 40) + ", not an integer from " +
         std::to_string(least) + " to " + std::to_string(most));
  }
  return value.get<std::int64_t>();
}

double number(const Json& value, const std::string& where) {
  if (!value.is_number() || !std::isfinite(value.get<double>())) {
    fail(shown(where) + " is no finite number");
  }
  return value.get<double>();
}

const Json& list(const Json& value, std::string_view where) {
  if (!value.is_array() || value.size() > kMaxItems) {
    fail(shown(std::string(where)) + " is no list of at most " + std::to_string(kMaxItems) + " items");
  }
  return value;
}

std::string spelled(double value) { return Json(value).dump(); }

}  // namespace stan_infer
