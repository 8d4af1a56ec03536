// Files of an exported folder, opened so that nothing outside of it is ever read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace stan {

using Bytes = std::vector<std::byte>;

// Whether `name` is a relative path of plain names: no "..", no absolute path, no odd characters.
bool is_plain_name(const std::string& name);

// Whole content of a regular file of at most `limit` bytes.
Bytes read_file(const std::filesystem::path& path, std::uint64_t limit);

// A folder, held open by its descriptor.
class Folder {
 public:
  explicit Folder(const std::filesystem::path& path);
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::filesystem::path& path() const { return path_; }

  // Read `name`; links are refused at every step, so a name cannot lead out of the folder.
  Bytes read(const std::string& name, std::uint64_t limit) const;

  // As read, and the content must be what the manifest promises.
  Bytes read_checked(const std::string& name, std::uint64_t bytes, const std::string& sha256) const;

 private:
  std::filesystem::path path_;
  int descriptor_;
};

}  // namespace stan
