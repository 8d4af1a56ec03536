// What the command line names: videos in folders and lists, and texts in files.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace stan_infer {

// Files as given; of folders all videos below them, sorted, as `stan-infer run` finds them. Throws
// Error (bad_argument) for what is not there, and for a folder without a video.
std::vector<std::filesystem::path> list_videos(const std::vector<std::filesystem::path>& paths);

// The lines of a UTF-8 file that are not blank, without white space at their ends; `what` is for
// errors: "texts". Throws Error (bad_argument).
std::vector<std::string> read_lines(const std::filesystem::path& file, const std::string& what);

// Class names, one per line. The other forms of `stan-infer run --labels` are refused.
std::vector<std::string> read_label_file(const std::filesystem::path& file);

// Throws Error (bad_argument) for one that is there twice.
void check_once(const std::vector<std::string>& texts, const std::string& where);

}  // namespace stan_infer
