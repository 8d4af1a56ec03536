#include "decoding.hpp"

namespace stan_infer {

using media::Media;

namespace {

void check(int code, std::size_t number) {
  if (code == AVERROR(ENOMEM)) throw std::bad_alloc();
  if (code < 0) {
    throw Damaged{"the picture in packet " + std::to_string(number) +
                  " is damaged: " + media::error_text(code)};
  }
}

}  // namespace

Decoding::Decoding(const std::filesystem::path& path, const Index& index, const Call& call)
    : media_(path, call), index_(index), frame_(av_frame_alloc()) {
  if (!frame_) throw std::bad_alloc();
}

void Decoding::run(const std::vector<Range>& ranges, const std::set<std::size_t>* needed,
                   const Take& take) {
  std::size_t at = 0;
  run([&] { return at < ranges.size() ? std::optional(ranges[at++]) : std::nullopt; }, needed,
      take);
}

void Decoding::run(const NextRange& next, const std::set<std::size_t>* needed, const Take& take,
                   Independence* independence) {
  std::optional<Range> range = next();
  std::size_t number = 0;
  while (AVPacket* packet = range ? media_.next_packet() : nullptr) {
    if (packet->stream_index != media_.stream().index) continue;
    const auto [start, end] = *range;
    if (number >= start) {
      const auto& packets = index_.packets;
      if (number >= packets.size()) throw Damaged{"the file changed while it was read"};
      if (needed) {
        media_.decoder().skip_frame = needed->count(number) ? AVDISCARD_DEFAULT : AVDISCARD_NONREF;
      }
      // Frames shown before a key frame may need the group before it, which was passed over.
      const bool early = index_.timed && packets[number].pts < packets[start].pts;
      if (!early || (start == index_.first && index_.lead)) {
        if (independence) independence->see(*packet, number == start);
        decode(packet, number, start, take);
      }
      if (number == end) {
        decode(nullptr, number, start, take);
        avcodec_flush_buffers(&media_.decoder());
        last_.reset();
        range = next();
      }
    }
    ++number;
  }
}

void Decoding::decode(const AVPacket* packet, std::size_t number, std::size_t start,
                      const Take& take) {
  check(avcodec_send_packet(&media_.decoder(), packet), number);
  while (true) {
    const int code = avcodec_receive_frame(&media_.decoder(), frame_.get());
    if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
    check(code, number);
    if (frame_->decode_error_flags != 0 || frame_->flags & AV_FRAME_FLAG_CORRUPT) {
      throw Damaged{"the picture in packet " + std::to_string(number) +
                    " or one just before it is damaged"};
    }
    if (index_.timed) {
      if (frame_->pts == AV_NOPTS_VALUE || (last_ && frame_->pts <= *last_)) throw Untimed{};
      last_ = frame_->pts;
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(58, 29, 100)
      const bool key = frame_->flags & AV_FRAME_FLAG_KEY;
#else
      const bool key = frame_->key_frame;
#endif
      if (frame_->pts == index_.packets[start].pts && start != index_.first && !key) {
        throw Damaged{"packet " + std::to_string(start) + " is marked as key, but is none"};
      }
    }
    take(media_, *frame_);
  }
}

}  // namespace stan_infer
