// Chosen frames of one video file as RGB pictures, decoded with FFmpeg's libraries.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tensor.hpp"

namespace stan_infer {

constexpr std::int64_t kMaxPixels = 1 << 26;  // of a frame

struct Frames {
  std::map<std::int64_t, Tensor> by_number;  // what `shrink` made of each chosen frame
  std::vector<std::int64_t> indices;         // chosen frames in order, with repeats
  std::int64_t total_frames = 0;
  std::string hdr;  // "PQ" or "HLG": the transfer that the file names; "" else
  int decoders = 1;  // that decoded it
};

// A full picture, uint8 [1, height, width, 3], already turned -> what is kept of it.
using Shrink = std::function<Tensor(const Tensor&)>;

// The frames, and what is thrown, do not depend on it.
struct Reading {
  int threads = 1;  // that may decode at once
  // Fewer pixels one thread decodes by itself, as several do not pay: a quarter of a second.
  std::int64_t least_pixels = 1 << 27;
};

// Throws Error (bad_video) for a file that is no video, is cut off, or is damaged where a frame is
// needed: damage is never concealed. Ends early with `call`.
Frames read_frames(const std::filesystem::path& path, int frames, const Shrink& shrink,
                   const Call& call = Call::endless(), const Reading& reading = {});

// RGB, uint8 [1, height, width, 3], of a checked image in nv12 or i420: as that of a video's frame.
Tensor rgb_of_planes(const ImageView& image);

}  // namespace stan_infer
