// FFmpeg's objects, owned, and one opened video file.
#pragma once

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
}

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "tensor.hpp"
#include "video.hpp"

namespace stan_infer::media {

struct Deleter {
  void operator()(AVFormatContext* p) const { avformat_close_input(&p); }
  void operator()(AVCodecContext* p) const { avcodec_free_context(&p); }
  void operator()(AVPacket* p) const { av_packet_free(&p); }
  void operator()(AVFrame* p) const { av_frame_free(&p); }
};
template <class T>
using Owned = std::unique_ptr<T, Deleter>;

std::string error_text(int code);  // of a negative FFmpeg return value

// A file of a known container, its main video stream and a decoder for it. Reading ends with
// `call`, which must live as long.
class Media {
 public:
  Media(const std::filesystem::path& path, const Call& call);

  AVFormatContext& container() { return *container_; }
  AVStream& stream() { return *stream_; }
  AVCodecContext& decoder() { return *decoder_; }
  const std::string& name() const { return name_; }

  // The next packet of any stream that holds data, or nullptr at the end.
  AVPacket* next_packet();

 private:
  std::string name_;
  const Call& call_;
  Owned<AVFormatContext> container_;
  Owned<AVCodecContext> decoder_;
  Owned<AVPacket> packet_;
  AVStream* stream_ = nullptr;
};

// RGB, uint8 [1, height, width, 3], turned and mirrored as the container asks (rgb.cpp). Throws
// Error for a picture that is to be slanted, or turned by another angle than a multiple of 90
// degrees.
Tensor to_rgb(Media& media, const AVFrame& frame);

}  // namespace stan_infer::media
