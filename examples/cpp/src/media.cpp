#include "media.hpp"

#include <sys/stat.h>

extern "C" {
#include <libavutil/display.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
}

#include <cerrno>
#include <cstring>

#include "stan/error.hpp"

namespace stan::media {
namespace {

// Playlists, image sequences and edit scripts (hls, dash, concat, image2) are left out on purpose:
// they name other files, so a stranger's file could read any path of this machine.
constexpr const char* kContainers =
    "mov,matroska,webm,avi,flv,mpegts,mpeg,mpegvideo,asf,gif,h264,hevc,m4v,obu,ivf,ogg,mxf,nut";

void check_regular(const std::filesystem::path& path) {
  // Opening a FIFO would wait for ever, and a device may do anything: look before opening.
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    throw bad_input("cannot read the video " + path.string() + ": " + std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) {
    throw bad_input(path.string() + " is no regular file; a video file is needed");
  }
  if (status.st_size == 0) {
    throw bad_input(path.string() + " is empty (0 bytes); fetch or encode it again");
  }
}

AVDictionary* options(std::initializer_list<std::pair<const char*, std::string>> entries) {
  AVDictionary* result = nullptr;
  for (const auto& [key, value] : entries) av_dict_set(&result, key, value.c_str(), 0);
  return result;
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

// Quarter turns anticlockwise, as FFmpeg counts; other angles are left alone.
int quarter_turns(const AVStream& stream, const AVFrame& frame) {
  const std::int32_t* matrix = display_matrix(stream, frame);
  if (!matrix) return 0;
  const double degrees = av_display_rotation_get(matrix);
  if (!(degrees >= -360 && degrees <= 360)) return 0;  // a matrix that turns nothing gives NaN
  const int angle = static_cast<int>(degrees);
  return angle % 90 == 0 ? ((angle / 90) % 4 + 4) % 4 : 0;
}

Tensor turned(const Tensor& image, int turns) {
  const std::int64_t h = image.shape[1], w = image.shape[2];
  const bool swap = turns % 2 != 0;
  Tensor result = make_tensor(DType::uint8, {1, swap ? w : h, swap ? h : w, 3});
  const std::int64_t width = result.shape[2];
  const auto* from = image.data<std::uint8_t>();
  auto* to = result.data<std::uint8_t>();
  for (std::int64_t y = 0; y < h; ++y) {
    for (std::int64_t x = 0; x < w; ++x) {
      const std::int64_t row = turns == 1 ? w - 1 - x : turns == 2 ? h - 1 - y : x;
      const std::int64_t column = turns == 1 ? y : turns == 2 ? w - 1 - x : h - 1 - y;
      std::memcpy(to + (row * width + column) * 3, from + (y * w + x) * 3, 3);
    }
  }
  return result;
}

}  // namespace

std::string error_text(int code) {
  char text[AV_ERROR_MAX_STRING_SIZE] = {};
  av_strerror(code, text, sizeof text);
  return text;
}

Media::Media(const std::filesystem::path& path) : name_(path.string()) {
  check_regular(path);
  AVFormatContext* raw = nullptr;
  AVDictionary* open_options =
      options({{"protocol_whitelist", "file"}, {"format_whitelist", kContainers}});
  const std::string url = "file:" + std::filesystem::absolute(path).string();
  const int opened = avformat_open_input(&raw, url.c_str(), nullptr, &open_options);
  av_dict_free(&open_options);
  if (opened == AVERROR(EINVAL)) {  // FFmpeg's answer to a format that is not on the list
    throw bad_input(name_ +
                    " is no video: its contents look like a picture, text, sound or playlist; "
                    "allowed are containers such as MP4, MKV, WebM, AVI, MPEG and GIF");
  }
  if (opened < 0) {
    throw bad_input(name_ + " is no video, or is cut off or damaged: " + error_text(opened) +
                    "; fetch it again");
  }
  container_.reset(raw);
  const int found = avformat_find_stream_info(raw, nullptr);
  if (found < 0) {
    throw bad_input("cannot read the streams of " + name_ + ": " + error_text(found) +
                    "; fetch it again");
  }
  const AVCodec* codec = nullptr;
  const int best = av_find_best_stream(raw, AVMEDIA_TYPE_VIDEO, -1, -1, nullptr, 0);
  if (best < 0 || raw->streams[best]->disposition & AV_DISPOSITION_ATTACHED_PIC) {
    throw bad_input(name_ + " holds no video stream; give a file with video");
  }
  stream_ = raw->streams[best];
  codec = avcodec_find_decoder(stream_->codecpar->codec_id);
  if (!codec) {
    throw bad_input(name_ + ": FFmpeg has no decoder for its codec; re-encode it as H.264");
  }
  const std::int64_t pixels = std::int64_t{stream_->codecpar->width} * stream_->codecpar->height;
  if (pixels > kMaxPixels) {
    throw bad_input(name_ + ": frames of " + std::to_string(stream_->codecpar->width) + "x" +
                    std::to_string(stream_->codecpar->height) + " are too large; at most " +
                    std::to_string(kMaxPixels) + " pixels are allowed: make it smaller");
  }
  decoder_.reset(avcodec_alloc_context3(codec));
  packet_.reset(av_packet_alloc());
  if (!decoder_ || !packet_) throw std::bad_alloc();
  avcodec_parameters_to_context(decoder_.get(), stream_->codecpar);
  decoder_->pkt_timebase = stream_->time_base;
  decoder_->thread_count = 1;  // more threads return frames later, and change nothing else here
  AVDictionary* decode_options =
      options({{"err_detect", "explode"}, {"max_pixels", std::to_string(kMaxPixels)}});
  const int started = avcodec_open2(decoder_.get(), codec, &decode_options);
  av_dict_free(&decode_options);
  if (started < 0) {
    throw bad_input("cannot start a decoder for " + name_ + ": " + error_text(started) +
                    "; re-encode it as H.264");
  }
}

AVPacket* Media::next_packet() {
  while (true) {
    av_packet_unref(packet_.get());
    const int code = av_read_frame(container_.get(), packet_.get());
    if (code == AVERROR_EOF) return nullptr;
    if (code < 0) {
      throw bad_input(name_ + " cannot be read to its end: " + error_text(code) +
                      "; fetch it again");
    }
    if (packet_->size > 0) return packet_.get();
  }
}

Tensor to_rgb(Media& media, const AVFrame& frame) {
  if (frame.width < 1 || frame.height < 1 ||
      std::int64_t{frame.width} * frame.height > kMaxPixels) {
    throw bad_input(media.name() + ": a frame of " + std::to_string(frame.width) + "x" +
                    std::to_string(frame.height) + " is too large; at most " +
                    std::to_string(kMaxPixels) + " pixels are allowed: make it smaller");
  }
  const auto format = static_cast<AVPixelFormat>(frame.format);
  // This converts pixels at the frame's own size; preprocess.onnx resizes.
  const std::unique_ptr<SwsContext, void (*)(SwsContext*)> scaler(
      sws_getContext(frame.width, frame.height, format, frame.width, frame.height, AV_PIX_FMT_RGB24,
                     SWS_BILINEAR, nullptr, nullptr, nullptr),
      sws_freeContext);
  if (!scaler) {
    throw bad_input(media.name() +
                    ": its pixel format cannot be turned into RGB; re-encode it as "
                    "H.264");
  }
  // The old "yuvj" formats are full range by their name.
  const bool full = frame.color_range == AVCOL_RANGE_JPEG || format == AV_PIX_FMT_YUVJ420P ||
                    format == AV_PIX_FMT_YUVJ422P || format == AV_PIX_FMT_YUVJ444P ||
                    format == AV_PIX_FMT_YUVJ440P || format == AV_PIX_FMT_YUVJ411P;
  const int* matrix = sws_getCoefficients(frame.colorspace);  // BT.601 where nothing is said
  // Fails where neither side is YUV; then there is nothing to set.
  sws_setColorspaceDetails(scaler.get(), matrix, full, sws_getCoefficients(SWS_CS_DEFAULT), 1, 0,
                           1 << 16, 1 << 16);
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
  const int turns = quarter_turns(media.stream(), frame);
  return turns ? turned(image, turns) : image;
}

}  // namespace stan::media
