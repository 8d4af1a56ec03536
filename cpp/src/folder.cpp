#include "folder.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "error.hpp"
#include "sha256.hpp"

namespace stan_infer {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }
  int release() { return std::exchange(value_, -1); }
  void reset(int value) {
    if (value_ >= 0) close(value_);
    value_ = value;
  }

 private:
  int value_;
};

std::string reason() { return std::strerror(errno); }

Bytes read_all(int descriptor, const std::string& name, std::uint64_t limit) {
  struct stat status {};
  if (fstat(descriptor, &status) != 0) throw bad_folder("cannot read " + name + ": " + reason());
  if (!S_ISREG(status.st_mode)) throw bad_folder(name + " is not a regular file; give a file");
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size > limit) {
    throw bad_folder(name + " has " + std::to_string(size) + " bytes; at most " +
                     std::to_string(limit) + " are read");
  }
  Bytes bytes(size);
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::read(descriptor, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw bad_folder("cannot read " + name + ": " + reason());
    if (n == 0) throw bad_folder(name + " became shorter while it was read; try again");
    done += static_cast<std::size_t>(n);
  }
  return bytes;
}

// Of an open file: place, size, times of change.
Folder::Identity identity(int descriptor, const std::string& name) {
  struct stat s {};
  if (fstat(descriptor, &s) != 0) throw bad_folder("cannot read " + name + ": " + reason());
  if (!S_ISREG(s.st_mode)) throw bad_folder(name + " is not a regular file; give a file");
  return {static_cast<std::int64_t>(s.st_dev),
          static_cast<std::int64_t>(s.st_ino),
          s.st_size,
          s.st_mtim.tv_sec,
          s.st_mtim.tv_nsec,
          s.st_ctim.tv_sec,
          s.st_ctim.tv_nsec};
}

Error other_size(const std::string& name, std::int64_t size, std::uint64_t wanted) {
  return bad_folder(name + " has " + std::to_string(size) + " bytes, manifest.json says " +
                    std::to_string(wanted) + ": incomplete copy? export the checkpoint again");
}

}  // namespace

bool is_plain_name(const std::string& name) {
  if (name.empty() || name.size() > 200) return false;
  std::size_t begin = 0;
  while (begin <= name.size()) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    for (char c : part) {
      const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                         (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
      if (!plain) return false;
    }
    begin = end + 1;
  }
  return true;
}

Bytes read_file(const std::filesystem::path& path, std::uint64_t limit) {
  // O_NONBLOCK: opening a FIFO would wait for ever; for a regular file it means nothing.
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) throw bad_folder("cannot open " + path.string() + ": " + reason());
  return read_all(file.get(), path.string(), limit);
}

Folder::Folder(const std::filesystem::path& path)
    : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (descriptor_ < 0) {
    throw bad_folder("cannot open the folder " + path.string() + ": " + reason() +
                     "; make one with stan-infer export CHECKPOINT -o FOLDER");
  }
}

Folder::~Folder() { close(descriptor_); }

std::vector<std::string> Folder::names(std::size_t most) const {
  std::vector<std::string> found;
  try {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path_)) {
      std::string name = entry.path().lexically_relative(path_).generic_string();
      if (entry.is_symlink()) {
        throw bad_folder(path_.string() + ": " + shown(name) +
                         " is a link, which may lead out of the folder; put the file itself in its "
                         "place");
      }
      if (entry.is_directory()) name += "/";
      found.push_back(std::move(name));
      if (found.size() > most) throw bad_folder(path_.string() + " holds too many files");
    }
  } catch (const std::filesystem::filesystem_error& e) {
    throw bad_folder("cannot list the folder " + path_.string() + ": " + e.code().message());
  }
  return found;
}

int Folder::open_file(const std::string& name) const {
  const std::string full = (path_ / shown(name)).string();
  if (!is_plain_name(name)) {
    throw bad_folder("manifest.json names the file '" + shown(name) +
                     "'; names must be relative, stay in the folder and consist of letters, "
                     "digits and _ . - /");
  }
  Descriptor at(-1);
  std::size_t begin = 0;
  while (true) {
    const std::size_t slash = name.find('/', begin);
    const std::string part = name.substr(begin, slash == std::string::npos ? slash : slash - begin);
    const int flags = slash == std::string::npos ? O_NONBLOCK : O_DIRECTORY;
    const int from = at.get() < 0 ? descriptor_ : at.get();
    const int next = openat(from, part.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | flags);
    if (next < 0) {
      throw bad_folder("cannot open " + full + ": " +
                       (errno == ELOOP || (errno == ENOTDIR && flags == O_DIRECTORY)
                            ? "links are not followed"
                            : reason()) +
                       "; export the checkpoint again");
    }
    at.reset(next);
    if (slash == std::string::npos) return at.release();
    begin = slash + 1;
  }
}

Bytes Folder::read(const std::string& name, std::uint64_t limit) const {
  const Descriptor file(open_file(name));
  return read_all(file.get(), (path_ / name).string(), limit);
}

void Folder::check_size(const std::string& name, std::uint64_t bytes) const {
  const Descriptor file(open_file(name));
  const std::string full = (path_ / name).string();
  const std::int64_t size = identity(file.get(), full)[2];
  if (static_cast<std::uint64_t>(size) != bytes) throw other_size(full, size, bytes);
}

Bytes Folder::read_checked(const std::string& name, std::uint64_t bytes,
                           const std::string& sha256) const {
  const Descriptor file(open_file(name));
  const std::string full = (path_ / name).string();
  const Identity before = identity(file.get(), full);
  if (static_cast<std::uint64_t>(before[2]) != bytes) throw other_size(full, before[2], bytes);
  Bytes content = read_all(file.get(), full, bytes);
  if (content.size() != bytes) throw bad_folder(full + " became shorter; try again");
  if (const auto known = hashed_.find(name); known != hashed_.end() && known->second == before) {
    return content;
  }
  if (sha256_hex(content.data(), content.size()) != sha256) {
    throw changed("the SHA-256 of " + full +
                  " is not the one in manifest.json: the file was changed after the export; "
                  "export the checkpoint again");
  }
  // A time stamp has a grain: what is changed while it is read must not pass as the same later.
  if (identity(file.get(), full) == before) hashed_[name] = before;
  return content;
}

}  // namespace stan_infer
