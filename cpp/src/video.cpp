// Two passes: the first reads packets only and learns which packet holds which frame and where
// decoding can start; the second decodes the groups of pictures that hold a chosen frame. Packets
// are known by their number, so nothing depends on a container's seeking.
#include "video.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <set>

#include "error.hpp"
#include "frames.hpp"
#include "media.hpp"

namespace stan_infer {
namespace {

using media::Media;

constexpr std::size_t kMaxPackets = 10'000'000;

// Something that is needed did not decode.
struct Damaged {
  std::string what;
};
// Pictures do not come in the order of their times.
struct Untimed {};

struct Packet {
  std::int64_t pts = 0;
  bool key = false, shown = false;
};

struct Index {
  std::vector<Packet> packets;
  std::vector<std::size_t> order;  // the packet of every frame
  bool timed = false;              // order is that of presentation; else of decoding
  std::size_t first = 0;           // the first key packet; what comes before cannot be decoded
  std::size_t lead = 0;            // frames shown before the first key frame
  std::string hdr;                 // see Frames
};

bool without_times(const char* format) {
  // These hold no time of presentation; what FFmpeg reports there is a guess.
  for (const char* name : {"avi", "h264", "hevc", "m4v", "mpegvideo", "obu"}) {
    if (std::strcmp(format, name) == 0) return true;
  }
  return false;
}

Index scan(const std::filesystem::path& path, const Call& call) {
  Media media(path, call);
  Index index;
  const AVColorTransferCharacteristic transfer = media.stream().codecpar->color_trc;
  index.hdr = transfer == AVCOL_TRC_SMPTE2084      ? "PQ"
              : transfer == AVCOL_TRC_ARIB_STD_B67 ? "HLG"
                                                   : "";
  bool missing = false, falling = false, partial = false;
  std::optional<std::int64_t> latest;  // time of decoding; it falls where recordings were joined
  while (const AVPacket* packet = media.next_packet()) {
    partial = packet->flags & AV_PKT_FLAG_CORRUPT;
    if (packet->stream_index != media.stream().index) continue;
    // VP8 stores pictures that are only references as packets of their own (RFC 6386, 9.1).
    const bool hidden = media.decoder().codec_id == AV_CODEC_ID_VP8 && !(packet->data[0] & 0x10);
    const bool shown = !(packet->flags & AV_PKT_FLAG_DISCARD) && !hidden;
    missing = missing || (shown && packet->pts == AV_NOPTS_VALUE);
    if (packet->dts != AV_NOPTS_VALUE) {
      falling = falling || (latest && packet->dts < *latest);
      latest = packet->dts;
    }
    index.packets.push_back({packet->pts == AV_NOPTS_VALUE ? 0 : packet->pts,
                             (packet->flags & AV_PKT_FLAG_KEY) != 0, shown});
    if (index.packets.size() > kMaxPackets) {
      throw bad_video(media.name() + " has more than " + std::to_string(kMaxPackets) +
                      " frames; cut it into parts");
    }
  }
  if (partial && media.stream().nb_frames > static_cast<std::int64_t>(index.packets.size())) {
    throw bad_video(media.name() + " is cut off: " + std::to_string(index.packets.size()) +
                    " of the " + std::to_string(media.stream().nb_frames) +
                    " frames that it lists are there; fetch it again");
  }
  const auto key = std::find_if(index.packets.begin(), index.packets.end(),
                                [](const Packet& p) { return p.key; });
  if (key != index.packets.end())
    index.first = static_cast<std::size_t>(key - index.packets.begin());
  for (std::size_t i = index.first; i < index.packets.size(); ++i) {
    if (index.packets[i].shown) index.order.push_back(i);
  }
  if (index.order.empty()) {
    throw bad_video(media.name() + " holds no frame: its video stream is empty; fetch it again");
  }
  const auto time = [&](std::size_t i) { return index.packets[i].pts; };
  std::vector<std::size_t> sorted = index.order;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](std::size_t a, std::size_t b) { return time(a) < time(b); });
  bool twice = false;
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    twice = twice || time(sorted[i]) == time(sorted[i - 1]);
  }
  // Some writers store the time of decoding; a codec that reorders then looks as if it did not.
  const bool ascending = !twice && sorted == index.order;
  const bool untimed = missing || falling || twice ||
                       without_times(media.container().iformat->name) ||
                       (ascending && media.decoder().has_b_frames > 0);
  if (untimed) return index;
  index.timed = true;
  index.order = sorted;
  index.lead = static_cast<std::size_t>(std::count_if(
      sorted.begin(), sorted.end(), [&](std::size_t i) { return time(i) < time(index.first); }));
  return index;
}

using Range = std::pair<std::size_t, std::size_t>;  // first and last packet
using Take = std::function<void(Media&, const AVFrame&)>;

// Decodes `ranges` of packets, in order; each begins with a key packet.
class Decoding {
 public:
  Decoding(const std::filesystem::path& path, const Index& index, const Call& call)
      : media_(path, call), index_(index), frame_(av_frame_alloc()) {
    if (!frame_) throw std::bad_alloc();
  }

  // needed: packets whose pictures matter; of the others only references are then decoded.
  void run(const std::vector<Range>& ranges, const std::set<std::size_t>* needed,
           const Take& take) {
    std::size_t number = 0, at = 0;
    while (AVPacket* packet = media_.next_packet()) {
      if (packet->stream_index != media_.stream().index) continue;
      const auto [start, end] = ranges[at];
      if (number >= start) {
        const auto& packets = index_.packets;
        if (number >= packets.size()) throw Damaged{"the file changed while it was read"};
        if (needed) {
          media_.decoder().skip_frame =
              needed->count(number) ? AVDISCARD_DEFAULT : AVDISCARD_NONREF;
        }
        // Frames shown before a key frame may need the group before it, which was passed over.
        const bool early = index_.timed && packets[number].pts < packets[start].pts;
        if (!early || (start == index_.first && index_.lead)) decode(packet, number, start, take);
        if (number == end) {
          decode(nullptr, number, start, take);
          if (++at == ranges.size()) return;
          avcodec_flush_buffers(&media_.decoder());
          last_.reset();
        }
      }
      ++number;
    }
  }

  bool is_h264() { return media_.decoder().codec_id == AV_CODEC_ID_H264; }

 private:
  void decode(const AVPacket* packet, std::size_t number, std::size_t start, const Take& take) {
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

  static void check(int code, std::size_t number) {
    if (code == AVERROR(ENOMEM)) throw std::bad_alloc();
    if (code < 0) {
      throw Damaged{"the picture in packet " + std::to_string(number) +
                    " is damaged: " + media::error_text(code)};
    }
  }

  Media media_;
  const Index& index_;
  media::Owned<AVFrame> frame_;
  std::optional<std::int64_t> last_;
};

// Runs of packets that decode to the wanted ones.
std::vector<Range> ranges_of(const Index& index, const std::set<std::size_t>& packets) {
  std::vector<std::size_t> keys;
  for (std::size_t i = index.first; i < index.packets.size(); ++i) {
    if (index.packets[i].key) keys.push_back(i);
  }
  std::vector<Range> ranges;
  for (std::size_t packet : packets) {
    std::size_t start = index.first;
    auto after = std::upper_bound(keys.begin(), keys.end(), packet);
    while (after != keys.begin()) {
      --after;
      if (index.packets[*after].pts <= index.packets[packet].pts) {
        start = *after;
        break;
      }
    }
    while (!ranges.empty() && start <= ranges.back().second + 1) {
      start = std::min(start, ranges.back().first);
      ranges.pop_back();
    }
    ranges.push_back({start, packet});
  }
  return ranges;
}

// Drops the frames before the first key frame if they need a group that was cut away.
void drop_broken_lead(const std::filesystem::path& path, Index& index, const Call& call) {
  if (!index.lead) return;
  std::set<std::int64_t> wanted, seen;
  std::size_t last = 0;
  for (std::size_t i = 0; i < index.lead; ++i) {
    wanted.insert(index.packets[index.order[i]].pts);
    last = std::max(last, index.order[i]);
  }
  try {
    Decoding(path, index, call)
        .run({{index.first, last}}, nullptr,
             [&](Media&, const AVFrame& frame) { seen.insert(frame.pts); });
  } catch (const Damaged&) {
    seen.clear();
  } catch (const Untimed&) {
    seen.clear();
  }
  if (std::includes(seen.begin(), seen.end(), wanted.begin(), wanted.end())) return;
  index.order.erase(index.order.begin(),
                    index.order.begin() + static_cast<std::ptrdiff_t>(index.lead));
  index.lead = 0;
}

Frames by_time(const std::filesystem::path& path, const Index& index, int frames,
               const Shrink& shrink, const Call& call, bool straight) {
  Frames found;
  found.hdr = index.hdr;
  found.total_frames = static_cast<std::int64_t>(index.order.size());
  found.indices = sample_indices(found.total_frames, frames);
  std::set<std::size_t> packets;
  std::map<std::int64_t, std::int64_t> wanted;  // time -> frame number
  for (std::int64_t number : found.indices) {
    const std::size_t packet = index.order[static_cast<std::size_t>(number)];
    packets.insert(packet);
    wanted[index.packets[packet].pts] = number;
  }
  const auto ranges =
      straight ? std::vector<Range>{{index.first, *packets.rbegin()}} : ranges_of(index, packets);
  Decoding decoding(path, index, call);
  // In H.264 (only there without exception) a picture says if no other is built on it.
  const bool thin = !straight && decoding.is_h264();
  decoding.run(ranges, thin ? &packets : nullptr, [&](Media& media, const AVFrame& frame) {
    const auto number = wanted.find(frame.pts);
    if (number != wanted.end()) {
      found.by_number[number->second] = shrink(media::to_rgb(media, frame));
    }
  });
  for (const auto& [time, number] : wanted) {
    if (!found.by_number.count(number)) {
      throw Damaged{"frame " + std::to_string(number) + " of " +
                    std::to_string(found.total_frames) + " gives no picture"};
    }
  }
  return found;
}

// Decodes everything in order: the only way to number frames that carry no time.
Frames by_count(const std::filesystem::path& path, const Index& index, int frames,
                const Shrink& shrink, const Call& call) {
  std::int64_t total = static_cast<std::int64_t>(index.order.size());
  for (int attempt = 0; attempt < 2 && total > 0; ++attempt) {
    Frames found;
    found.hdr = index.hdr;
    found.total_frames = total;
    found.indices = sample_indices(total, frames);
    const std::set<std::int64_t> wanted(found.indices.begin(), found.indices.end());
    std::int64_t count = 0;
    try {
      Decoding(path, index, call)
          .run({{index.first, index.packets.size() - 1}}, nullptr,
               [&](Media& media, const AVFrame& frame) {
                 if (wanted.count(count)) {
                   found.by_number[count] = shrink(media::to_rgb(media, frame));
                 }
                 ++count;
               });
    } catch (const Damaged&) {
      if (found.by_number.size() < wanted.size()) {
        throw Damaged{"a frame soon after frame " + std::to_string(count - 1) + " is damaged"};
      }
      count = total;
    }
    if (count == total) return found;
    // Packets and pictures need not pair up (fields, placeholders): what decodes is the truth.
    total = count;
  }
  throw Damaged{"no frame of it can be decoded"};
}

}  // namespace

Frames read_frames(const std::filesystem::path& path, int frames, const Shrink& shrink,
                   const Call& call) {
  Index index = scan(path, call);
  const auto damaged = [&](const Damaged& e) {
    return bad_video(shown(path.string(), 4096) + ": " + e.what +
                     "; fetch it again or re-encode it");
  };
  if (index.timed) {
    drop_broken_lead(path, index, call);
    for (bool straight : {false, true}) {
      try {
        return by_time(path, index, frames, shrink, call, straight);
      } catch (const Untimed&) {
      } catch (const Damaged& e) {
        // A key frame that is none looks like damage; from the start there is no such doubt.
        if (straight) throw damaged(e);
      }
    }
    index.timed = false;
  }
  try {
    return by_count(path, index, frames, shrink, call);
  } catch (const Damaged& e) {
    throw damaged(e);
  }
}

}  // namespace stan_infer
