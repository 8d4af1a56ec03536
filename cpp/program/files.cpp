#include "files.hpp"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <stan_infer/stan_infer.hpp>

#include "options.hpp"

namespace stan_infer {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kMostBytes = 16 << 20;
constexpr std::size_t kMostLines = 100'000;

// As in stan_infer/video/find.py.
const std::set<std::string> kSuffixes = {
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts",   ".m2ts", ".mts",
    ".vob", ".flv", ".f4v",  ".wmv", ".asf", ".3gp", ".3g2", ".ogv",  ".mxf",  ".divx", ".h264",
    ".gif"};

// Names of columns in stan_infer/text/labels.py: a first line of one of them is a header there.
const std::set<std::string> kColumns = {
    "id",   "label_id", "class_id", "class_index", "index",      "number",   "target",
    "name", "label",    "class",    "class_name",  "label_name", "category", "action"};

Error bad(const std::string& what) { return {ErrorCode::bad_argument, what}; }

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::string stripped(const std::string& text) {
  const char* const space = " \t\n\v\f\r\x1c\x1d\x1e\x1f";
  const std::size_t begin = text.find_first_not_of(space);
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

bool is_hidden(const fs::path& path) { return path.filename().native()[0] == '.'; }

// All files below a folder but hidden ones. Links to folders are followed, each folder once.
void walk(const fs::path& folder, std::set<fs::path>& seen, std::vector<fs::path>& found) {
  std::vector<fs::path> folders;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (is_hidden(entry.path())) continue;
    std::error_code broken;  // a link to nowhere is a file that cannot be read
    (entry.is_directory(broken) ? folders : found).push_back(entry.path());
  }
  std::sort(folders.begin(), folders.end());
  // What lies here is known before what lies deeper: a link from there is passed over.
  const auto known = [&](const fs::path& inner) {
    return !seen.insert(fs::canonical(inner)).second;
  };
  folders.erase(std::remove_if(folders.begin(), folders.end(), known), folders.end());
  for (const fs::path& inner : folders) walk(inner, seen, found);
}

std::vector<fs::path> videos_below(const fs::path& folder) {
  std::vector<fs::path> found, videos;
  const fs::path real = fs::canonical(folder);
  std::set<fs::path> seen = {real};
  for (fs::path above = real; above != above.root_path();) {  // a link to one above leads nowhere
    above = above.parent_path();
    seen.insert(above);
  }
  walk(folder, seen, found);
  std::sort(found.begin(), found.end());
  std::copy_if(found.begin(), found.end(), std::back_inserter(videos), [](const fs::path& path) {
    return kSuffixes.count(lower(path.extension().string())) > 0;
  });
  if (videos.empty()) {
    throw bad("the folder " + shown(folder.string(), 4096) + " holds no video" +
              (fs::is_regular_file(folder / "manifest.json")
                   ? ": it is an exported folder; give one of videos"
                   : "; names of videos end with .mp4, .mkv, .mov and the like"));
  }
  if (const std::size_t others = found.size() - videos.size()) {
    say("warning: folder " + shown(folder.string(), 4096) + ": " + std::to_string(videos.size()) +
        " videos; " + std::to_string(others) + " other files are passed over");
  }
  return videos;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

std::vector<fs::path> list_videos(const std::vector<fs::path>& paths) {
  std::vector<fs::path> result;
  for (const fs::path& path : paths) {
    try {
      if (path.native().find('\0') != std::string::npos || !fs::exists(fs::symlink_status(path))) {
        throw bad("no such video file or folder: " + shown(path.string(), 4096) +
                  "; check the spelling");
      }
      if (!fs::is_directory(path)) {
        result.push_back(path);
        continue;
      }
      const std::vector<fs::path> below = videos_below(path);
      result.insert(result.end(), below.begin(), below.end());
    } catch (const fs::filesystem_error& e) {
      throw bad("cannot read " + shown(path.string(), 4096) + ": " + e.code().message());
    }
  }
  return result;
}

std::vector<std::string> read_lines(const fs::path& file, const std::string& what) {
  const std::string name = what + " " + shown(file.string(), 4096);
  std::error_code code;
  if (!fs::is_regular_file(file, code)) {
    throw bad(name + " is no file" + (code ? ": " + code.message() : "") +
              "; give a text file with one per line");
  }
  const std::uintmax_t size = fs::file_size(file, code);
  if (code || size > kMostBytes) {
    throw bad(name + " has more than " + std::to_string(kMostBytes) + " bytes");
  }
  std::ifstream stream(file, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(stream), {});
  if (stream.bad() || !stream.is_open()) throw bad("cannot read " + name);
  if (text.find('\0') != std::string::npos) throw bad(name + " has zero bytes: save it as UTF-8");
  if (text.compare(0, 3, "\xEF\xBB\xBF") == 0) text.erase(0, 3);
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find_first_of("\r\n", begin), text.size());
    if (std::string line = stripped(text.substr(begin, end - begin)); !line.empty()) {
      lines.push_back(std::move(line));
    }
    begin = end + 1;
  }
  if (lines.empty() || lines.size() > kMostLines) {
    throw bad(name + " has " + std::to_string(lines.size()) + " lines; allowed are 1 to " +
              std::to_string(kMostLines));
  }
  return lines;
}

std::vector<std::string> read_label_file(const fs::path& file) {
  const std::vector<std::string> names = read_lines(file, "labels");
  const auto refuse = [&](const std::string& why) {
    return bad("labels " + shown(file.string(), 4096) + ": " + why +
               "; give one name per line, alone (`stan-infer run` reads the other forms)");
  };
  std::size_t first = 0, last = 0;
  for (const std::string& name : names) {
    first += is_digit(name[0]);
    last += is_digit(name.back());
    const bool is_cell = name.find('\t') != std::string::npos || name[0] == '"' ||
                         std::string(",;|").find(name.back()) != std::string::npos;
    if (is_cell) throw refuse("'" + shown(name) + "' is a row of a table");
  }
  if (std::string("{[#").find(names[0][0]) != std::string::npos) {
    throw refuse("it begins as JSON or with a comment");
  }
  std::string cell;
  for (const char c : names[0] + ",") {
    if (c != ',' && c != ';') {
      cell += c;
    } else if (kColumns.count(lower(stripped(cell)))) {
      throw refuse("its first line is the header of a table");
    } else {
      cell.clear();
    }
  }
  if (names.size() > 1 && (2 * first > names.size() || last == names.size())) {
    throw refuse("numbers stand beside the names");
  }
  check_once(names, "labels " + shown(file.string(), 4096));
  return names;
}

void check_once(const std::vector<std::string>& texts, const std::string& where) {
  std::set<std::string> seen;
  for (const std::string& text : texts) {
    if (!seen.insert(text).second) {
      throw bad(where + ": '" + shown(text) + "' is there twice; give each once");
    }
  }
}

}  // namespace stan_infer
