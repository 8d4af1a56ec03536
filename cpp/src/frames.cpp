#include "frames.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "video.hpp"

namespace stan_infer {
namespace {

constexpr std::size_t kMostFrames = 64;  // of a clip, as in Python
constexpr int kMostSide = 1 << 20;
constexpr std::size_t kMostStride = 1 << 30;

struct Layout {
  int planes = 0;
  std::array<std::size_t, 3> rows{}, bytes{};  // of each plane; bytes of a row
};

Layout layout_of(PixelFormat format, int width, int height) {
  const auto w = static_cast<std::size_t>(width), h = static_cast<std::size_t>(height);
  const std::size_t half_w = (w + 1) / 2, half_h = (h + 1) / 2;
  switch (format) {
    case PixelFormat::rgb:
    case PixelFormat::bgr:
      return {1, {h}, {w * 3}};
    case PixelFormat::nv12:
      return {2, {h, half_h}, {w, half_w * 2}};
    case PixelFormat::i420:
      return {3, {h, half_h, half_h}, {w, half_w, half_w}};
  }
  throw bad_argument("a frame has an unknown pixel format");
}

void check_size(const std::string& name, int width, int height) {
  const bool fits = width >= 1 && height >= 1 && width <= kMostSide && height <= kMostSide &&
                    std::int64_t{width} * height <= kMaxPixels;
  if (!fits) {
    throw bad_argument(name + " is " + std::to_string(width) + "x" + std::to_string(height) +
                       "; its sides must be 1 or more, and at most " + std::to_string(kMaxPixels) +
                       " pixels are allowed");
  }
}

// The frames nearest to the times of those that sample_indices would take at an even rate.
std::vector<std::int64_t> indices_in_time(const std::vector<double>& times, std::size_t count,
                                          int frames) {
  if (times.size() != count) {
    throw bad_argument("there are " + std::to_string(times.size()) + " timestamps for " +
                       std::to_string(count) + " frames; give one per frame");
  }
  // Twice: then all differences are finite.
  const bool finite =
      std::all_of(times.begin(), times.end(), [](double time) { return std::isfinite(2 * time); });
  if (!finite || !std::is_sorted(times.begin(), times.end())) {
    throw bad_argument("timestamps must be finite and must not fall; give seconds, oldest first");
  }
  const auto last = static_cast<std::int64_t>(count) - 1;
  std::vector<std::int64_t> wanted = sample_indices(last + 1, frames);
  if (times.back() == times.front()) return wanted;  // one frame, or a clock that stands still
  const auto time = [&](std::int64_t i) { return times[static_cast<std::size_t>(i)]; };
  for (std::int64_t& number : wanted) {
    const double at = times.front() + static_cast<double>(number) / static_cast<double>(last) *
                                          (times.back() - times.front());
    const auto found = std::lower_bound(times.begin(), times.end(), at) - times.begin();
    const std::int64_t right = std::clamp<std::int64_t>(found, 1, last);
    number = right - (at - time(right - 1) <= time(right) - at);
  }
  return wanted;
}

}  // namespace

ImageView ImageView::packed(PixelFormat format, const std::uint8_t* data, std::size_t size,
                            int width, int height) {
  check_size("the frame", width, height);
  const Layout layout = layout_of(format, width, height);
  ImageView image;
  image.format = format;
  image.width = width;
  image.height = height;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(layout.planes); ++i) {
    const std::size_t bytes = layout.rows[i] * layout.bytes[i];
    if (bytes > size - begin) {
      throw bad_argument("the frame has " + std::to_string(size) + " bytes; " +
                         std::to_string(width) + "x" + std::to_string(height) + " needs more");
    }
    image.planes[i] = {data ? data + begin : nullptr, bytes, layout.bytes[i]};
    begin += bytes;
  }
  return image;
}

std::vector<std::int64_t> sample_indices(std::int64_t total_frames, int frames) {
  const double segment = static_cast<double>(total_frames - 1) / frames;
  std::vector<std::int64_t> indices;
  for (int i = 0; i < frames; ++i) {
    // nearbyint rounds ties to even, as numpy does.
    indices.push_back(static_cast<std::int64_t>(std::nearbyint(segment * i)) +
                      static_cast<std::int64_t>(segment / 2));
  }
  return indices;
}

std::vector<std::int64_t> choose_frames(std::size_t count, int frames,
                                        const FrameOptions& options) {
  if (count == 0) throw bad_argument("there is no frame; give one or more");
  if (options.sample) {
    return options.timestamps.empty() ? sample_indices(static_cast<std::int64_t>(count), frames)
                                      : indices_in_time(options.timestamps, count, frames);
  }
  if (!options.timestamps.empty()) {
    throw bad_argument("timestamps choose frames, and sample = false takes all: give one");
  }
  if (count > kMostFrames) {
    throw bad_argument("there are " + std::to_string(count) + " frames, and sample = false takes " +
                       "them all; a model takes at most " + std::to_string(kMostFrames));
  }
  std::vector<std::int64_t> all(count);
  for (std::size_t i = 0; i < count; ++i) all[i] = static_cast<std::int64_t>(i);
  return all;
}

void check_image(const ImageView& image, const std::string& name) {
  check_size(name, image.width, image.height);
  const Layout layout = layout_of(image.format, image.width, image.height);
  for (std::size_t i = 0; i < static_cast<std::size_t>(layout.planes); ++i) {
    const Plane& plane = image.planes[i];
    const std::size_t rows = layout.rows[i], bytes = layout.bytes[i];
    const std::string place = name + ", plane " + std::to_string(i);
    if (!plane.data) throw bad_argument(place + " has no data");
    if (plane.stride < bytes || plane.stride > kMostStride) {
      throw bad_argument(place + " has a stride of " + std::to_string(plane.stride) +
                         "; it must be " + std::to_string(bytes) + " to " +
                         std::to_string(kMostStride) + " bytes");
    }
    // The last row needs no padding behind it.
    const bool fits = plane.size >= bytes && (plane.size - bytes) / plane.stride >= rows - 1;
    if (!fits) {
      throw bad_argument(place + " has " + std::to_string(plane.size) + " bytes, too few for " +
                         std::to_string(rows) + " rows of stride " + std::to_string(plane.stride));
    }
  }
}

View rgb_of(const ImageView& image, Tensor& copy) {
  if (image.format == PixelFormat::nv12 || image.format == PixelFormat::i420) {
    return copy = rgb_of_planes(image);
  }
  const std::size_t row = static_cast<std::size_t>(image.width) * 3;
  const Plane& plane = image.planes[0];
  const Shape shape{1, image.height, image.width, 3};
  if (image.format == PixelFormat::rgb && plane.stride == row) {
    return {DType::uint8, shape, plane.data};
  }
  copy = make_tensor(DType::uint8, shape);
  auto* to = copy.data<std::uint8_t>();
  for (int y = 0; y < image.height; ++y, to += row) {
    const std::uint8_t* from = plane.data + static_cast<std::size_t>(y) * plane.stride;
    if (image.format == PixelFormat::rgb) {
      std::copy(from, from + row, to);
    } else {
      for (std::size_t x = 0; x < row; x += 3) {
        to[x] = from[x + 2], to[x + 1] = from[x + 1], to[x + 2] = from[x];
      }
    }
  }
  return copy;
}

}  // namespace stan_infer
