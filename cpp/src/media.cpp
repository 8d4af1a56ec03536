#include "media.hpp"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "error.hpp"

namespace stan_infer::media {
namespace {

// Playlists, image sequences and edit scripts (hls, dash, concat, image2) are left out on purpose:
// they name other files, so a stranger's file could read any path of this machine.
constexpr const char* kContainers =
    "mov,matroska,webm,avi,flv,mpegts,mpeg,mpegvideo,asf,gif,h264,hevc,m4v,obu,ivf,ogg,mxf,nut";

constexpr std::size_t kName = 4096;  // bytes of a path in a message

void check_regular(const std::filesystem::path& path) {
  // Opening a FIFO would wait for ever, and a device may do anything: look before opening.
  struct stat status {};
  if (path.native().find('\0') != std::string::npos) {
    throw bad_video("the name of the video " + shown(path.string()) + " holds a zero byte");
  }
  if (stat(path.c_str(), &status) != 0) {
    throw bad_video("cannot read the video " + shown(path.string(), kName) + ": " +
                    std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) {
    throw bad_video(shown(path.string(), kName) + " is no regular file; a video file is needed");
  }
  if (status.st_size == 0) {
    throw bad_video(shown(path.string(), kName) + " is empty (0 bytes); fetch or encode it again");
  }
}

AVDictionary* options(std::initializer_list<std::pair<const char*, std::string>> entries) {
  AVDictionary* result = nullptr;
  for (const auto& [key, value] : entries) av_dict_set(&result, key, value.c_str(), 0);
  return result;
}

}  // namespace

std::string error_text(int code) {
  char text[AV_ERROR_MAX_STRING_SIZE] = {};
  av_strerror(code, text, sizeof text);
  return text;
}

Media::Media(const std::filesystem::path& path, const Call& call)
    : name_(shown(path.string(), kName)), call_(call) {
  check_regular(path);
  AVFormatContext* raw = avformat_alloc_context();
  if (!raw) throw std::bad_alloc();
  raw->interrupt_callback = {[](void* opaque) -> int {
                               return static_cast<const Call*>(opaque)->is_over();
                             },
                             const_cast<Call*>(&call)};
  AVDictionary* open_options =
      options({{"protocol_whitelist", "file"}, {"format_whitelist", kContainers}});
  const std::string url = "file:" + std::filesystem::absolute(path).string();
  const int opened = avformat_open_input(&raw, url.c_str(), nullptr, &open_options);
  av_dict_free(&open_options);
  if (opened < 0) call_.check();
  if (opened == AVERROR(EINVAL)) {  // FFmpeg's answer to a format that is not on the list
    throw bad_video(name_ +
                    " is no video: its contents look like a picture, text, sound or playlist; "
                    "allowed are containers such as MP4, MKV, WebM, AVI, MPEG and GIF");
  }
  if (opened < 0) {
    throw bad_video(name_ + " is no video, or is cut off or damaged: " + error_text(opened) +
                    "; fetch it again");
  }
  container_.reset(raw);
  const int found = avformat_find_stream_info(raw, nullptr);
  call_.check();
  if (found < 0) {
    throw bad_video("cannot read the streams of " + name_ + ": " + error_text(found) +
                    "; fetch it again");
  }
  const AVCodec* codec = nullptr;
  const int best = av_find_best_stream(raw, AVMEDIA_TYPE_VIDEO, -1, -1, nullptr, 0);
  if (best < 0 || raw->streams[best]->disposition & AV_DISPOSITION_ATTACHED_PIC) {
    throw bad_video(name_ + " holds no video stream; give a file with video");
  }
  stream_ = raw->streams[best];
  codec = avcodec_find_decoder(stream_->codecpar->codec_id);
  if (!codec) {
    throw bad_video(name_ + ": FFmpeg has no decoder for its codec; re-encode it as H.264");
  }
  const std::int64_t pixels = std::int64_t{stream_->codecpar->width} * stream_->codecpar->height;
  if (pixels > kMaxPixels) {
    throw bad_video(name_ + ": frames of " + std::to_string(stream_->codecpar->width) + "x" +
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
    throw bad_video("cannot start a decoder for " + name_ + ": " + error_text(started) +
                    "; re-encode it as H.264");
  }
}

AVPacket* Media::next_packet() {
  while (true) {
    av_packet_unref(packet_.get());
    const int code = av_read_frame(container_.get(), packet_.get());
    call_.check();
    if (code == AVERROR_EOF) return nullptr;
    if (code < 0) {
      throw bad_video(name_ + " cannot be read to its end: " + error_text(code) +
                      "; fetch it again");
    }
    if (packet_->size > 0) return packet_.get();
  }
}

}  // namespace stan_infer::media
