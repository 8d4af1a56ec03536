// By ITU-T H.264: 7.3.1 and table 7-1 (units), 7.3.2.1 (sequence parameter sets), annexes B (start
// codes) and D (messages); ISO/IEC 14496-15 (units with their length, avcC).
#include "independence.hpp"

#include <algorithm>
#include <cstdint>

namespace stan_infer {
namespace {

constexpr std::string_view kStartCode("\0\0\1", 3);

// Types of units.
constexpr int kSlice = 1, kIdrSlice = 5, kMessages = 6, kSequence = 7;
bool is_set(int type) { return type == 7 || type == 8 || type == 13 || type == 15; }

// The content of a unit.
std::string without_escapes(std::string_view escaped) {
  std::string plain;
  for (std::size_t i = 0, zeros = 0; i < escaped.size(); ++i) {
    if (zeros >= 2 && escaped[i] == 3) {
      zeros = 0;
      continue;
    }
    zeros = escaped[i] ? 0 : zeros + 1;
    plain += escaped[i];
  }
  return plain;
}

// Bits of a unit. Throws Dependent behind its end.
class Bits {
 public:
  explicit Bits(const std::string& bytes) : bytes_(bytes) {}

  std::uint32_t take(int count) {
    std::uint32_t value = 0;
    for (int i = 0; i < count; ++i, ++at_) {
      if (at_ / 8 >= bytes_.size()) throw Dependent{};
      value = value << 1 | (static_cast<std::uint8_t>(bytes_[at_ / 8]) >> (7 - at_ % 8) & 1U);
    }
    return value;
  }

  // An Exp-Golomb code, 9.1.
  std::uint32_t number() {
    int zeros = 0;
    while (!take(1)) {
      if (++zeros > 31) throw Dependent{};
    }
    return (1U << zeros) - 1 + take(zeros);
  }
  std::uint32_t signed_number() {  // modulo 2^32
    const std::uint32_t code = number();
    return code % 2 ? code / 2 + 1 : 0U - code / 2;
  }

 private:
  const std::string& bytes_;
  std::size_t at_ = 0;
};

void pass_scaling_list(Bits& bits, int size) {
  std::uint32_t last = 8, next = 8;
  for (int i = 0; i < size && next; ++i) {
    next = (last + bits.signed_number()) & 255U;
    last = next;
  }
}

// Throws Dependent unless pictures are whole frames, all of which are there. Where fields may be
// alone or frames left out, the decoder fills what is missing with what its memory held before.
void check_sequence(std::string_view unit) {
  const std::string plain = without_escapes(unit);
  Bits bits(plain);
  bits.take(8);
  const std::uint32_t profile = bits.take(8);
  bits.take(16);
  bits.number();
  if (profile == 100 || profile == 110 || profile == 122 || profile == 244 || profile == 44) {
    const std::uint32_t chroma = bits.number();
    if (chroma == 3) bits.take(1);
    bits.number(), bits.number(), bits.take(1);
    const bool has_lists = bits.take(1);
    for (int i = 0; has_lists && i < (chroma == 3 ? 12 : 8); ++i) {
      if (bits.take(1)) pass_scaling_list(bits, i < 6 ? 16 : 64);
    }
  } else if (profile != 66 && profile != 77 && profile != 88) {
    throw Dependent{};
  }
  bits.number();
  const std::uint32_t order = bits.number();
  if (order == 0) bits.number();
  if (order == 1) {
    bits.take(1), bits.number(), bits.number();
    for (std::uint32_t left = bits.number(); left > 0; --left) bits.number();
  }
  bits.number();
  const bool has_gaps = bits.take(1);
  bits.number(), bits.number();
  const bool has_frames_only = bits.take(1);
  if (has_gaps || !has_frames_only) throw Dependent{};
}

// Whether messages say something that changes later pictures: film grain (19, or AOM's in T.35) or
// a rotation (47). Throws Dependent where they are cut off.
bool change_pictures(const std::string& messages) {
  std::size_t at = 0;
  const auto number = [&] {
    std::size_t sum = 0;
    while (true) {
      if (at >= messages.size()) throw Dependent{};
      const auto byte = static_cast<std::uint8_t>(messages[at++]);
      sum += byte;
      if (byte != 255) return sum;
    }
  };
  const bool ends = !messages.empty() && messages.back() == '\x80';  // a bit that closes the unit
  while (at + ends < messages.size()) {
    const std::size_t type = number(), size = number();
    if (size > messages.size() - at) throw Dependent{};
    const bool is_aom = type == 4 && messages.compare(at, std::min<std::size_t>(size, 3),
                                                      "\xb5\x58\x90") == 0;
    if (type == 19 || type == 47 || is_aom) return true;
    at += size;
  }
  return false;
}

}  // namespace

Independence::Independence(const AVCodecParameters& codec) {
  const std::string_view extra(reinterpret_cast<const char*>(codec.extradata),
                               static_cast<std::size_t>(codec.extradata_size));
  if (extra.size() < 7 || extra[0] != 1) {  // as FFmpeg's decoder tells avcC from start codes
    if (extra.find(kStartCode) != extra.npos) check_sequences(units(extra));
    return;
  }
  length_bytes_ = (static_cast<std::uint8_t>(extra[4]) & 3U) + 1;
  std::vector<std::string_view> sequences;
  std::size_t at = 6;
  for (int left = extra[5] & 31; left > 0; --left) {
    if (extra.size() - at < 2) throw Dependent{};
    const std::size_t size = static_cast<std::size_t>(static_cast<std::uint8_t>(extra[at])) << 8 |
                             static_cast<std::uint8_t>(extra[at + 1]);
    at += 2;
    if (size == 0 || size > extra.size() - at) throw Dependent{};
    sequences.push_back(extra.substr(at, size));
    at += size;
  }
  check_sequences(sequences);
}

void Independence::check_sequences(const std::vector<std::string_view>& units) {
  for (std::string_view unit : units) {
    if ((unit[0] & 31) != kSequence) continue;
    check_sequence(unit);
    has_sequence_ = true;
  }
}

// The units of a packet, without zeros behind them.
std::vector<std::string_view> Independence::units(std::string_view all) const {
  std::vector<std::string_view> found;
  const auto add = [&](std::string_view unit) {
    while (!unit.empty() && !unit.back()) unit.remove_suffix(1);
    if (!unit.empty()) found.push_back(unit);
  };
  if (!length_bytes_) {
    std::size_t at = all.find(kStartCode);
    if (at > 1) throw Dependent{};  // or none
    while (at != all.npos) {
      at += kStartCode.size();
      const std::size_t end = all.find(kStartCode, at);
      add(all.substr(at, end == all.npos ? end : end - at));
      at = end;
    }
    return found;
  }
  for (std::size_t at = 0; at < all.size();) {
    if (all.size() - at < length_bytes_) throw Dependent{};
    std::size_t size = 0;
    for (std::size_t i = 0; i < length_bytes_; ++i) {
      size = size << 8 | static_cast<std::uint8_t>(all[at++]);
    }
    if (size > all.size() - at) throw Dependent{};
    const std::string_view unit = all.substr(at, size);
    // FFmpeg looks for units there, too.
    if (unit.find(kStartCode) != unit.npos) throw Dependent{};
    add(unit);
    at += size;
  }
  return found;
}

void Independence::see(const AVPacket& packet, bool starts) {
  const bool is_first = !sets_;
  std::string sets;
  bool has_picture = false;
  const auto all = units({reinterpret_cast<const char*>(packet.data),
                          static_cast<std::size_t>(packet.size)});
  for (std::string_view unit : all) {
    const int type = unit[0] & 31;
    if (is_set(type)) {
      // With their sizes, so that no two lists have the same bytes.
      (sets += std::to_string(unit.size()) + " ").append(unit);
    } else if (type == kMessages) {
      if (unit.find("x264") != unit.npos) {
        if (is_first) version_ = unit;
        if (version_ != unit) throw Dependent{};
      }
      if (!is_first && change_pictures(without_escapes(unit.substr(1)))) throw Dependent{};
    } else if (!has_picture && type >= kSlice && type <= kIdrSlice) {
      has_picture = true;
      if (!is_first && starts && type != kIdrSlice) throw Dependent{};
    }
  }
  if (is_first) {
    check_sequences(all);
    if (!has_sequence_) throw Dependent{};
    sets_ = sets;
    return;
  }
  if (!sets.empty() && sets != *sets_) throw Dependent{};
  for (int i = 0; i < packet.side_data_elems; ++i) {
    const AVPacketSideDataType type = packet.side_data[i].type;
    if (type == AV_PKT_DATA_NEW_EXTRADATA || type == AV_PKT_DATA_PARAM_CHANGE) throw Dependent{};
  }
}

}  // namespace stan_infer
