// In place of media.cpp, rgb.cpp and video.cpp where the library is built without FFmpeg.
#include "error.hpp"
#include "video.hpp"

namespace stan_infer {

Frames read_frames(const std::filesystem::path&, int, const Shrink&, const Call&,
                   const Reading&) {
  throw missing(
      "this library was built without FFmpeg, so it reads no video files; give decoded frames, or "
      "configure again with cmake -DSTAN_INFER_FFMPEG=ON");
}

Tensor rgb_of_planes(const ImageView&) {
  throw missing(
      "this library was built without FFmpeg, which turns nv12 and i420 into RGB; give frames as "
      "RGB or BGR, or configure again with cmake -DSTAN_INFER_FFMPEG=ON");
}

}  // namespace stan_infer
