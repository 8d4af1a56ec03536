// The model's config in manifest.json: its bounds, and its hash, which every graph notes.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <iterator>

#include "error.hpp"
#include "manifest_json.hpp"
#include "sha256.hpp"

namespace stan_infer {
namespace {

// A number of the model's config and its bounds, as in stan_infer/config.py.
struct Field {
  const char* key;
  double least, most;
  bool whole = true;
};
constexpr Field kNumbers[] = {
    {"width", 1, 16384},
    {"layers", 1, 256},
    {"heads", 1, 16384},
    {"patch", 1, 4096},
    {"image_size", 1, 4096},
    {"embed_dim", 1, 16384},
    {"mlp_width", 1, 65536},
    {"branch_layers", 1, 256},
    {"max_frames", 1, 64},
    {"frames", 1, 64},
    {"short_side", 1, 4096},
    {"text_layers", 0, 256},
    {"norm_eps", 1e-12, 1, false},
    {"mug_tau", 1e-6, 1e6, false},
    {"temperature", 1e-6, 1e6, false},
};
// Of a model with a text tower; without one they may be anything.
constexpr Field kTextNumbers[] = {
    {"text_width", 1, 16384},       {"text_mlp_width", 1, 65536}, {"vocab_size", 3, 1'000'000},
    {"context_positions", 3, 4096}, {"context_length", 3, 4096},  {"text_heads", 1, 16384},
};
struct Word {
  const char* key;
  std::vector<std::string> known;
};
const Word kWords[] = {
    {"branch", {"selfattn", "conv"}},
    {"activation", {"quick_gelu", "gelu"}},
    {"head", {"mean", "mug", "mug_frame_token"}},
};

double model_number(const Json& model, const Field& field) {
  const std::string where = std::string("model.") + field.key;
  const double value = number(member(model, field.key, "model"), where);
  if (!(value >= field.least && value <= field.most) ||
      (field.whole && value != std::floor(value))) {
    fail(where + " is " + shown(model[field.key].dump(), 40) + "; allowed is " +
         spelled(field.least) + " to " + spelled(field.most));
  }
  return value;
}

std::array<double, 3> three_numbers(const Json& value, const std::string& where) {
  if (list(value, where).size() != 3) fail(where + " must hold 3 numbers");
  return {number(value[0], where), number(value[1], where), number(value[2], where)};
}

// The hash that every graph notes; stan_infer/artefacts/config_note.py says how it is made.
std::string canonical(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    std::string joined;
    for (const Json& item : value) joined += (joined.empty() ? "" : ",") + canonical(item);
    return joined;
  }
  const double number = value.get<double>();
  std::uint64_t bits = 0;
  std::memcpy(&bits, &number, sizeof bits);
  std::string hex;
  for (int shift = 60; shift >= 0; shift -= 4) hex += "0123456789abcdef"[bits >> shift & 15];
  return hex;
}

std::string config_sha256(const Json& model) {
  std::string text;
  for (const auto& [key, value] : model.items()) text += key + "=" + canonical(value) + "\n";
  return sha256_hex(reinterpret_cast<const std::byte*>(text.data()), text.size());
}

void check_model(const std::map<std::string, double>& of, std::size_t keys) {
  const auto at_most = [&](const char* small, const char* large) {
    if (of.at(small) > of.at(large)) {
      fail(std::string("model.") + small + " is " + spelled(of.at(small)) + "; at most model." +
           large + ", " + spelled(of.at(large)) + ", is allowed");
    }
  };
  const auto divides = [&](const char* part, const char* whole) {
    if (std::fmod(of.at(whole), of.at(part)) != 0) {
      fail(std::string("model.") + part + " does not divide model." + whole);
    }
  };
  at_most("patch", "image_size");
  at_most("image_size", "short_side");
  at_most("branch_layers", "layers");
  at_most("frames", "max_frames");
  divides("heads", "width");
  divides("patch", "image_size");
  if (of.at("text_layers") > 0) {
    at_most("context_length", "context_positions");
    divides("text_heads", "text_width");
  }
  if (keys != of.size() + std::size(kWords) + 2) fail("model has unknown keys");  // 2: mean, std
}

}  // namespace

Config model_of(const Json& json) {
  std::map<std::string, double> numbers;
  for (const Field& field : kNumbers) numbers[field.key] = model_number(json, field);
  for (Field field : kTextNumbers) {
    if (numbers["text_layers"] == 0) field.least = -1e15, field.most = 1e15;
    numbers[field.key] = model_number(json, field);
  }
  Config model;
  for (const auto& [key, known] : kWords) {
    const std::string word = text(member(json, key, "model"), std::string("model.") + key);
    const auto found = std::find(known.begin(), known.end(), word);
    if (found == known.end()) {
      fail(std::string("model.") + key + " is '" + shown(word) + "', which is not known");
    }
    if (key == std::string("head")) model.head = static_cast<Head>(found - known.begin());
  }
  const auto mean = three_numbers(member(json, "mean", "model"), "model.mean");
  const auto std = three_numbers(member(json, "std", "model"), "model.std");
  for (std::size_t i = 0; i < 3; ++i) {
    if (std::abs(mean[i]) > 1e4 || std[i] < 1e-3 || std[i] > 1e4) {
      fail("model.mean or model.std is out of range");
    }
    model.mean[i] = static_cast<float>(mean[i]);
    model.std[i] = static_cast<float>(std[i]);
  }
  check_model(numbers, json.size());
  const auto whole = [&](const char* key) { return static_cast<int>(numbers.at(key)); };
  model.frames = whole("frames");
  model.max_frames = whole("max_frames");
  model.branch_layers = whole("branch_layers");
  model.image_size = whole("image_size");
  model.short_side = whole("short_side");
  model.width = whole("width");
  const int patches = whole("image_size") / whole("patch");  // of a side
  model.patches = patches * patches;
  model.embed_dim = whole("embed_dim");
  model.context_length = whole("context_length");
  model.vocab_size = whole("vocab_size");
  model.temperature = numbers.at("temperature");
  model.sha256 = config_sha256(json);
  return model;
}

}  // namespace stan_infer
