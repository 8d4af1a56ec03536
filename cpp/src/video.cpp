// Two passes: the first reads packets only and learns which packet holds which frame and where
// decoding can start; the second decodes the groups of pictures that hold a chosen frame. Packets
// are known by their number, so nothing depends on a container's seeking. Groups may be decoded
// side by side; whatever is wrong then, all begins again with one decoder, which decides.
#include "video.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <set>
#include <system_error>

#include "decoding.hpp"
#include "error.hpp"
#include "frames.hpp"
#include "media.hpp"

namespace stan_infer {
namespace {

using media::Media;

constexpr std::size_t kMaxPackets = 10'000'000;
constexpr std::int64_t kMaxDecoders = 8;  // a clip has few frames, and each reads the file

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
  const AVCodecParameters& codec = *media.stream().codecpar;
  const AVColorTransferCharacteristic transfer = codec.color_trc;
  index.codec = codec.codec_id;
  index.pixels = std::int64_t{codec.width} * codec.height;
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

// How many decoders decode at once. Together they hold no more pixels than one may for a video of
// the largest frames, and there must be enough to do: each opens the file anew.
std::size_t threads_for(const Index& index, const Wanted& wanted, const Reading& reading) {
  if (index.codec != AV_CODEC_ID_H264 || index.pixels < 1) return 1;  // why: Independence
  std::int64_t packets = 0;
  for (const auto& [start, end] : wanted.ranges) {
    packets += static_cast<std::int64_t>(end - start + 1);
  }
  if (packets * index.pixels < reading.least_pixels) return 1;
  const std::int64_t most = std::min({std::int64_t{reading.threads}, kMaxDecoders,
                                      static_cast<std::int64_t>(wanted.ranges.size()),
                                      kMaxPixels / index.pixels});
  return static_cast<std::size_t>(std::max<std::int64_t>(most, 1));
}

enum class Way { side_by_side, in_turn, straight };  // straight: all from the first key packet on

Frames by_time(const std::filesystem::path& path, const Index& index, int frames,
               const Shrink& shrink, const Call& call, const Reading& reading, Way way) {
  Frames found;
  found.hdr = index.hdr;
  found.total_frames = static_cast<std::int64_t>(index.order.size());
  found.indices = sample_indices(found.total_frames, frames);
  Wanted wanted;
  for (std::int64_t number : found.indices) {
    const std::size_t packet = index.order[static_cast<std::size_t>(number)];
    wanted.packets.insert(packet);
    wanted.numbers[index.packets[packet].pts] = number;
  }
  wanted.ranges = way == Way::straight
                      ? std::vector<Range>{{index.first, *wanted.packets.rbegin()}}
                      : ranges_of(index, wanted.packets);
  // In H.264 (only there without exception) a picture says if no other is built on it.
  wanted.thin = way != Way::straight && index.codec == AV_CODEC_ID_H264;
  if (way == Way::side_by_side) {
    const std::size_t threads = threads_for(index, wanted, reading);
    if (threads < 2) throw Dependent{};
    decode_side_by_side(
        path, index, wanted, threads,
        [&](std::int64_t number, Tensor image) {
          if (!found.by_number.emplace(number, shrink(image)).second) throw Dependent{};
        },
        call);
    found.decoders = static_cast<int>(threads);
  } else {
    Decoding(path, index, call)
        .run(wanted.ranges, wanted.thin ? &wanted.packets : nullptr,
             [&](Media& media, const AVFrame& frame) {
               const auto number = wanted.numbers.find(frame.pts);
               if (number != wanted.numbers.end()) {
                 found.by_number[number->second] = shrink(media::to_rgb(media, frame));
               }
             });
  }
  for (const auto& [time, number] : wanted.numbers) {
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
                   const Call& call, const Reading& reading) {
  Index index = scan(path, call);
  const auto damaged = [&](const Damaged& e) {
    return bad_video(shown(path.string(), 4096) + ": " + e.what +
                     "; fetch it again or re-encode it");
  };
  if (index.timed) {
    drop_broken_lead(path, index, call);
    try {
      return by_time(path, index, frames, shrink, call, reading, Way::side_by_side);
    } catch (const Damaged&) {
    } catch (const Untimed&) {
    } catch (const Dependent&) {
    } catch (const std::system_error&) {  // no thread
    } catch (const Error& e) {
      // The rest is said in the order in which one decoder finds it.
      const ErrorCode code = e.code();
      if (code == ErrorCode::cancelled || code == ErrorCode::deadline ||
          code == ErrorCode::out_of_memory) {
        throw;
      }
    }
    for (Way way : {Way::in_turn, Way::straight}) {
      try {
        return by_time(path, index, frames, shrink, call, reading, way);
      } catch (const Untimed&) {
      } catch (const Damaged& e) {
        // A key frame that is none looks like damage; from the start there is no such doubt.
        if (way == Way::straight) throw damaged(e);
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
