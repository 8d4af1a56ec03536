// manifest.json of an exported folder, schema 1.1 or later: read, checked, nothing opened.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "folder.hpp"
#include "tensor.hpp"

namespace stan_infer {

// One axis: a name (dynamic) or a size.
struct Axis {
  std::string name;  // empty: fixed
  std::int64_t size = -1;
};

struct Port {
  std::string name;
  DType dtype = DType::float32;
  std::vector<Axis> shape;
};

struct FileEntry {
  std::uint64_t bytes = 0;
  std::string sha256;
};

struct Graph {
  std::string file, role, precision;
  std::vector<Port> inputs, outputs;
  std::map<std::string, std::pair<std::int64_t, std::int64_t>> dims;  // name -> least, most
  std::vector<std::string> external_data;

  const Port* output(const std::string& name) const;  // nullptr: none of that name
};

enum class Head { mean, mug, mug_frame_token };

struct Config {
  int frames = 0, max_frames = 0, image_size = 0, short_side = 0, embed_dim = 0;
  int context_length = 0, vocab_size = 0, branch_layers = 0;
  int width = 0, patches = 0;  // of a token; of a frame
  Head head = Head::mean;
  double temperature = 0;
  float mean[3] = {}, std[3] = {};  // on the 0..255 scale
  std::string sha256;               // of the whole config, as every graph notes it
};

struct Labels {
  std::string file;
  std::optional<std::string> embeddings;
  std::string text_template = "{}";
};

struct Golden {
  std::string file;
  std::optional<std::string> clip;  // a video whose decoded frames are in `file`
  std::vector<std::string> texts;
  double video_tolerance = 0, text_tolerance = 0, score_tolerance = 0;
};

struct Manifest {
  Config model;
  std::vector<Graph> graphs;
  std::optional<Labels> labels;
  std::optional<Golden> golden;
  std::map<std::string, FileEntry> files;

  const Graph* graph(const std::string& role) const;  // nullptr: the folder has none
  const FileEntry& file(const std::string& name) const;
};

// Both throw Error (bad_folder); keys of later versions are ignored, another major version is
// refused.
Manifest parse_manifest(const std::string& json);
Manifest read_manifest(const Folder& folder);

}  // namespace stan_infer
