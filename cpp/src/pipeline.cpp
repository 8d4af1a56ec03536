#include "pipeline.hpp"

#include <algorithm>
#include <cmath>
#include <regex>

#include "graph_check.hpp"
#include "error.hpp"
#include "npz.hpp"
#include "onnx_file.hpp"
#include "video.hpp"
#include "unicode.hpp"

namespace stan_infer {
namespace {

constexpr std::int64_t kTextsAtOnce = 64;  // bounds the memory of the token embeddings
constexpr std::size_t kMaxLabels = 100'000;
constexpr std::size_t kMaxNames = 2000;  // of files, with those of engines/

const Tensor& array(const std::map<std::string, Tensor>& arrays, const std::string& name,
                    const std::string& file) {
  const auto found = arrays.find(name);
  if (found == arrays.end()) {
    throw bad_input(file + " has no array '" + name + "'; export the checkpoint again");
  }
  return found->second;
}

Tensor rows_of(const Tensor& tensor, std::int64_t begin, std::int64_t count) {
  Shape shape = tensor.shape;
  shape[0] = count;
  Tensor result = make_tensor(tensor.dtype, shape);
  const std::size_t row_bytes = count ? result.bytes.size() / static_cast<std::size_t>(count) : 0;
  // Past the end the last row is repeated: a graph with a fixed batch wants them all.
  for (std::int64_t i = 0; i < count; ++i) {
    const auto from = static_cast<std::size_t>(std::min(begin + i, tensor.shape[0] - 1));
    std::memcpy(result.bytes.data() + static_cast<std::size_t>(i) * row_bytes,
                tensor.bytes.data() + from * row_bytes, row_bytes);
  }
  return result;
}

Tensor normalized(const Tensor& pixels, const Model& model) {
  // uint8 [T, S, S, 3] -> float32 [T, 3, S, S]
  const std::int64_t t = pixels.shape[0], area = pixels.shape[1] * pixels.shape[2];
  Tensor result = make_tensor(DType::float32, {t, 3, pixels.shape[1], pixels.shape[2]});
  const auto* from = pixels.data<std::uint8_t>();
  auto* to = result.data<float>();
  for (std::int64_t frame = 0; frame < t; ++frame) {
    for (std::int64_t c = 0; c < 3; ++c) {
      for (std::int64_t i = 0; i < area; ++i) {
        to[(frame * 3 + c) * area + i] =
            (static_cast<float>(from[(frame * area + i) * 3 + c]) - model.mean[c]) / model.std[c];
      }
    }
  }
  return result;
}

// Plans are added after the export, so the manifest lists none; the sidecar of each has its hash.
bool is_of_engines(const std::string& name) {
  static const std::regex pattern(
      "engines/([A-Za-z0-9_.-]+\\.plan(\\.json)?|"
      "\\.?stan-infer-work-[a-z0-9_]{8}/(lock|new\\.(plan|json))?)?");
  return std::regex_match(name, pattern) && name.find("..") == std::string::npos;
}

// Refuses what has no hash: a graph may read weights from any file beside it.
void check_names(const Folder& folder, const Manifest& manifest) {
  for (const std::string& name : folder.names(kMaxNames)) {
    const bool above = name.back() == '/' &&  // a folder of listed files
                       std::any_of(manifest.files.begin(), manifest.files.end(),
                                   [&](const auto& f) { return f.first.rfind(name, 0) == 0; });
    if (name != "manifest.json" && !above && !manifest.files.count(name) && !is_of_engines(name)) {
      throw bad_input(folder.path().string() + ": '" + shown(name) +
                      "' is not listed in manifest.json; take it out of the folder");
    }
  }
}

Tensor cosines(const Tensor& texts, const Tensor& clips) {
  const std::int64_t q = texts.shape[0], b = clips.shape[0], e = texts.shape[1];
  Tensor scores = make_tensor(DType::float32, {q, b});
  for (std::int64_t i = 0; i < q; ++i) {
    for (std::int64_t j = 0; j < b; ++j) {
      const float* t = texts.data<float>() + i * e;
      const float* v = clips.data<float>() + j * e;
      double dot = 0, tt = 0, vv = 0;
      for (std::int64_t k = 0; k < e; ++k) {
        dot += double{t[k]} * v[k];
        tt += double{t[k]} * t[k];
        vv += double{v[k]} * v[k];
      }
      scores.data<float>()[i * b + j] = static_cast<float>(dot / std::sqrt(tt * vv));
    }
  }
  return scores;
}

}  // namespace

Pipeline::Pipeline(const std::filesystem::path& folder, const Backend& backend)
    : folder_(folder), manifest_(read_manifest(folder_)), backend_(backend) {
  check_names(folder_, manifest_);
  for (const auto& [name, entry] : manifest_.files) folder_.check_size(name, entry.bytes);
  // All of it, also what a call does not use: whether a folder is sound does not depend on that.
  for (const auto& [name, entry] : manifest_.files) {
    const Bytes content = checked(name);
    for (const Graph& graph : manifest_.graphs) {
      if (graph.file == name) check_content(graph, content);
    }
  }
}

std::set<std::string> Pipeline::check_content(const Graph& graph, const Bytes& content) const {
  const GraphForm form = check_graph(content, graph.file);
  const std::set<std::string> listed(graph.external_data.begin(), graph.external_data.end());
  const std::set<std::string>& named = form.external;
  const bool on_top = named.empty() || graph.file.find('/') == std::string::npos;
  if (!on_top || !std::includes(listed.begin(), listed.end(), named.begin(), named.end())) {
    throw bad_input(graph.file +
                    " reads weights from files that manifest.json does not list as "
                    "its external_data, or lies in another folder than they; "
                    "export the checkpoint again");
  }
  // Shapes do not show head, temperature or sampling.
  if (form.config != manifest_.model.sha256) {
    throw check_failed("'model' in manifest.json is not what " + graph.file +
                       " was exported with: it was changed since; export the checkpoint again");
  }
  return named;
}

Bytes Pipeline::checked(const std::string& file) const {
  const FileEntry& entry = manifest_.file(file);
  return folder_.read_checked(file, entry.bytes, entry.sha256);
}

Pipeline::Opened& Pipeline::open(const std::string& role) {
  Opened& opened = opened_[role];
  if (opened.session) return opened;
  const Graph* graph = manifest_.graph(role);
  if (!graph) {
    throw bad_input("the folder has no " + role +
                    " graph, which this needs; export the checkpoint again, with that part");
  }
  GraphSource source{graph->file, checked(graph->file), {}, {}, role, &folder_};
  for (const Port& port : graph->inputs) source.ports.push_back(port.name);
  for (const Port& port : graph->outputs) source.ports.push_back(port.name);
  const std::set<std::string> named = check_content(*graph, source.content);
  if (!named.empty()) {
    // The engine opens these itself, by path; so does it the graph.
    for (const std::string& name : named) checked(name);
    source.path = folder_.path() / graph->file;
  }
  opened.session = backend_.open(source);
  opened.graph = graph;
  check_slots(*graph, *opened.session);
  return opened;
}

std::map<std::string, Tensor> Pipeline::run(Opened& opened,
                                            const std::map<std::string, Tensor>& inputs) {
  check_inputs(*opened.graph, inputs);
  std::vector<const Tensor*> given;
  for (const Slot& slot : opened.session->inputs()) given.push_back(&inputs.at(slot.name));
  std::vector<Tensor> results = opened.session->run(given);
  std::map<std::string, Tensor> outputs;
  for (std::size_t i = 0; i < results.size(); ++i) {
    outputs[opened.session->outputs()[i].name] = std::move(results[i]);
  }
  check_outputs(*opened.graph, inputs, outputs);
  return outputs;
}

// Runs a graph of one input over all rows, in batches that it accepts.
std::map<std::string, Tensor> Pipeline::run_batches(Opened& opened, const Tensor& rows,
                                                    std::int64_t most) {
  const Port& port = opened.graph->inputs.at(0);
  std::int64_t least = 1;
  if (!port.shape.empty()) {
    const Axis& axis = port.shape[0];
    const auto limits = opened.graph->dims.find(axis.name);
    if (axis.name.empty()) {
      least = most = axis.size;
    } else if (limits != opened.graph->dims.end()) {
      least = limits->second.first;
      most = std::max(least, std::min(most, limits->second.second));
    }
  }
  std::map<std::string, Tensor> whole;
  for (std::int64_t begin = 0; begin < rows.shape[0]; begin += most) {
    const std::int64_t left = std::min(most, rows.shape[0] - begin);
    const Tensor batch = rows_of(rows, begin, std::max(least, left));
    for (auto& [name, part] : run(opened, {{port.name, batch}})) {
      const Tensor real = rows_of(part, 0, left);
      const auto [at, fresh] = whole.emplace(name, real);
      if (fresh) continue;
      at->second.shape[0] += left;
      at->second.bytes.insert(at->second.bytes.end(), real.bytes.begin(), real.bytes.end());
    }
  }
  return whole;
}

Tensor Pipeline::preprocess(const Tensor& frames) {
  const std::int64_t side = manifest_.model.image_size;
  Opened& opened = open("preprocess");
  Tensor pixels = array(run_batches(opened, frames, 1), "pixels", opened.graph->file);
  expect(pixels, DType::uint8, {frames.shape[0], side, side, 3}, "the preprocessed clip");
  return pixels;
}

Tensor Pipeline::read_clip(const std::filesystem::path& video) {
  const std::int64_t side = manifest_.model.image_size;
  const int count = manifest_.model.frames;
  const Frames found =
      read_frames(video, count, [this](const Tensor& image) { return preprocess(image); });
  Tensor clip = make_tensor(DType::uint8, {count, side, side, 3});
  std::byte* to = clip.bytes.data();
  for (std::int64_t number : found.indices) {
    const Bytes& frame = found.by_number.at(number).bytes;
    to = std::copy(frame.begin(), frame.end(), to);
  }
  const Graph* graph = manifest_.graph("video");
  if (graph && graph->inputs[0].dtype == DType::float32) clip = normalized(clip, manifest_.model);
  clip.shape.insert(clip.shape.begin(), 1);
  return clip;
}

VideoEmbeds Pipeline::embed_video(const Tensor& clips) {
  Opened& opened = open("video");
  auto outputs = run_batches(opened, clips, 1);
  const std::int64_t b = clips.shape[0], e = manifest_.model.embed_dim;
  VideoEmbeds embeds{array(outputs, "video_embeds", opened.graph->file),
                     array(outputs, "frame_embeds", opened.graph->file), std::nullopt};
  expect(embeds.clips, DType::float32, {b, e}, "video_embeds");
  expect(embeds.frames, DType::float32, {b, clips.shape.at(1), e}, "frame_embeds");
  if (const auto found = outputs.find("scores"); found != outputs.end()) {
    expect(found->second, DType::float32, {b, -1}, "scores");
    embeds.class_scores = found->second;
  }
  return embeds;
}

Tensor Pipeline::tokenize(const std::vector<std::string>& texts) {
  if (!tokenizer_) {
    if (!manifest_.files.count("tokenizer.json")) {
      throw bad_input(
          "the folder has no tokenizer.json, so it cannot read texts; export a "
          "checkpoint with a text tower and CLIP's vocabulary");
    }
    const Bytes json = checked("tokenizer.json");
    tokenizer_.emplace(std::string(reinterpret_cast<const char*>(json.data()), json.size()));
  }
  const auto length = static_cast<std::size_t>(manifest_.model.context_length);
  const auto count = static_cast<std::int64_t>(texts.size());
  Tensor ids = make_tensor(DType::int32, {count, manifest_.model.context_length});
  cut_texts_.clear();
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const Text points = from_utf8(texts[i]);
    if (std::all_of(points.begin(), points.end(), is_space)) {
      throw bad_input("text " + std::to_string(i) + " is blank; give words");
    }
    const std::vector<std::int32_t> all = tokenizer_->encode(texts[i]);
    if (all.size() > length) cut_texts_.push_back(texts[i]);
    const std::vector<std::int32_t> row = fit(all, length);
    std::copy(row.begin(), row.end(), ids.data<std::int32_t>() + i * length);
  }
  return ids;
}

TextEmbeds Pipeline::embed_texts(const Tensor& ids) {
  Opened& opened = open("text");
  const auto outputs = run_batches(opened, ids, kTextsAtOnce);
  const std::int64_t q = ids.shape.at(0), e = manifest_.model.embed_dim;
  TextEmbeds embeds{ids, array(outputs, "text_embeds", opened.graph->file),
                    array(outputs, "token_embeds", opened.graph->file)};
  expect(embeds.texts, DType::float32, {q, e}, "text_embeds");
  expect(embeds.tokens, DType::float32, {q, ids.shape.at(1), e}, "token_embeds");
  return embeds;
}

Tensor Pipeline::score(const TextEmbeds& texts, const VideoEmbeds& video) {
  if (manifest_.model.head == Head::mean) return cosines(texts.texts, video.clips);
  Opened& opened = open("score");
  const auto outputs = run(
      opened,
      {{"token_embeds", texts.tokens}, {"input_ids", texts.ids}, {"frame_embeds", video.frames}});
  Tensor scores = array(outputs, "scores", opened.graph->file);
  expect(scores, DType::float32, {texts.ids.shape[0], video.clips.shape[0]}, "scores");
  return scores;
}

std::vector<std::string> Pipeline::labels() {
  if (!manifest_.labels) {
    throw bad_input("the folder has no labels; give --text TEXT, or export with --labels FILE");
  }
  const Bytes bytes = checked(manifest_.labels->file);
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::vector<std::string> result;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    result.push_back(text.substr(begin, end - begin));
    if (!result.back().empty() && result.back().back() == '\r') result.back().pop_back();
    begin = end + 1;
  }
  if (result.empty() || result.size() > kMaxLabels) {
    throw bad_input(manifest_.labels->file + " has " + std::to_string(result.size()) +
                    " labels; allowed are 1 to " + std::to_string(kMaxLabels));
  }
  return result;
}

Tensor Pipeline::score_labels(const VideoEmbeds& video) {
  const std::vector<std::string> names = labels();
  const auto n = static_cast<std::int64_t>(names.size());
  const std::int64_t e = manifest_.model.embed_dim, b = video.clips.shape[0];
  if (video.class_scores) {
    expect(*video.class_scores, DType::float32, {b, n}, "scores of the labels");
    Tensor scores = make_tensor(DType::float32, {n, b});
    for (std::int64_t i = 0; i < n * b; ++i) {
      scores.data<float>()[i] = video.class_scores->data<float>()[i % b * n + i / b];
    }
    return scores;
  }
  if (manifest_.labels->embeddings) {
    const std::string& file = *manifest_.labels->embeddings;
    auto arrays = parse_npz(checked(file), file);
    if (manifest_.model.head == Head::mean) {
      const Tensor& embeddings = array(arrays, "embeddings", file);
      expect(embeddings, DType::float32, {n, e}, "'embeddings' of " + file);
      return cosines(embeddings, video.clips);
    }
    const TextEmbeds texts{
        array(arrays, "input_ids", file), {}, array(arrays, "token_embeds", file)};
    expect(texts.ids, DType::int32, {n, -1}, "'input_ids' of " + file);
    expect(texts.tokens, DType::float32, {n, texts.ids.shape[1], e}, "'token_embeds' of " + file);
    return score(texts, video);
  }
  std::vector<std::string> texts;
  for (const std::string& name : names) {
    std::string text = manifest_.labels->text_template;
    for (std::size_t at = 0; (at = text.find("{}", at)) != std::string::npos; at += name.size()) {
      text.replace(at, 2, name);
    }
    texts.push_back(std::move(text));
  }
  return score(embed_texts(tokenize(texts)), video);
}

std::map<std::string, Tensor> Pipeline::golden() {
  if (!manifest_.golden) {
    throw bad_input("the folder has no golden data to check against; export the checkpoint again");
  }
  return parse_npz(checked(manifest_.golden->file), manifest_.golden->file);
}

std::vector<double> probabilities(const Tensor& scores, double temperature) {
  std::vector<double> result(scores.data<float>(), scores.data<float>() + scores.shape[0]);
  const double top = *std::max_element(result.begin(), result.end());
  double sum = 0;
  for (double& value : result) sum += value = std::exp((value - top) / temperature);
  for (double& value : result) value /= sum;
  return result;
}

}  // namespace stan_infer
