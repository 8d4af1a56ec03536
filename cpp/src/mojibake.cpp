// ftfy repairs a text if its characters, written in some old code page, are UTF-8, and if the text
// has improbable neighbours. Here the first is computed and the second is a coarser question, which
// must be true wherever ftfy's is: then no text is ever tokenised otherwise than in Python.
#include "mojibake.hpp"

#include <unordered_map>
#include <vector>

#include "html.hpp"

namespace stan_infer {
namespace {

struct Page {
  std::unordered_map<char32_t, unsigned char> bytes;
  bool windows = false;    // ftfy looks for lost bytes ('?') only in these
  bool macintosh = false;  // and for lost no-break spaces not in this
};

const std::vector<Page>& pages() {
  static const std::vector<Page> all = [] {
    std::vector<Page> result;
    for (const auto& [name, characters] : code_pages()) {
      Page page;
      for (std::size_t byte = 0; byte < 256; ++byte) {
        page.bytes.emplace(characters[byte], static_cast<unsigned char>(byte));
      }
      page.windows = name.substr(0, 3) == "win";
      page.macintosh = name == "mac-roman";
      if (page.windows) page.bytes.emplace(0xFFFD, 0x1A);  // a byte that was lost before
      result.push_back(std::move(page));
    }
    return result;
  }();
  return all;
}

// Bytes of a UTF-8 character that begins with `lead`; 0: none begins so. 0xC0 is Java's zero.
std::size_t length_of(unsigned char lead) {
  if (lead == 0xC0 || (lead >= 0xC2 && lead < 0xE0)) return 2;
  return lead < 0xE0 ? 0 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
}

// Spaces stand for a lost no-break space (0xA0), 0x1A and '?' for a lost byte.
bool continues(unsigned char byte) {
  return (byte & 0xC0) == 0x80 || byte == ' ' || byte == 0x1A || byte == '?';
}

// Whether ftfy would take a space at this place of a character for a no-break space.
bool space_counts(unsigned char lead, std::size_t place) {
  if (lead < 0xE0) {
    return lead == 0xC2 || lead == 0xC3 || lead == 0xC5 || lead == 0xCE || lead == 0xD0 ||
           lead == 0xD9;
  }
  return lead == 0xF0 || lead == 0xE2 || lead == 0xE3 || (lead < 0xE2 && place > 1);
}

// Length of the character of several bytes that begins at `i`, all in this page; 0: there is none.
std::size_t sequence_at(const Page& page, const Text& text, std::size_t i) {
  const auto found = page.bytes.find(text[i]);
  const unsigned char lead = found == page.bytes.end() ? 0 : found->second;
  const std::size_t length = length_of(lead);
  if (length == 0 || i + length > text.size()) return 0;
  int spaces = 0, questions = 0;
  for (std::size_t k = 1; k < length; ++k) {
    const auto next = page.bytes.find(text[i + k]);
    if (next == page.bytes.end() || !continues(next->second)) return 0;
    if (next->second == ' ') {
      if (page.macintosh || !space_counts(lead, k)) return 0;
      ++spaces;
    } else if (next->second < 0x80) {
      if (!page.windows || (next->second == '?' && length == 2 && lead > 0xC3)) return 0;
      questions += next->second == '?';
    }
  }
  return spaces < 2 && (questions < 2 || lead == 0xED) ? length : 0;
}

bool is_utf8_in(const Page& page, const Text& text) {
  bool several = false;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = sequence_at(page, text, i);
    if (length == 0) {
      const auto found = page.bytes.find(text[i]);
      if (found == page.bytes.end() || found->second >= 0x80) return false;
    }
    several = several || length > 0 || text[i] == 0xFFFD;
    i += length ? length : 1;
  }
  return several;
}

enum class Kind { ascii, letter, ordinary, opening, closing, odd };

Kind kind_of(char32_t c) {
  if (c < 0x80) return Kind::ascii;
  switch (c) {
    case 0xA0:
    case 0xAD:
    case 0xB4:
    case 0xB7:  // spaces, dashes, dots and
    case 0x2013:
    case 0x2014:
    case 0x2015:
    case 0x2019:
    case 0x2026:  // apostrophes of real text
      return Kind::ordinary;
    case 0xA1:
    case 0xA9:
    case 0xAB:
    case 0xBF:
    case 0x384:
    case 0x385:
    case 0x2018:
    case 0x201A:
    case 0x201C:
    case 0x201E:
    case 0x2022:
    case 0x2039:
    case 0xF8FF:
      return Kind::opening;
    case 0xAE:
    case 0xBB:
    case 0x2DD:
    case 0x201D:
    case 0x203A:
    case 0x2122:
      return Kind::closing;
    case 0xAA:
    case 0xBA:
    case 0xB5:
    case 0x192:  // ordinals, micro, florin: signs, not letters
      return Kind::odd;
    default:
      return is_plain_letter(c) ? Kind::letter : Kind::odd;
  }
}

bool is_latin(char32_t c) { return c < 0x80 && is_letter(c); }
bool is_word(char32_t c) { return is_letter(c) || is_number(c) || c == '_'; }

// Whether `a` beside `b` is what hardly any real text has; one character of context on each side.
bool improbable(char32_t before, char32_t a, char32_t b, char32_t after) {
  switch (a) {
    case 0x152:
    case 0x153:  // oe
      return !is_latin(b);
    case 0xC2:
    case 0xC3:  // a with circumflex, tilde: begin most sequences
      return b >= 0x80 || b == ' ';
    case 0xCE:
    case 0xD0:
      return b >= 0x80;
    case 0xD8:
    case 0xD9:  // begin Arabic letters
      if (b >= 0x80 && !(kind_of(b) == Kind::letter && is_lower(b))) return true;
      break;
    case 0x201A:
      return b >= 0x80;
    default:
      break;
  }
  const Kind left = kind_of(a), right = kind_of(b);
  if (a >= 0x80 && a < 0xA0) return true;
  if (left == Kind::ascii || right == Kind::ascii) return false;
  if (left == Kind::ordinary || right == Kind::ordinary) return false;
  if (left == Kind::odd || right == Kind::odd) return true;
  if (right == Kind::letter) {
    return left == Kind::closing || (left == Kind::letter && is_lower(a) && is_upper(b));
  }
  return left == Kind::letter &&
         (is_word(after) || after >= 0x80 || (is_latin(before) && is_upper(a)));
}

bool has_improbable_pair(const Text& text) {
  const auto at = [&](std::size_t i) { return i < text.size() ? text[i] : U'\n'; };
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (improbable(i ? text[i - 1] : U'\n', text[i], at(i + 1), at(i + 2))) return true;
  }
  return false;
}

// What a character may be in some page: bits 2 to 4: it begins one of so many bytes; bit 0: it
// continues one.
unsigned part_of(char32_t c) {
  static const std::unordered_map<char32_t, unsigned> all = [] {
    std::unordered_map<char32_t, unsigned> result;
    for (const Page& page : pages()) {
      for (const auto& [character, byte] : page.bytes) {
        const std::size_t length = length_of(byte);
        result[character] |= (length ? 1u << length : 0u) | (continues(byte) ? 1u : 0u);
      }
    }
    return result;
  }();
  const auto found = all.find(c);
  return found == all.end() ? 0 : found->second;
}

// For each place the end of the run that begins there, of what could be characters of several
// bytes, pages mixed; itself where there is none.
std::vector<std::size_t> run_ends(const Text& text) {
  std::vector<unsigned> parts;
  for (char32_t c : text) parts.push_back(part_of(c));
  std::vector<std::size_t> ends(text.size() + 1, text.size());
  for (std::size_t i = text.size(); i-- > 0;) {
    ends[i] = i;
    std::size_t length = 2;  // the shortest counts
    for (std::size_t next = i + 1; length <= 4 && next < text.size(); ++next, ++length) {
      if (!(parts[next] & 1)) break;
      if (parts[i] & (1u << length)) {
        ends[i] = ends[i + length];
        break;
      }
    }
  }
  return ends;
}

bool is_repairable(const Text& line) {
  if (!has_improbable_pair(line)) return false;
  for (const Page& page : pages()) {
    if (is_utf8_in(page, line)) return true;
  }
  // Of all runs to one end the longest has what any of them has. No more than four runs cross at
  // one place, so all this takes time in proportion to the length of the line.
  const std::vector<std::size_t> ends = run_ends(line);
  std::vector<bool> seen(line.size() + 1, false);
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (ends[i] == i || seen[ends[i]]) continue;
    seen[ends[i]] = true;
    const Text run = line.substr(i, ends[i] - i);
    if (!has_improbable_pair(run)) continue;
    for (const Page& page : pages()) {
      for (std::size_t k = 0; k < run.size(); ++k) {
        if (run[k] >= 0x80 && sequence_at(page, run, k)) return true;
      }
    }
  }
  return false;
}

}  // namespace

bool looks_like_mojibake(const Text& line) {
  if (is_repairable(line)) return true;
  // C1 controls are replaced first where that is all that can be done, and then all is tried again.
  Text replaced = line;
  for (char32_t& c : replaced) c = c1_as_windows_1252(c);
  return replaced != line && is_repairable(replaced);
}

}  // namespace stan_infer
