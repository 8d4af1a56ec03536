// Errors that a user can do something about, each with the exit code of the program.
#pragma once

#include <stdexcept>
#include <string>

namespace stan_infer {

enum class Exit { ok = 0, bug = 1, bad_input = 2, missing = 3, check_failed = 4 };

class Error : public std::runtime_error {
 public:
  Error(Exit code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Exit code() const noexcept { return code_; }

 private:
  Exit code_;
};

inline Error bad_input(const std::string& message) { return {Exit::bad_input, message}; }
inline Error missing(const std::string& message) { return {Exit::missing, message}; }
inline Error check_failed(const std::string& message) { return {Exit::check_failed, message}; }

// Text of a stranger inside a message: at most `limit` bytes, control characters as '?'.
std::string shown(const std::string& text, std::size_t limit = 80);

}  // namespace stan_infer
