#include "clean_text.hpp"

#include <unordered_map>

#include "error.hpp"
#include "html.hpp"
#include "mojibake.hpp"

namespace stan_infer {
namespace {

// The steps have the names and the order of ftfy 6.3 with its default settings.

Text replaced(const Text& text, const std::unordered_map<char32_t, Text>& table) {
  Text result;
  for (char32_t c : text) {
    const auto found = table.find(c);
    found == table.end() ? void(result += c) : void(result += found->second);
  }
  return result;
}

Text fix_c1_controls(Text text) {
  for (char32_t& c : text) c = c1_as_windows_1252(c);
  return text;
}

Text fix_latin_ligatures(const Text& text) {
  static const std::unordered_map<char32_t, Text> table = {
      {0x132, U"IJ"},      {0x133, U"ij"},     {0x149, U"\x2BCn"}, {0x1C4, U"D\x17D"},
      {0x1C5, U"D\x17E"},  {0x1C6, U"d\x17E"}, {0x1C7, U"LJ"},     {0x1C8, U"Lj"},
      {0x1C9, U"lj"},      {0x1CA, U"NJ"},     {0x1CB, U"Nj"},     {0x1CC, U"nj"},
      {0x1F1, U"DZ"},      {0x1F2, U"Dz"},     {0x1F3, U"dz"},     {0xFB00, U"ff"},
      {0xFB01, U"fi"},     {0xFB02, U"fl"},    {0xFB03, U"ffi"},   {0xFB04, U"ffl"},
      {0xFB05, U"\x17Ft"}, {0xFB06, U"st"}};
  return replaced(text, table);
}

Text fix_character_width(const Text& text) {
  static const std::unordered_map<char32_t, Text> table = [] {
    std::unordered_map<char32_t, Text> widths = {{0x3000, U" "}};
    for (char32_t c = 0xFF01; c < 0xFFF0; ++c) widths[c] = nfkc({c});
    return widths;
  }();
  return replaced(text, table);
}

Text uncurl_quotes(Text text) {
  for (char32_t& c : text) {
    if (c == 0x2BC || (c >= 0x2018 && c <= 0x201B)) c = U'\'';
    if (c >= 0x201C && c <= 0x201F) c = U'"';
  }
  return text;
}

Text fix_line_breaks(const Text& text) {
  Text result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    if (c == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    result += c == '\r' || c == 0x2028 || c == 0x2029 || c == 0x85 ? U'\n' : c;
  }
  return result;
}

// Colours and the like: ESC [ digits and semicolons, then a letter.
Text remove_terminal_escapes(const Text& text) {
  Text result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::size_t end = i + 2;
    if (text[i] == 0x1B && i + 1 < text.size() && text[i + 1] == '[') {
      while (end < text.size() && (is_digit(text[end]) || text[end] == ';')) ++end;
      if (end < text.size() && text[end] < 128 && is_letter(text[end])) {
        i = end;
        continue;
      }
    }
    result += text[i];
  }
  return result;
}

Text remove_control_chars(const Text& text) {
  Text result;
  for (char32_t c : text) {
    const bool control = c < 9 || c == 0xB || (c >= 0xE && c < 0x20) || c == 0x7F ||
                         (c >= 0x206A && c < 0x2070) || c == 0xFEFF || (c >= 0xFFF9 && c < 0xFFFD);
    if (!control) result += c;
  }
  return result;
}

Text fix_line(Text line, bool unescape) {
  while (true) {
    const Text before = line;
    if (unescape) line = unescape_clear_entities(line);
    if (looks_like_mojibake(line)) {
      throw bad_text("the text '" + shown(to_utf8(line)) +
                     "' looks as if it had been decoded with the wrong character set, which the "
                     "Python package would repair and this program cannot; write it correctly");
    }
    line = fix_latin_ligatures(fix_c1_controls(line));
    line = fix_line_breaks(uncurl_quotes(fix_character_width(line)));
    line = nfc(remove_control_chars(remove_terminal_escapes(line)));
    if (line == before) return line;
  }
}

Text fix_text(const Text& text) {
  Text result;
  bool unescape = true;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t found = text.find(U'\n', at);
    const std::size_t end = found == Text::npos ? text.size() : found + 1;
    const Text line = text.substr(at, end - at);
    // A "<" means that the text is HTML, on this line and on all that follow.
    if (line.find(U'<') != Text::npos) unescape = false;
    result += fix_line(line, unescape);
    at = end;
  }
  return result;
}

}  // namespace

Text clean_text(const Text& text) {
  const Text plain = html_unescape(html_unescape(fix_text(text)));
  Text words;
  for (char32_t c : plain) {
    if (!is_space(c)) {
      words += c;
    } else if (!words.empty() && words.back() != U' ') {
      words += U' ';
    }
  }
  if (!words.empty() && words.back() == U' ') words.pop_back();
  return lower(words);
}

}  // namespace stan_infer
