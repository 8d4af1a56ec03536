// Errors of each kind, and a stranger's text inside them.
#pragma once

#include <stan_infer/stan_infer.hpp>
#include <string>

namespace stan_infer {

inline Error bad_argument(const std::string& what) { return {ErrorCode::bad_argument, what}; }
inline Error bad_folder(const std::string& what) { return {ErrorCode::bad_folder, what}; }
inline Error changed(const std::string& what) { return {ErrorCode::changed, what}; }
inline Error bad_video(const std::string& what) { return {ErrorCode::bad_video, what}; }
inline Error bad_text(const std::string& what) { return {ErrorCode::bad_text, what}; }
inline Error engine_failed(const std::string& what) { return {ErrorCode::engine, what}; }
inline Error missing(const std::string& what) { return {ErrorCode::missing, what}; }

// Text of a stranger inside a message: at most `limit` bytes, control characters as '?'.
std::string shown(const std::string& text, std::size_t limit = 80);

}  // namespace stan_infer
