// Files of an exported folder, opened so that nothing outside of it is ever read.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace stan_infer {

using Bytes = std::vector<std::byte>;

// Whether `name` is a relative path of plain names: no "..", no absolute path, no odd characters.
bool is_plain_name(const std::string& name);

// Whole content of a regular file of at most `limit` bytes.
Bytes read_file(const std::filesystem::path& path, std::uint64_t limit);

// A folder, held open by its descriptor.
class Folder {
 public:
  using Identity = std::array<std::int64_t, 7>;  // of an open file: place, size, times of change

  explicit Folder(const std::filesystem::path& path);
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::filesystem::path& path() const { return path_; }

  // Read `name`; links are refused at every step, so a name cannot lead out of the folder.
  Bytes read(const std::string& name, std::uint64_t limit) const;

  // Names of all that lies in it, at any depth, with "/" at the end of folders. Throws Error for a
  // link, and where there are more than `most`.
  std::vector<std::string> names(std::size_t most) const;

  // Throws Error unless the file is there, not a link, and has so many bytes.
  void check_size(const std::string& name, std::uint64_t bytes) const;

  // As read, and the content must be what the manifest promises. It is hashed once: not again while
  // the file stays the one that it was.
  Bytes read_checked(const std::string& name, std::uint64_t bytes, const std::string& sha256) const;

 private:
  int open_file(const std::string& name) const;

  std::filesystem::path path_;
  int descriptor_;
  mutable std::map<std::string, Identity> hashed_;
};

}  // namespace stan_infer
