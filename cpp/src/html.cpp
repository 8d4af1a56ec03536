#include "html.hpp"

#include <algorithm>
#include <sstream>
#include <unordered_map>

#include "html_entities.hpp"

namespace stan_infer {
namespace {

using Entities = std::unordered_map<std::string, Text>;

constexpr std::size_t kLongestName = 32;  // Python looks no further; "&" and ";" not counted

// Of "name=code points in hexadecimal ...".
Entities read_entities(const char* list) {
  Entities entities;
  std::istringstream closed(list);
  for (std::string entry; closed >> entry;) {
    const std::size_t equals = entry.find('=');
    Text value;
    std::istringstream points(entry.substr(equals + 1));
    for (std::string hex; std::getline(points, hex, '+');) {
      value += static_cast<char32_t>(std::stoul(hex, nullptr, 16));
    }
    entities[entry.substr(0, equals) + ";"] = value;
  }
  return entities;
}

// The entity named by the longest beginning of `name` (at least two characters), or nullptr.
const Text* longest_entity(const Entities& entities, const std::string& name, std::size_t& used) {
  for (used = name.size(); used > 1; --used) {
    if (const auto found = entities.find(name.substr(0, used)); found != entities.end()) {
      return &found->second;
    }
  }
  const auto found = entities.find(name);
  return found == entities.end() ? nullptr : &found->second;
}

const Entities& standard_entities() {
  static const Entities entities = [] {
    Entities result = read_entities(kEntities);
    std::istringstream legacy(kLegacyEntities);
    for (std::string name; legacy >> name;) result[name] = result.at(name + ";");
    return result;
  }();
  return entities;
}

// Entities that end in a semicolon, and their names in capitals where HTML does not know those.
const Entities& clear_entities() {
  static const Entities clear = [] {
    Entities result = read_entities(kCapitalEntities);
    const Entities& standard = standard_entities();
    for (const auto& [name, value] : standard) {
      if (name.back() != ';') continue;
      result[name] = value;
      std::string capitals = name;
      bool lower_case = true;
      for (char& c : capitals) {
        lower_case = lower_case && !(c >= 'A' && c <= 'Z');
        if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 32);
      }
      std::size_t used = 0;
      if (lower_case && !longest_entity(standard, capitals, used)) result.emplace(capitals, value);
    }
    return result;
  }();
  return clear;
}

int hex_digit(char32_t c) {
  if (c >= '0' && c <= '9') return static_cast<int>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<int>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<int>(c - 'A' + 10);
  return -1;
}

bool is_alphanumeric(char32_t c) {
  return hex_digit(c) >= 0 || (c >= 'g' && c <= 'z') || (c >= 'G' && c <= 'Z');
}

Text character(char32_t number) {
  if (number == 0) return U"\xFFFD";
  if (number >= 0x80 && number <= 0x9F) return {c1_as_windows_1252(number)};
  if ((number >= 0xD800 && number <= 0xDFFF) || number > 0x10FFFF) return U"\xFFFD";
  const bool control =
      number < 0x20 && number != '\t' && number != '\n' && number != '\f' && number != '\r';
  const bool none = (number & 0xFFFE) == 0xFFFE || (number >= 0xFDD0 && number <= 0xFDEF);
  if (control || number == 0x7F || none) return {};
  return {number};
}

// Reads "#123", "#x1F" at `at` (the place of '#'); moves `at` behind it. False: no number there.
bool read_number(const Text& text, std::size_t& at, char32_t& number) {
  std::size_t i = at + 1;
  const bool hex = i < text.size() && (text[i] == 'x' || text[i] == 'X');
  if (hex) ++i;
  const std::size_t begin = i;
  number = 0;
  for (; i < text.size(); ++i) {
    const int digit = hex_digit(text[i]);
    if (digit < 0 || (!hex && digit > 9)) break;
    number = std::min<char32_t>(number * (hex ? 16 : 10) + static_cast<char32_t>(digit), 0x110000);
  }
  if (i == begin) return false;
  at = i;
  return true;
}

}  // namespace

char32_t c1_as_windows_1252(char32_t c) {
  static constexpr char16_t table[32] = {
      0x20AC, 0x81,   0x201A, 0x192,  0x201E, 0x2026, 0x2020, 0x2021, 0x2C6,  0x2030, 0x160,
      0x2039, 0x152,  0x8D,   0x17D,  0x8F,   0x90,   0x2018, 0x2019, 0x201C, 0x201D, 0x2022,
      0x2013, 0x2014, 0x2DC,  0x2122, 0x161,  0x203A, 0x153,  0x9D,   0x17E,  0x178};
  return c >= 0x80 && c <= 0x9F ? table[c - 0x80] : c;
}

Text html_unescape(const Text& text) {
  Text result;
  std::size_t i = 0;
  while (i < text.size()) {
    if (text[i] != '&' || i + 1 == text.size()) {
      result += text[i++];
      continue;
    }
    std::size_t at = i + 1;
    if (text[at] == '#') {
      char32_t number = 0;
      if (read_number(text, at, number)) {
        result += character(number);
        i = at < text.size() && text[at] == ';' ? at + 1 : at;
      } else {
        result += text[i++];
      }
      continue;
    }
    std::string name;
    for (; at < text.size() && name.size() < kLongestName; ++at) {
      const char32_t c = text[at];
      if (c == '\t' || c == '\n' || c == '\f' || c == ' ' || c == '<' || c == '&' || c == '#' ||
          c == ';') {
        break;
      }
      name += c < 128 ? static_cast<char>(c) : '\x7F';  // no entity has such a character
    }
    if (!name.empty() && at < text.size() && text[at] == ';') name += ';';
    std::size_t used = 0;
    const Text* value = name.empty() ? nullptr : longest_entity(standard_entities(), name, used);
    if (value) {
      result += *value;
      i += 1 + used;
    } else {
      result += text[i++];
    }
  }
  return result;
}

Text unescape_clear_entities(const Text& text) {
  Text result;
  std::size_t i = 0;
  while (i < text.size()) {
    std::size_t end = i + 1;
    if (text[i] == '&') {
      if (end < text.size() && text[end] == '#') ++end;
      const std::size_t begin = end;
      while (end < text.size() && end - begin < 24 && is_alphanumeric(text[end])) ++end;
      if (end > begin && end < text.size() && text[end] == ';') {
        ++end;
        const Text whole = text.substr(i, end - i);
        const auto found = clear_entities().find(to_utf8(whole.substr(1)));
        if (found != clear_entities().end()) {
          result += found->second;
        } else if (whole[1] == '#') {
          const Text value = html_unescape(whole);
          result += value.find(U';') == Text::npos ? value : whole;
        } else {
          result += whole;
        }
        i = end;
        continue;
      }
    }
    result += text[i++];
  }
  return result;
}

}  // namespace stan_infer
