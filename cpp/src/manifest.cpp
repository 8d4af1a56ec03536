#include "manifest.hpp"

#include <algorithm>
#include <iterator>
#include <set>

#include "error.hpp"
#include "manifest_json.hpp"

namespace stan_infer {
namespace {

constexpr std::uint64_t kMaxManifest = 1 << 20;
constexpr std::int64_t kMaxFile = std::int64_t{1} << 34;
constexpr std::size_t kMaxFiles = 100, kMaxDims = 16;
constexpr std::int64_t kMaxSize = 1 << 24;  // of one axis

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
  if (!dims.is_object() || dims.size() > kMaxDims) fail(where + ".dims is no object");
  for (const auto& [name, limits] : dims.items()) {
    const std::string place = where + ".dims." + name;
    if (!limits.is_array() || limits.size() != 2) fail(shown(place) + " is no pair [least, most]");
    const auto least = integer(limits[0], 1, kMaxSize, place);
    graph.dims[name] = {least, integer(limits[1], least, kMaxSize, place)};
  }
  if (const auto found = json.find("external_data"); found != json.end() && !found->is_null()) {
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
  if (const auto clip = found->find("clip"); clip != found->end() && !clip->is_null()) {
    golden.clip = text(*clip, "golden.clip");
  }
  if (const auto texts = found->find("texts"); texts != found->end()) {
    for (const Json& item : list(*texts, "golden.texts")) {
      golden.texts.push_back(text(item, "golden.texts"));
    }
  }
  const auto tolerance = [&](const std::string& key) {
    const double value = found->contains(key) ? number((*found)[key], "golden." + key) : 0;
    if (value < 0 || value > 1e6) fail("golden." + key + " is out of range");
    return value;
  };
  golden.video_tolerance = tolerance("video_tolerance");
  golden.text_tolerance = tolerance("text_tolerance");
  golden.score_tolerance = tolerance("score_tolerance");
  return golden;
}

std::map<std::string, FileEntry> files_of(const Json& json) {
  if (!json.is_object() || json.size() > kMaxFiles) fail("files is no object of at most 100 files");
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
  const std::size_t dot = schema.find('.');
  if (schema.substr(0, dot) != "1") {
    throw bad_folder("manifest.json has schema '" + shown(schema, 20) +
                     "'; this program reads 1.x: use a newer one, or export the checkpoint again");
  }
  if (dot == std::string::npos || schema.substr(dot + 1) == "0" || dot + 1 == schema.size()) {
    throw bad_folder(
        "manifest.json has schema '" + shown(schema, 20) +
        "', whose graphs do not all note the model's config: export the checkpoint again");
  }
}

struct Role {
  const char* name;
  std::map<std::string, std::size_t> inputs;  // name -> rank
  std::vector<std::string> dims;              // whose ranges must be given
};
const Role kRoles[] = {
    {"video", {{"video", 5}}, {"batch", "frames"}},
    {"text", {{"input_ids", 2}}, {"batch", "length"}},
    {"trunk", {{"frames", 4}}, {"frames"}},
    {"branch", {}, {"batch", "frames"}},  // with one input of rank 4 per layer of the branch
    {"preprocess", {{"frames", 4}}, {"n", "height", "width"}},
    {"score",
     {{"token_embeds", 3}, {"input_ids", 2}, {"frame_embeds", 3}},
     {"texts", "videos", "frames", "length"}},
};

void check_graph_entry(const Graph& graph, int branch_layers) {
  const std::string file = shown(graph.file);
  const auto* role = std::find_if(std::begin(kRoles), std::end(kRoles),
                                  [&](const Role& r) { return graph.role == r.name; });
  if (role == std::end(kRoles)) fail(file + " has the unknown role '" + shown(graph.role) + "'");
  const bool is_onnx =
      graph.file.size() >= 5 && graph.file.compare(graph.file.size() - 5, 5, ".onnx") == 0;
  if (!is_onnx) fail("'" + file + "' is not an .onnx file");
  std::map<std::string, std::size_t> inputs;
  std::vector<std::string> needed = role->dims;
  for (const Port& port : graph.inputs) {
    inputs[port.name] = port.shape.size();
    for (const Axis& axis : port.shape) {
      if (!axis.name.empty()) needed.push_back(axis.name);
    }
  }
  std::map<std::string, std::size_t> wanted = role->inputs;
  for (int k = 0; graph.role == "branch" && k < branch_layers; ++k) {
    wanted["rows_" + std::to_string(k)] = 4;
  }
  if (inputs != wanted || graph.inputs.size() != inputs.size()) {
    fail(file + " has other inputs, or of other ranks, than a " + role->name + " graph");
  }
  for (const Port& port : graph.outputs) {
    if (port.shape.empty()) fail(file + " has an output without axes");
  }
  for (const std::string& name : needed) {
    if (!graph.dims.count(name)) fail(file + ": dims lacks '" + shown(name) + "'");
  }
  // A tower's first two axes are fixed where one size alone is allowed.
  for (std::size_t i = 0; graph.inputs.size() == 1 && i < role->dims.size() && i < 2; ++i) {
    const auto& [least, most] = graph.dims.at(role->dims[i]);
    const Axis& axis = graph.inputs[0].shape[i];
    if (axis.name.empty() && (least != axis.size || most != axis.size)) {
      fail(file + ": dims has a range of " + role->dims[i] + ", which is fixed");
    }
  }
  const bool beside = graph.external_data == std::vector<std::string>{graph.file + ".data"};
  if (!graph.external_data.empty() && !beside) {
    fail(file + " has its weights in another file than " + file + ".data");
  }
}

// Files that no entry of the manifest names.
bool is_other_file(const std::string& name) {
  if (name == "tokenizer.json" || name == "calibration.json" || name == "README.md" ||
      name == "sensitivity.svg" || name == "sensitivity.png") {
    return true;
  }
  const bool notice = name.rfind("NOTICE", 0) == 0 || name.rfind("LICENSE", 0) == 0 ||
                      name.rfind("LICENCE", 0) == 0;
  return notice && name.find('/') == std::string::npos;
}

// Every file that an entry names is listed, and every file that is listed is of use.
void check_files(const Manifest& manifest) {
  std::set<std::string> named;
  const auto name = [&](const std::string& file) {
    manifest.file(file);
    if (!named.insert(file).second) fail("two entries have the file '" + shown(file) + "'");
  };
  for (const Graph& graph : manifest.graphs) {
    name(graph.file);
    for (const std::string& data : graph.external_data) name(data);
  }
  if (manifest.golden) {
    name(manifest.golden->file);
    if (manifest.golden->clip) name(*manifest.golden->clip);
  }
  if (manifest.labels) {
    name(manifest.labels->file);
    if (manifest.labels->embeddings) name(*manifest.labels->embeddings);
  }
  for (const auto& [file, entry] : manifest.files) {
    if (!named.count(file) && !is_other_file(file)) {
      fail("'" + shown(file) + "' is a file that nothing in this folder uses");
    }
  }
}

// What `said` repeats of the model or of this program's rules must be all there, and the same.
void check_same(const Json& said, const Json& known, const std::string& where) {
  for (const auto& [key, value] : known.items()) {
    const Json& there = member(said, key, where);
    if (value.is_object() && there.is_object()) {
      check_same(there, value, where + "." + key);
    } else if (there != value) {
      fail(where + "." + key + " is " + shown(there.dump(-1, ' ', true)) + "; it must be " +
           value.dump(-1, ' ', true) + ", as the model or this program has it");
    }
  }
}

void check_repeated(const Json& root, const Manifest& manifest) {
  const Json& model = root["model"];
  if (const Graph* video = manifest.graph("video")) {
    const bool bytes = video->inputs[0].dtype == DType::uint8;
    check_same(member(root, "preprocess", "the manifest"),
               {{"input_dtype", bytes ? "uint8" : "float32"},
                {"layout", bytes ? "BTHWC" : "BTCHW"},
                {"color", "RGB"},
                {"resize",
                 {{"short_side", model["short_side"]},
                  {"filter", "bilinear"},
                  {"antialias", false},
                  {"rounding", "int(side * scale + 0.5)"}}},
                {"crop", "center"},
                {"mean", model["mean"]},
                {"std", model["std"]},
                {"folded_in_graph", bytes},
                {"sampling",
                 {{"frames", model["frames"]},
                  {"rule", "round_half_even((n-1)/T*i) + trunc((n-1)/T/2)"}}}},
               "preprocess");
  }
  if (manifest.graph("text")) {
    check_same(member(root, "text", "the manifest"),
               {{"clean",
                 {"ftfy.fix_text", "html.unescape", "html.unescape", "white space", "lower case"}},
                {"start", 49406},
                {"end", 49407},
                {"padding", 0},
                {"context_length", model["context_length"]},
                {"truncation", "keep-eot"}},
               "text");
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
  const Json root = parse_json(json);
  check_version(root);
  Manifest manifest;
  manifest.files = files_of(member(root, "files", "the manifest"));
  manifest.model = model_of(member(root, "model", "the manifest"));
  const Json& graphs = list(member(root, "graphs", "the manifest"), "graphs");
  for (std::size_t i = 0; i < graphs.size(); ++i) {
    Graph graph = graph_of(graphs[i], "graphs[" + std::to_string(i) + "]");
    check_graph_entry(graph, manifest.model.branch_layers);
    if (manifest.graph(graph.role)) fail("two graphs have the role '" + shown(graph.role) + "'");
    manifest.graphs.push_back(std::move(graph));
  }
  manifest.labels = labels_of(root);
  manifest.golden = golden_of(root);
  check_files(manifest);
  check_repeated(root, manifest);
  return manifest;
}

Manifest read_manifest(const Folder& folder) {
  const Bytes bytes = folder.read("manifest.json", kMaxManifest);
  return parse_manifest({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

}  // namespace stan_infer
