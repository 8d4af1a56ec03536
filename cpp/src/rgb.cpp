// A decoded frame -> upright RGB pixels, by the rules of stan_infer/video/rgb.py, which says why:
// rows of colour are spread here, fields are taken as one picture, and matrix and range are written
// down, so that FFmpeg's converter has nothing left that depends on its version or on how it is
// called.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <regex>

extern "C" {
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
}

#include "error.hpp"
#include "media.hpp"

namespace stan_infer::media {
namespace {

using Count = std::ptrdiff_t;

#if defined(__x86_64__)
constexpr bool kIsX86 = true;
#else
constexpr bool kIsX86 = false;
#endif
constexpr double kNearly1 = 0.998;   // FFmpeg drops weights below 0.002
constexpr double kTolerance = 0.02;  // of a display matrix: one degree

// FFmpeg's numbers of matrices that its converter knows; all others are taken for BT.601 (5), and
// BT.2020 with constant luminance (10) for the other one (9).
AVColorSpace known_matrix(AVColorSpace space) {
  switch (static_cast<int>(space)) {
    case 1:
    case 4:
    case 7:
    case 9:
      return space;
    case 10:
      return AVCOL_SPC_BT2020_NCL;
    default:
      return AVCOL_SPC_BT470BG;
  }
}

// For each of `height` lines, the two of `count` rows of colour whose mean it takes: of the two
// nearest rows the upper one alone where its weight is more than a half, else the mean of both.
std::vector<std::pair<Count, Count>> neighbours(Count count, Count height) {
  const Count step = ((count << 16) + height / 2) / height;
  std::vector<std::pair<Count, Count>> result;
  for (Count y = 0; y < height; ++y) {
    const double place = static_cast<double>((y * 2 + 1) * step) / 2 / 65536 - 0.5;
    auto upper = static_cast<Count>(std::floor(place));
    const double weight = place - static_cast<double>(upper);  // of the lower row
    const bool whole = weight > kNearly1;
    if (whole) ++upper;
    bool two = std::nearbyint(weight * 4096) >= 2048 && !whole;
    if (upper < 0) two = false;
    if (upper >= count - 1 && upper >= 0) two = true;
    upper = std::clamp<Count>(upper, 0, std::max<Count>(count - 2, 0));
    result.emplace_back(upper, std::min(upper + two, count - 1));
  }
  return result;
}

template <class From, class To>
void copy_rows(const AVFrame& source, AVFrame& target, int plane, Count width, Count rows,
               Count lines, int shift) {
  const auto row = [&](Count y) {
    return reinterpret_cast<const From*>(source.data[plane] + y * source.linesize[plane]);
  };
  const auto pairs = neighbours(rows, lines);
  for (Count y = 0; y < lines; ++y) {
    auto* to = reinterpret_cast<To*>(target.data[plane] + y * target.linesize[plane]);
    const auto [upper, lower] =
        rows == lines ? std::pair(y, y) : pairs[static_cast<std::size_t>(y)];
    const From *a = row(upper), *b = row(lower);
    for (Count x = 0; x < width; ++x) {
      const std::uint32_t both = std::uint32_t{a[x]} + b[x];
      to[x] = static_cast<To>(both << shift >> 1);
    }
  }
}

// A copy of a frame of planes with a known matrix and range, without fields; nothing for another.
Owned<AVFrame> plain(const AVFrame& frame) {
  static const std::regex pattern("yuv([aj]?)(4[0-9][0-9])p(?:([0-9]+)le)?");
  const char* found = av_get_pix_fmt_name(static_cast<AVPixelFormat>(frame.format));
  const std::string name = found ? found : "";
  std::smatch parts;
  if (!std::regex_match(name, parts, pattern)) return nullptr;
  // Lines that are stored upwards: no codec with such planes has them.
  for (int i = 0; i < 3; ++i) {
    if (frame.linesize[i] <= 0) return nullptr;
  }
  const std::string sampling = parts[2];
  const int bits = parts[3].matched ? std::stoi(parts[3]) : 8;
  const bool odd = frame.height % 2 == 1, spread = sampling == "420" && (bits > 8 || odd);
  const int depth = spread && odd ? std::min(16, bits + 2 + bits % 2) : bits;  // 2 more, for halves
  const std::string wanted = "yuv" + (spread ? "422" : sampling) + "p" +
                             (depth > 8 ? std::to_string(depth) + "le" : std::string());
  Owned<AVFrame> copy(av_frame_alloc());
  if (!copy) throw std::bad_alloc();
  const AVPixelFormat format = av_get_pix_fmt(wanted.c_str());
  copy->width = frame.width;
  copy->height = frame.height;
  copy->format = format;
  copy->colorspace = known_matrix(frame.colorspace);
  copy->color_range = parts[1] == "j" || frame.color_range == AVCOL_RANGE_JPEG ? AVCOL_RANGE_JPEG
                                                                               : AVCOL_RANGE_MPEG;
  if (format == AV_PIX_FMT_NONE || av_frame_get_buffer(copy.get(), 0) < 0) throw std::bad_alloc();
  const AVPixFmtDescriptor* from = av_pix_fmt_desc_get(static_cast<AVPixelFormat>(frame.format));
  const AVPixFmtDescriptor* to = av_pix_fmt_desc_get(format);
  const auto smaller = [](int size, int shift) { return Count{-((-size) >> shift)}; };
  for (int i = 0; i < 3; ++i) {
    const Count width = smaller(frame.width, i ? to->log2_chroma_w : 0);
    const Count rows = smaller(frame.height, i ? from->log2_chroma_h : 0);
    const Count lines = smaller(frame.height, i ? to->log2_chroma_h : 0);
    const auto copying = bits > 8    ? copy_rows<std::uint16_t, std::uint16_t>
                         : depth > 8 ? copy_rows<std::uint8_t, std::uint16_t>
                                     : copy_rows<std::uint8_t, std::uint8_t>;
    copying(frame, *copy, i, width, rows, lines, depth - bits);
  }
  return copy;
}

// 8-bit 4:2:0 or 4:2:2 of even height by the rule of stan_infer/video/integer_rgb.py: FFmpeg's
// converter gives these bytes on x86-64 alone. `matrix`: what FFmpeg has for it.
Tensor in_integers(const AVFrame& frame, const int* matrix, bool is_full, int log2_rows) {
  using Steps = std::array<int, 256>;  // for each sample
  const auto steps = [](int zero, int weight) {
    Steps result{};
    for (int i = 0; i < 256; ++i) {
      result[static_cast<std::size_t>(i)] = ((i - zero) * 8 * ((weight + 4) >> 3)) >> 16;
    }
    return result;
  };
  const auto weight = [&](int i) {
    return is_full ? static_cast<int>(std::int64_t{matrix[i]} * 224 / 255) : matrix[i];
  };
  const Steps luma = is_full ? steps(0, 65536) : steps(16, 65536 * 255 / 219);
  const Steps red = steps(128, weight(0)), blue = steps(128, weight(1));
  const Steps green_u = steps(128, -weight(2)), green_v = steps(128, -weight(3));
  const auto byte = [](int value) { return static_cast<std::uint8_t>(std::clamp(value, 0, 255)); };
  Tensor image = make_tensor(DType::uint8, {1, frame.height, frame.width, 3});
  auto* to = image.data<std::uint8_t>();
  for (Count y = 0; y < frame.height; ++y) {
    const std::uint8_t* line = frame.data[0] + y * frame.linesize[0];
    const std::uint8_t* us = frame.data[1] + (y >> log2_rows) * frame.linesize[1];
    const std::uint8_t* vs = frame.data[2] + (y >> log2_rows) * frame.linesize[2];
    for (Count x = 0; x < frame.width; ++x, to += 3) {
      const std::uint8_t u = us[x / 2], v = vs[x / 2];
      const int light = luma[line[x]];
      to[0] = byte(light + red[v]);
      to[1] = byte(light + green_u[u] + green_v[v]);
      to[2] = byte(light + blue[u]);
    }
  }
  return image;
}

Tensor converted(const AVFrame& frame, const std::string& name) {
  const auto format = static_cast<AVPixelFormat>(frame.format);
  const AVPixFmtDescriptor* form = av_pix_fmt_desc_get(format);
  const bool as_stored = format == AV_PIX_FMT_YUV420P && frame.height % 2 == 0;
  if (!form || (form->log2_chroma_h > 0 && !as_stored)) {
    throw bad_video(
        name + ": its pixels are " + (form ? form->name : "of an unknown kind") +
        ", in which versions of FFmpeg spread the rows of colour differently; re-encode "
        "it as H.264");
  }
  const bool is_rgb = form->flags & AV_PIX_FMT_FLAG_RGB;
  // BT.601 where nothing is said, and for RGB, which has no matrix whatever its tag says.
  const int* matrix = sws_getCoefficients(is_rgb ? SWS_CS_DEFAULT : frame.colorspace);
  const bool is_full = frame.color_range == AVCOL_RANGE_JPEG;
  const bool is_422 = format == AV_PIX_FMT_YUV422P && frame.height % 2 == 0;
  if (!kIsX86 && (as_stored || is_422)) {
    return in_integers(frame, matrix, is_full, form->log2_chroma_h);
  }
  // This converts pixels at the frame's own size; preprocess.onnx resizes.
  const std::unique_ptr<SwsContext, void (*)(SwsContext*)> scaler(
      sws_getContext(frame.width, frame.height, format, frame.width, frame.height, AV_PIX_FMT_RGB24,
                     SWS_BILINEAR, nullptr, nullptr, nullptr),
      sws_freeContext);
  if (!scaler) {
    throw bad_video(name + ": its pixel format cannot be turned into RGB; re-encode it as H.264");
  }
  const bool is_gray = form->nb_components < 3 && !(form->flags & AV_PIX_FMT_FLAG_PAL);
  // Grey is of full range whatever it says. RGB of more than 8 bits goes to YUV and back, by one
  // matrix. Fails where neither side is YUV; then there is nothing to set.
  sws_setColorspaceDetails(scaler.get(), matrix, is_gray || is_full, matrix, 1, 0, 1 << 16, 1 << 16);
  // swscale writes whole vectors, so its rows are padded and then packed.
  const std::size_t stride = (static_cast<std::size_t>(frame.width) * 3 + 127) / 64 * 64;
  std::vector<std::uint8_t> padded(stride * static_cast<std::size_t>(frame.height) + 64);
  std::uint8_t* planes[4] = {padded.data(), nullptr, nullptr, nullptr};
  const int strides[4] = {static_cast<int>(stride), 0, 0, 0};
  sws_scale(scaler.get(), frame.data, frame.linesize, 0, frame.height, planes, strides);
  Tensor image = make_tensor(DType::uint8, {1, frame.height, frame.width, 3});
  const std::size_t row = static_cast<std::size_t>(frame.width) * 3;
  for (std::size_t y = 0; y < static_cast<std::size_t>(frame.height); ++y) {
    std::memcpy(image.bytes.data() + y * row, padded.data() + y * stride, row);
  }
  return image;
}

const std::int32_t* display_matrix(const AVStream& stream, const AVFrame& frame) {
  if (const auto* side = av_frame_get_side_data(&frame, AV_FRAME_DATA_DISPLAYMATRIX)) {
    return reinterpret_cast<const std::int32_t*>(side->data);
  }
#if LIBAVFORMAT_VERSION_INT >= AV_VERSION_INT(60, 15, 100)
  const AVCodecParameters& codec = *stream.codecpar;
  const auto* side = av_packet_side_data_get(codec.coded_side_data, codec.nb_coded_side_data,
                                             AV_PKT_DATA_DISPLAYMATRIX);
  return side ? reinterpret_cast<const std::int32_t*>(side->data) : nullptr;
#else
  return reinterpret_cast<const std::int32_t*>(
      av_stream_get_side_data(&stream, AV_PKT_DATA_DISPLAYMATRIX, nullptr));
#endif
}

// x' = a x + c y, y' = b x + d y, x and y to the right and down (ISO/IEC 14496-12, 6.2.2).
Tensor upright(Tensor image, const std::int32_t* matrix, const std::string& name) {
  if (!matrix) return image;
  double a = matrix[0], b = matrix[1], c = matrix[3], d = matrix[4];
  const double wide = std::hypot(a, c), high = std::hypot(b, d);
  // The ffmpeg program ignores a matrix that would leave nothing, and all scaling.
  if (wide == 0 || high == 0) return image;
  a /= wide, c /= wide, b /= high, d /= high;
  double off = 0;
  for (double value : {a, b, c, d}) off = std::max(off, std::abs(value - std::nearbyint(value)));
  a = std::nearbyint(a), b = std::nearbyint(b), c = std::nearbyint(c), d = std::nearbyint(d);
  if (off > kTolerance || std::abs(a * d - b * c) != 1) {
    throw bad_video(name +
                    ": its container asks players to slant the picture, or to turn it by an angle "
                    "that is not a multiple of 90 degrees; re-encode it with ffmpeg, which applies "
                    "that");
  }
  const bool swap = b != 0, mirror = a + c < 0, flip = b + d < 0;
  if (!swap && !mirror && !flip) return image;
  const std::int64_t h = image.shape[1], w = image.shape[2];
  Tensor result = make_tensor(DType::uint8, {1, swap ? w : h, swap ? h : w, 3});
  const std::int64_t height = result.shape[1], width = result.shape[2];
  const auto* from = image.data<std::uint8_t>();
  auto* to = result.data<std::uint8_t>();
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      const std::int64_t row = flip ? height - 1 - y : y, column = mirror ? width - 1 - x : x;
      const std::int64_t place = swap ? column * w + row : row * w + column;
      std::memcpy(to + (y * width + x) * 3, from + place * 3, 3);
    }
  }
  return result;
}

AVColorSpace space_of(ColorMatrix matrix) {
  switch (matrix) {
    case ColorMatrix::bt709:
      return AVCOL_SPC_BT709;
    case ColorMatrix::bt2020:
      return AVCOL_SPC_BT2020_NCL;
    case ColorMatrix::bt601:
      break;
  }
  return AVCOL_SPC_BT470BG;
}

// The planes of nv12 in memory of our own, as yuv420p.
void take_apart(const ImageView& image, AVFrame& frame) {
  if (av_frame_get_buffer(&frame, 0) < 0) throw std::bad_alloc();
  const auto line = [&](int plane, Count y) {
    return frame.data[plane] + y * frame.linesize[plane];
  };
  const auto row = [&](std::size_t plane, Count y) {
    return image.planes[plane].data + static_cast<std::size_t>(y) * image.planes[plane].stride;
  };
  for (Count y = 0; y < image.height; ++y) std::copy_n(row(0, y), image.width, line(0, y));
  for (Count y = 0; y < (image.height + 1) / 2; ++y) {
    const std::uint8_t* from = row(1, y);
    for (Count x = 0; x < (image.width + 1) / 2; ++x) {
      line(1, y)[x] = from[2 * x];
      line(2, y)[x] = from[2 * x + 1];
    }
  }
}

}  // namespace

Tensor to_rgb(Media& media, const AVFrame& frame) {
  if (frame.width < 1 || frame.height < 1 ||
      std::int64_t{frame.width} * frame.height > kMaxPixels) {
    throw bad_video(media.name() + ": a frame of " + std::to_string(frame.width) + "x" +
                    std::to_string(frame.height) + " is too large; at most " +
                    std::to_string(kMaxPixels) + " pixels are allowed: make it smaller");
  }
  const Owned<AVFrame> copy = plain(frame);
  return upright(converted(copy ? *copy : frame, media.name()),
                 display_matrix(media.stream(), frame), media.name());
}

}  // namespace stan_infer::media

namespace stan_infer {

Tensor rgb_of_planes(const ImageView& image) {
  const media::Owned<AVFrame> frame(av_frame_alloc());
  if (!frame) throw std::bad_alloc();
  frame->width = image.width;
  frame->height = image.height;
  frame->format = AV_PIX_FMT_YUV420P;
  frame->colorspace = media::space_of(image.matrix);
  frame->color_range = image.full_range ? AVCOL_RANGE_JPEG : AVCOL_RANGE_MPEG;
  if (image.format == PixelFormat::nv12) {
    media::take_apart(image, *frame);
    // An odd number of rows is spread, as in a video.
    if (image.height % 2 == 0) return media::converted(*frame, "the frame");
  } else {
    for (std::size_t i = 0; i < 3; ++i) {
      // It is only read, by `plain`: FFmpeg's converter wants padding behind each row.
      frame->data[i] = const_cast<std::uint8_t*>(image.planes[i].data);
      frame->linesize[i] = static_cast<int>(image.planes[i].stride);
    }
  }
  return media::converted(*media::plain(*frame), "the frame");
}

}  // namespace stan_infer
