// The packets of a video by their number, and ranges of them that are decoded.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "independence.hpp"
#include "media.hpp"

namespace stan_infer {

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
  AVCodecID codec = AV_CODEC_ID_NONE;
  std::int64_t pixels = 0;  // of a frame, as the container says; 0: it does not
};

using Range = std::pair<std::size_t, std::size_t>;  // first and last packet
using NextRange = std::function<std::optional<Range>()>;
using Take = std::function<void(media::Media&, const AVFrame&)>;

// Decodes ranges of packets, in order; each begins with a key packet.
class Decoding {
 public:
  Decoding(const std::filesystem::path& path, const Index& index, const Call& call);

  // needed: packets whose pictures matter; of the others only references are then decoded.
  // independence: looks at every packet before it is decoded.
  void run(const NextRange& next, const std::set<std::size_t>* needed, const Take& take,
           Independence* independence = nullptr);
  void run(const std::vector<Range>& ranges, const std::set<std::size_t>* needed, const Take& take);

  media::Media& media() { return media_; }

 private:
  void decode(const AVPacket* packet, std::size_t number, std::size_t start, const Take& take);

  media::Media media_;
  const Index& index_;
  media::Owned<AVFrame> frame_;
  std::optional<std::int64_t> last_;
};

// Frames that are known by their times.
struct Wanted {
  std::vector<Range> ranges;
  std::set<std::size_t> packets;                 // of the frames, inside the ranges
  std::map<std::int64_t, std::int64_t> numbers;  // time -> number of the frame
  bool thin = false;  // what no other picture is built on need not be decoded, where it is not
                      // wanted
};

// Gets every frame, once or more, with its number: RGB as of media::to_rgb.
using Keep = std::function<void(std::int64_t number, Tensor image)>;

// The same frames as a Decoding of the ranges in order, by several decoders, each with a thread of
// its own; `keep` is called on this thread. Throws what went wrong first, with any thread; as each
// of these decoders was given less than a single one would have been, that need not be what a
// single one throws.
void decode_side_by_side(const std::filesystem::path& path, const Index& index,
                         const Wanted& wanted, std::size_t threads, const Keep& keep,
                         const Call& call);

}  // namespace stan_infer
