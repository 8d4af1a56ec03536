// Frames in the memory of a caller: which are taken, and their pixels as RGB.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor.hpp"

namespace stan_infer {

// Frame numbers that the model's authors take: they go by number, not by time; a video with fewer
// than `frames` repeats some.
std::vector<std::int64_t> sample_indices(std::int64_t total_frames, int frames);

// The numbers of the frames of a clip, of `count` that are there; `frames`: T of the model. Throws
// Error (bad_argument).
std::vector<std::int64_t> choose_frames(std::size_t count, int frames, const FrameOptions& options);

// Throws Error (bad_argument) unless each plane has the memory that the image's size needs. Reads
// no pixel. name: of the frame, for the message.
void check_image(const ImageView& image, const std::string& name);

// uint8 [1, height, width, 3]: the caller's memory where it is RGB without gaps, else `copy`.
View rgb_of(const ImageView& image, Tensor& copy);

}  // namespace stan_infer
