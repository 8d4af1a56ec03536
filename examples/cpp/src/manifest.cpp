#include "stan/manifest.hpp"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "stan/error.hpp"

namespace stan {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMaxManifest = 16 << 20;
constexpr std::int64_t kMaxFile = std::int64_t{1} << 34;
constexpr std::size_t kMaxItems = 1000;     // graphs, ports, axes, files
constexpr std::int64_t kMaxSize = 1 << 24;  // of one axis

[[noreturn]] void fail(const std::string& what) {
  throw bad_input("manifest.json: " + what + "; export the checkpoint again");
}

// Every reader takes the place of the value for its message, as "graphs[0].file".
const Json& member(const Json& object, const std::string& key, const std::string& where) {
  if (!object.is_object()) fail(shown(where) + " is no object");
  const auto found = object.find(key);
  if (found == object.end()) fail("'" + key + "' is missing in " + shown(where));
  return *found;
}

std::string text(const Json& value, const std::string& where) {
  if (!value.is_string()) fail(shown(where) + " is no string");
  return value.get<std::string>();
}

std::int64_t integer(const Json& value, std::int64_t least, std::int64_t most,
                     const std::string& where) {
  const bool small = value.is_number_unsigned()
                         ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(most)
                         : value.is_number_integer() && value.get<std::int64_t>() <= most;
  if (!small || value.get<std::int64_t>() < least) {
    fail(shown(where) + " is " + shown(value.dump(-1, ' ', true), 40) + ", not an integer from " +
         std::to_string(least) + " to " + std::to_string(most));
  }
  return value.get<std::int64_t>();
}

double number(const Json& value, bool positive, const std::string& where) {
  if (!value.is_number() || !std::isfinite(value.get<double>()) ||
      (positive && value.get<double>() <= 0)) {
    fail(shown(where) + " is no finite" + (positive ? " positive" : "") + " number");
  }
  return value.get<double>();
}

const Json& list(const Json& value, const std::string& where) {
  if (!value.is_array() || value.size() > kMaxItems) {
    fail(shown(where) + " is no list of at most " + std::to_string(kMaxItems) + " items");
  }
  return value;
}

int model_int(const Json& model, const char* key, int least, int most) {
  return static_cast<int>(
      integer(member(model, key, "model"), least, most, std::string("model.") + key));
}

Model model_of(const Json& json) {
  Model model;
  model.max_frames = model_int(json, "max_frames", 1, 4096);
  model.frames = model_int(json, "frames", 1, model.max_frames);
  model.image_size = model_int(json, "image_size", 1, 4096);
  model.short_side = model_int(json, "short_side", model.image_size, 8192);
  model.embed_dim = model_int(json, "embed_dim", 1, 1 << 16);
  model.context_length = model_int(json, "context_length", 3, 4096);
  model.vocab_size = model_int(json, "vocab_size", 1, 1 << 24);
  model.temperature = number(member(json, "temperature", "model"), true, "model.temperature");
  const std::string head = text(member(json, "head", "model"), "model.head");
  if (head == "mean") {
    model.head = Head::mean;
  } else if (head == "mug") {
    model.head = Head::mug;
  } else if (head == "mug_frame_token") {
    model.head = Head::mug_frame_token;
  } else {
    fail("model.head is '" + shown(head) + "'; known are mean, mug and mug_frame_token");
  }
  return model;
}

Preprocess preprocess_of(const Json& json, const Model& model) {
  Preprocess result;
  const std::string dtype =
      text(member(json, "input_dtype", "preprocess"), "preprocess.input_dtype");
  const std::string layout = text(member(json, "layout", "preprocess"), "preprocess.layout");
  const bool bytes = dtype == "uint8" && layout == "BTHWC";
  if (!bytes && !(dtype == "float32" && layout == "BTCHW")) {
    fail("preprocess has input_dtype '" + shown(dtype) + "' with layout '" + shown(layout) +
         "'; known are uint8 with BTHWC and float32 with BTCHW");
  }
  result.input_dtype = bytes ? DType::uint8 : DType::float32;
  const std::string crop = text(member(json, "crop", "preprocess"), "preprocess.crop");
  if (crop != "center") fail("preprocess.crop is '" + shown(crop) + "'; only 'center' is known");
  for (const char* key : {"mean", "std"}) {
    const std::string where = std::string("preprocess.") + key;
    const Json& values = list(member(json, key, "preprocess"), where);
    if (values.size() != 3) fail(where + " must hold 3 numbers");
    for (std::size_t i = 0; i < 3; ++i) {
      const double value = number(values[i], *key == 's', where);
      (*key == 's' ? result.std : result.mean)[i] = static_cast<float>(value);
    }
  }
  const Json& sampling = member(json, "sampling", "preprocess");
  result.frames = static_cast<int>(integer(member(sampling, "frames", "preprocess.sampling"), 1,
                                           model.max_frames, "preprocess.sampling.frames"));
  // The rule is compared, not read: another rule would need other code.
  const std::string rule = text(member(sampling, "rule", "preprocess.sampling"), "sampling.rule");
  if (rule != "round_half_even((n-1)/T*i) + trunc((n-1)/T/2)") {
    fail("preprocess.sampling.rule is '" + shown(rule) + "', which this program does not know");
  }
  return result;
}

std::vector<Port> ports_of(const Json& json, const std::string& where) {
  std::vector<Port> ports;
  for (const Json& item : list(json, where)) {
    Port port;
    port.name = text(member(item, "name", where), where + ".name");
    port.dtype = dtype_of(text(member(item, "dtype", where), where + ".dtype"));
    for (const Json& axis : list(member(item, "shape", where), where + ".shape")) {
      if (axis.is_string() && !axis.get_ref<const std::string&>().empty()) {
        port.shape.push_back({axis.get<std::string>(), -1});
      } else {
        port.shape.push_back({"", integer(axis, 1, kMaxSize, where + ".shape")});
      }
    }
    ports.push_back(std::move(port));
  }
  if (ports.empty()) fail(shown(where) + " is empty");
  return ports;
}

Graph graph_of(const Json& json, const std::string& where) {
  Graph graph;
  graph.file = text(member(json, "file", where), where + ".file");
  graph.role = text(member(json, "role", where), where + ".role");
  graph.precision = text(member(json, "precision", where), where + ".precision");
  graph.inputs = ports_of(member(json, "inputs", where), where + ".inputs");
  graph.outputs = ports_of(member(json, "outputs", where), where + ".outputs");
  const Json& dims = member(json, "dims", where);
  if (!dims.is_object() || dims.size() > kMaxItems) fail(where + ".dims is no object");
  for (const auto& [name, limits] : dims.items()) {
    const std::string place = where + ".dims." + name;
    if (!limits.is_array() || limits.size() != 2) fail(shown(place) + " is no pair [least, most]");
    const auto least = integer(limits[0], 1, kMaxSize, place);
    graph.dims[name] = {least, integer(limits[1], least, kMaxSize, place)};
  }
  if (const auto found = json.find("external_data"); found != json.end()) {
    for (const Json& name : list(*found, where + ".external_data")) {
      graph.external_data.push_back(text(name, where + ".external_data"));
    }
  }
  return graph;
}

std::optional<Labels> labels_of(const Json& manifest) {
  const auto found = manifest.find("labels");
  if (found == manifest.end() || found->is_null()) return std::nullopt;
  Labels labels;
  labels.file = text(member(*found, "file", "labels"), "labels.file");
  if (const auto e = found->find("embeddings"); e != found->end() && !e->is_null()) {
    labels.embeddings = text(*e, "labels.embeddings");
  }
  if (const auto t = found->find("template"); t != found->end() && !t->is_null()) {
    labels.text_template = text(*t, "labels.template");
  }
  if (found->contains("templates") && !labels.embeddings) {
    fail("labels.templates are averaged in labels.embeddings, which is missing");
  }
  return labels;
}

std::optional<Golden> golden_of(const Json& manifest) {
  const auto found = manifest.find("golden");
  if (found == manifest.end() || found->is_null()) return std::nullopt;
  Golden golden;
  golden.file = text(member(*found, "file", "golden"), "golden.file");
  for (const Json& item : list(member(*found, "texts", "golden"), "golden.texts")) {
    golden.texts.push_back(text(item, "golden.texts"));
  }
  const auto tolerance = [&](const char* key) {
    return number(member(*found, key, "golden"), true, std::string("golden.") + key);
  };
  golden.video_tolerance = tolerance("video_tolerance");
  golden.text_tolerance = tolerance("text_tolerance");
  golden.score_tolerance = tolerance("score_tolerance");
  return golden;
}

std::map<std::string, FileEntry> files_of(const Json& json) {
  if (!json.is_object() || json.size() > kMaxItems) fail("files is no object");
  std::map<std::string, FileEntry> files;
  for (const auto& [name, entry] : json.items()) {
    if (!is_plain_name(name)) {
      fail("files names '" + shown(name) + "'; names must be relative and stay in the folder");
    }
    const std::string where = "files." + name;
    FileEntry& file = files[name];
    file.bytes = static_cast<std::uint64_t>(
        integer(member(entry, "bytes", where), 0, kMaxFile, where + ".bytes"));
    file.sha256 = text(member(entry, "sha256", where), where + ".sha256");
    if (file.sha256.size() != 64 ||
        file.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
      fail(shown(where) + ".sha256 is not 64 hexadecimal digits");
    }
  }
  return files;
}

void check_version(const Json& manifest) {
  const std::string schema = text(member(manifest, "schema", "the manifest"), "schema");
  if (schema.substr(0, schema.find('.')) != "1") {
    throw bad_input("manifest.json has schema '" + shown(schema, 20) +
                    "'; this program reads 1.x: use a newer one, or export the checkpoint again");
  }
}

}  // namespace

const Port* Graph::output(const std::string& name) const {
  for (const Port& port : outputs) {
    if (port.name == name) return &port;
  }
  return nullptr;
}

const Graph* Manifest::graph(const std::string& role) const {
  for (const Graph& graph : graphs) {
    if (graph.role == role) return &graph;
  }
  return nullptr;
}

const FileEntry& Manifest::file(const std::string& name) const {
  const auto found = files.find(name);
  if (found == files.end()) fail("the file '" + shown(name) + "' has no size and hash in files");
  return found->second;
}

Manifest parse_manifest(const std::string& json) {
  Json root;
  try {
    root = Json::parse(json);
  } catch (const Json::exception& e) {
    fail("it is not JSON (" + shown(e.what(), 120) + ")");
  }
  check_version(root);
  Manifest manifest;
  manifest.model = model_of(member(root, "model", "the manifest"));
  manifest.preprocess = preprocess_of(member(root, "preprocess", "the manifest"), manifest.model);
  manifest.files = files_of(member(root, "files", "the manifest"));
  std::set<std::string> roles;
  const Json& graphs = list(member(root, "graphs", "the manifest"), "graphs");
  for (std::size_t i = 0; i < graphs.size(); ++i) {
    const std::string where = "graphs[" + std::to_string(i) + "]";
    Graph graph = graph_of(graphs[i], where);
    const FileEntry& entry = manifest.file(graph.file);
    // The hash stands twice; a manifest that contradicts itself was edited.
    if (text(member(graphs[i], "sha256", where), where + ".sha256") != entry.sha256) {
      fail(where + ".sha256 is not that of files." + shown(graph.file));
    }
    for (const std::string& name : graph.external_data) manifest.file(name);
    if (!roles.insert(graph.role).second) {
      fail("two graphs have the role '" + shown(graph.role) + "'");
    }
    manifest.graphs.push_back(std::move(graph));
  }
  manifest.labels = labels_of(root);
  manifest.golden = golden_of(root);
  return manifest;
}

Manifest read_manifest(const Folder& folder) {
  const Bytes bytes = folder.read("manifest.json", kMaxManifest);
  return parse_manifest({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

}  // namespace stan
