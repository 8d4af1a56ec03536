// Whether a decoder of H.264 that was given only a part of a video gives the pictures of one that
// was given all of it.
#pragma once

extern "C" {
#include <libavcodec/avcodec.h>
}

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace stan_infer {

// It may not, or that is not known.
struct Dependent {};

// Looks at the packets that such a decoder gets. The first is that with which the decoding of the
// video begins. With avcodec_flush_buffers a decoder drops all pictures, but it keeps what packets
// said of those to come: sets of parameters, the version of x264 (whose faults are imitated), film
// grain, the rotation of the picture. If no later packet says of these what the first did not, all
// decoders that got the first packet and were flushed are alike.
//
// Not for other codecs, nor for fields: of HEVC, and of fields in H.264, FFmpeg also shows pictures
// of which a part is missing, and fills that with what the decoder's memory held before.
class Independence {
 public:
  explicit Independence(const AVCodecParameters& codec);  // throws Dependent

  // Throws Dependent. starts: the packet is the first one behind a flush. It must hold an IDR
  // picture: others the decoder takes for key pictures by what came before.
  void see(const AVPacket& packet, bool starts);

 private:
  std::vector<std::string_view> units(std::string_view all) const;
  void check_sequences(const std::vector<std::string_view>& units);

  std::size_t length_bytes_ = 0;  // before each unit; 0: start codes lie between them
  bool has_sequence_ = false;
  std::optional<std::string> sets_, version_;  // of the first packet
};

}  // namespace stan_infer
