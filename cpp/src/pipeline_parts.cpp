// The video tower in two graphs: trunk, which reads each frame alone, and branch, which mixes them.
#include "arrays.hpp"
#include "error.hpp"
#include "frames.hpp"
#include "pipeline.hpp"

namespace stan_infer {
namespace {

constexpr std::int64_t kMostFilled = 64;  // clips of a graph of a fixed batch; a stream uses one

std::string rows_name(int k) { return "rows_" + std::to_string(k); }

// Whether a port has this type, and behind its first axes, `leading` of them, these sizes.
bool ends_with(const Port* port, DType dtype, std::size_t leading, const Shape& sizes) {
  if (!port || port->dtype != dtype || port->shape.size() != leading + sizes.size()) return false;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (port->shape[leading + i].size != sizes[i]) return false;
  }
  return true;
}

const Port* input_of(const Graph& graph, const std::string& name) {
  for (const Port& port : graph.inputs) {
    if (port.name == name) return &port;
  }
  return nullptr;
}

}  // namespace

bool Pipeline::has_parts() const {
  return backend_.runs_parts() && (manifest_.graph("trunk") || manifest_.graph("branch"));
}

Parts Pipeline::parts() {
  if (!backend_.runs_parts()) {
    throw bad_argument(backend_.name() +
                       " does not run a stream's two graphs; use ONNX Runtime or OpenVINO");
  }
  for (const char* role : {"trunk", "branch"}) {
    if (manifest_.graph(role)) continue;
    throw bad_folder("folder " + folder_.path().string() + " has no " + role +
                     ".onnx, which a stream needs: export it with stan-infer export CHECKPOINT -o "
                     "FOLDER --split");
  }
  const Config& model = manifest_.model;
  const Graph &trunk = *open("trunk").graph, &branch = *open("branch").graph;
  open("preprocess");
  const std::int64_t side = model.image_size;
  const auto most = std::min<std::int64_t>(trunk.dims.at("frames").second, kFramesAtOnce);
  const Parts parts{static_cast<int>(branch.dims.at("frames").first),
                    static_cast<int>(branch.dims.at("frames").second),
                    static_cast<int>(most),
                    side,
                    {std::int64_t{1} + model.patches, model.width},
                    model.branch_layers};
  bool fits = ends_with(&trunk.inputs[0], DType::uint8, 1, {side, side, 3}) ||
              ends_with(&trunk.inputs[0], DType::float32, 1, {3, side, side});
  for (int k = 0; k < parts.layers; ++k) {
    fits = fits && ends_with(trunk.output(rows_name(k)), DType::float32, 1, parts.row) &&
           ends_with(input_of(branch, rows_name(k)), DType::float32, 2, parts.row);
  }
  if (!fits || parts.most > model.max_frames) {
    throw bad_folder(trunk.file + " and " + branch.file +
                     " do not fit the config in manifest.json; export the checkpoint again");
  }
  if (const std::int64_t least = branch.dims.at("batch").first; least > kMostFilled) {
    throw bad_folder(branch.file + " takes no fewer than " + std::to_string(least) +
                     " clips at once, and a stream has one at a time; up to " +
                     std::to_string(kMostFilled) +
                     " are filled up: export it again with a smaller --batch");
  }
  return parts;
}

Tensor Pipeline::pixels_of(const ImageView& frame) {
  Tensor copy;
  return shrunk(rgb_of(frame, copy));
}

std::vector<Tensor> Pipeline::trunk_of_pixels(const View& frames) {
  if (open("trunk").graph->inputs[0].dtype != DType::float32) return trunk(frames);
  return trunk(normalized(frames, manifest_.model));
}

std::vector<Tensor> Pipeline::trunk(const View& frames) {
  Opened& opened = open("trunk");
  auto outputs = run_batches(opened, frames, kFramesAtOnce);
  std::vector<Tensor> rows;
  for (int k = 0; k < manifest_.model.branch_layers; ++k) {
    rows.push_back(array(outputs, rows_name(k), opened.graph->file));
  }
  return rows;
}

VideoEmbeds Pipeline::branch(const std::vector<View>& rows) {
  Opened& opened = open("branch");
  const std::int64_t least = opened.graph->dims.at("batch").first, clips = rows[0].shape[0];
  std::vector<Tensor> copies(rows.size());
  std::map<std::string, View> inputs;
  for (std::size_t k = 0; k < rows.size(); ++k) {
    const View all = rows_of(rows[k], 0, std::max(least, clips), copies[k]);
    inputs.emplace(rows_name(static_cast<int>(k)), all);
  }
  auto outputs = run(opened, inputs);
  for (auto& [name, output] : outputs) keep_rows(output, clips);
  return embeds_of(outputs, opened.graph->file, clips, rows[0].shape[1]);
}

}  // namespace stan_infer
