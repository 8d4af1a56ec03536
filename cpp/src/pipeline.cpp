#include "pipeline.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <regex>

#include "arrays.hpp"
#include "error.hpp"
#include "frames.hpp"
#include "graph_check.hpp"
#include "npz.hpp"
#include "onnx_file.hpp"
#include "video.hpp"

namespace stan_infer {
namespace {

constexpr std::int64_t kTextsAtOnce = 64;  // bounds the memory of the token embeddings
constexpr std::size_t kMaxLabels = 100'000;
constexpr std::size_t kMaxNames = 2000;  // of files, with those of engines/

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
      throw bad_folder(folder.path().string() + ": '" + shown(name) +
                       "' is not listed in manifest.json; take it out of the folder");
    }
  }
}

// The length of each row of float32 [n, E]; throws Error where it is 0 or not a number.
std::vector<double> lengths(const Tensor& rows, const std::string& name) {
  const std::int64_t n = rows.shape[0], e = rows.shape[1];
  std::vector<double> result;
  for (std::int64_t i = 0; i < n; ++i) {
    const float* row = rows.data<float>() + i * e;
    const double sum = std::inner_product(row, row + e, row, 0.0, std::plus<>(),
                                          [](double a, double b) { return a * b; });
    if (!(sum > 0) || !std::isfinite(sum)) {
      throw bad_argument("row " + std::to_string(i) + " of " + name +
                         " is all zeros or not finite, so it has no score");
    }
    result.push_back(std::sqrt(sum));
  }
  return result;
}

Tensor cosines(const Tensor& texts, const Tensor& clips) {
  const std::int64_t q = texts.shape[0], b = clips.shape[0], e = texts.shape[1];
  const std::vector<double> of_texts = lengths(texts, "the embeddings of texts");
  const std::vector<double> of_clips = lengths(clips, "the embeddings of clips");
  Tensor scores = make_tensor(DType::float32, {q, b});
  for (std::int64_t i = 0; i < q; ++i) {
    for (std::int64_t j = 0; j < b; ++j) {
      const float* t = texts.data<float>() + i * e;
      const double dot =
          std::inner_product(t, t + e, clips.data<float>() + j * e, 0.0, std::plus<>(),
                             [](double x, double y) { return x * y; });
      scores.data<float>()[i * b + j] = static_cast<float>(
          dot / of_texts[static_cast<std::size_t>(i)] / of_clips[static_cast<std::size_t>(j)]);
    }
  }
  return scores;
}

}  // namespace

Pipeline::Pipeline(const std::filesystem::path& folder, const Backend& backend, int batch,
                   int readers)
    : folder_(folder),
      manifest_(read_manifest(folder_)),
      backend_(backend),
      batch_(batch),
      readers_(readers) {
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
    throw bad_folder(graph.file +
                     " reads weights from files that manifest.json does not list as "
                     "its external_data, or lies in another folder than they; "
                     "export the checkpoint again");
  }
  // Shapes do not show head, temperature or sampling.
  if (form.config != manifest_.model.sha256) {
    throw changed("'model' in manifest.json is not what " + graph.file +
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
  call_.check();
  const Graph* graph = manifest_.graph(role);
  if (!graph) {
    throw bad_folder("the folder has no " + role +
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
                                            const std::map<std::string, View>& inputs) {
  check_inputs(*opened.graph, inputs);
  std::vector<View> given;
  for (const Slot& slot : opened.session->inputs()) given.push_back(inputs.at(slot.name));
  std::vector<Tensor> results;
  call_.check();
  try {
    results = opened.session->run(given, call_);
  } catch (const Error&) {
    call_.check();  // what ended it, and not what the engine says then
    throw;
  }
  std::map<std::string, Tensor> outputs;
  for (std::size_t i = 0; i < results.size(); ++i) {
    outputs[opened.session->outputs()[i].name] = std::move(results[i]);
  }
  check_outputs(*opened.graph, inputs, outputs);
  return outputs;
}

// Runs a graph of one input over all rows, in batches that it accepts.
std::map<std::string, Tensor> Pipeline::run_batches(Opened& opened, const View& rows,
                                                    std::int64_t most) {
  const Port& port = opened.graph->inputs.at(0);
  Shape wanted;
  for (const Axis& axis : port.shape) wanted.push_back(axis.size);
  if (!wanted.empty()) wanted[0] = -1;  // of these there may be any number
  expect_argument(rows, port.dtype, wanted, "'" + shown(port.name) + "'");
  std::int64_t least = 1;
  const Axis& axis = port.shape.at(0);
  const auto limits = opened.graph->dims.find(axis.name);
  if (axis.name.empty()) {
    least = most = axis.size;
  } else if (limits != opened.graph->dims.end()) {
    least = limits->second.first;
    most = std::max(least, std::min(most, limits->second.second));
  }
  std::map<std::string, Tensor> whole;
  for (std::int64_t begin = 0; begin < rows.shape[0]; begin += most) {
    const std::int64_t left = std::min(most, rows.shape[0] - begin);
    Tensor copy;
    const View batch = rows_of(rows, begin, std::max(least, left), copy);
    for (auto& [name, part] : run(opened, {{port.name, batch}})) {
      keep_rows(part, left);  // others were computed of repeated rows
      append_rows(whole[name], std::move(part));
    }
  }
  return whole;
}

Tensor Pipeline::preprocess(const View& frames) {
  const std::int64_t side = manifest_.model.image_size;
  Opened& opened = open("preprocess");
  Tensor pixels = array(run_batches(opened, frames, 1), "pixels", opened.graph->file);
  expect(pixels, DType::uint8, {frames.shape[0], side, side, 3}, "the preprocessed clip");
  return pixels;
}

// Of frames whose shorter side is right the graph only crops: every weight is 1, as Python says.
Tensor Pipeline::shrunk(const View& frame) {
  const std::int64_t side = manifest_.model.image_size;
  const std::int64_t height = frame.shape[1], width = frame.shape[2];
  open("preprocess");  // checked in any case
  if (std::min(height, width) != manifest_.model.short_side) return preprocess(frame);
  Tensor pixels = make_tensor(DType::uint8, {1, side, side, 3});
  const std::int64_t top = (height - side) / 2, left = (width - side) / 2;
  for (std::int64_t y = 0; y < side; ++y) {
    std::memcpy(pixels.bytes.data() + y * side * 3,
                frame.data + ((top + y) * width + left) * 3, static_cast<std::size_t>(side * 3));
  }
  return pixels;
}

Clip Pipeline::read_clip(const std::filesystem::path& video) {
  const auto shrink = [this](const Tensor& image) { return shrunk(image); };
  const Frames found = read_frames(video, manifest_.model.frames, shrink, call_, {readers_});
  return {clip_of(found.by_number, found.indices), found.indices, found.total_frames, found.hdr};
}

Tensor Pipeline::clip_of_frames(const std::vector<ImageView>& frames, const FrameOptions& options) {
  for (std::size_t i = 0; i < frames.size(); ++i) {
    check_image(frames[i], "frame " + std::to_string(i));
  }
  const std::vector<std::int64_t> indices =
      choose_frames(frames.size(), manifest_.model.frames, options);
  std::map<std::int64_t, Tensor> taken;
  for (std::int64_t number : indices) {
    if (taken.count(number)) continue;
    Tensor copy;
    taken[number] = shrunk(rgb_of(frames[static_cast<std::size_t>(number)], copy));
  }
  return clip_of(taken, indices);
}

// The input of the video graph, of preprocessed frames by their number.
Tensor Pipeline::clip_of(const std::map<std::int64_t, Tensor>& frames,
                         const std::vector<std::int64_t>& indices) {
  const std::int64_t side = manifest_.model.image_size;
  Tensor clip =
      make_tensor(DType::uint8, {static_cast<std::int64_t>(indices.size()), side, side, 3});
  std::byte* to = clip.bytes.data();
  for (std::int64_t number : indices) {
    const Bytes& frame = frames.at(number).bytes;
    to = std::copy(frame.begin(), frame.end(), to);
  }
  const Graph* graph = manifest_.graph("video");
  if (graph && graph->inputs[0].dtype == DType::float32) clip = normalized(clip, manifest_.model);
  clip.shape.insert(clip.shape.begin(), 1);
  return clip;
}

VideoEmbeds Pipeline::embed_clips(const Tensor& clips) {
  Opened& opened = open("video");
  const auto outputs = run_batches(opened, clips, batch_);
  return embeds_of(outputs, opened.graph->file, clips.shape[0], clips.shape.at(1));
}

// What a video or a branch graph gives for `b` clips of `t` frames.
VideoEmbeds Pipeline::embeds_of(const std::map<std::string, Tensor>& outputs,
                                const std::string& file, std::int64_t b, std::int64_t t) const {
  const std::int64_t e = manifest_.model.embed_dim;
  VideoEmbeds embeds{array(outputs, "video_embeds", file), array(outputs, "frame_embeds", file),
                     std::nullopt};
  expect(embeds.clips, DType::float32, {b, e}, "video_embeds");
  expect(embeds.frames, DType::float32, {b, t, e}, "frame_embeds");
  if (const auto found = outputs.find("scores"); found != outputs.end()) {
    expect(found->second, DType::float32, {b, -1}, "scores");
    embeds.class_scores = found->second;
  }
  return embeds;
}

VideoEmbeds Pipeline::embed_videos(const std::vector<std::filesystem::path>& videos) {
  if (videos.empty()) throw bad_argument("there is no video; give one or more");
  VideoEmbeds whole;
  const auto most = static_cast<std::size_t>(batch_);  // pixels of so many clips are kept
  for (std::size_t begin = 0; begin < videos.size(); begin += most) {
    Tensor clips;
    for (std::size_t i = begin; i < std::min(videos.size(), begin + most); ++i) {
      append_rows(clips, read_clip(videos[i]).pixels);
    }
    VideoEmbeds part = embed_clips(clips);
    append_rows(whole.clips, std::move(part.clips));
    append_rows(whole.frames, std::move(part.frames));
    if (!part.class_scores) continue;
    if (!whole.class_scores) whole.class_scores.emplace();
    append_rows(*whole.class_scores, std::move(*part.class_scores));
  }
  return whole;
}

Tensor Pipeline::tokenize(const std::vector<std::string>& texts, std::vector<std::size_t>& cut) {
  if (!tokenizer_) {
    if (!manifest_.files.count("tokenizer.json")) {
      throw bad_folder(
          "the folder has no tokenizer.json, so it cannot read texts; export a "
          "checkpoint with a text tower and CLIP's vocabulary");
    }
    const Bytes json = checked("tokenizer.json");
    tokenizer_.emplace(std::string(reinterpret_cast<const char*>(json.data()), json.size()));
  }
  const auto length = static_cast<std::size_t>(manifest_.model.context_length);
  const auto count = static_cast<std::int64_t>(texts.size());
  Tensor ids = make_tensor(DType::int32, {count, manifest_.model.context_length});
  for (std::size_t i = 0; i < texts.size(); ++i) {
    call_.check();
    const std::vector<std::int32_t> all = tokenizer_->encode(texts[i]);
    if (all.size() > length) cut.push_back(i);
    const std::vector<std::int32_t> row = fit(all, length);
    std::copy(row.begin(), row.end(), ids.data<std::int32_t>() + i * length);
  }
  return ids;
}

TextEmbeds Pipeline::embed_texts(const std::vector<std::string>& texts) {
  if (texts.empty()) throw bad_argument("there is no text; give one or more");
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (is_blank(texts[i])) throw bad_text("text " + std::to_string(i) + " is blank; give words");
  }
  std::vector<std::size_t> cut;
  TextEmbeds embeds = embed_ids(tokenize(texts, cut));
  embeds.cut = std::move(cut);
  return embeds;
}

TextEmbeds Pipeline::embed_ids(const Tensor& ids) {
  Opened& opened = open("text");
  const auto outputs = run_batches(opened, ids, kTextsAtOnce);
  const std::int64_t q = ids.shape.at(0), e = manifest_.model.embed_dim;
  TextEmbeds embeds{ids,
                    array(outputs, "text_embeds", opened.graph->file),
                    array(outputs, "token_embeds", opened.graph->file),
                    {}};
  expect(embeds.texts, DType::float32, {q, e}, "text_embeds");
  expect(embeds.tokens, DType::float32, {q, ids.shape.at(1), e}, "token_embeds");
  return embeds;
}

Tensor Pipeline::score(const TextEmbeds& texts, const VideoEmbeds& videos) {
  const std::int64_t e = manifest_.model.embed_dim;
  if (manifest_.model.head == Head::mean) {
    expect_whole(texts.texts, DType::float32, {-1, e}, "the embeddings of texts");
    expect_whole(videos.clips, DType::float32, {-1, e}, "the embeddings of clips");
    return cosines(texts.texts, videos.clips);
  }
  expect_whole(texts.ids, DType::int32, {-1, -1}, "the ids of texts");
  const std::int64_t q = texts.ids.shape[0];
  expect_whole(texts.tokens, DType::float32, {q, texts.ids.shape[1], e},
               "the token embeddings of texts");
  expect_whole(videos.frames, DType::float32, {-1, -1, e}, "the frame embeddings of clips");
  Opened& opened = open("score");
  const auto outputs = run(
      opened,
      {{"token_embeds", texts.tokens}, {"input_ids", texts.ids}, {"frame_embeds", videos.frames}});
  Tensor scores = array(outputs, "scores", opened.graph->file);
  expect(scores, DType::float32, {q, videos.frames.shape[0]}, "scores");
  const float* begin = scores.data<float>();
  const std::size_t count = element_count(scores.shape);
  if (!std::all_of(begin, begin + count, [](float x) { return std::isfinite(x); })) {
    throw bad_argument("a score is not a number: some embedding is all zeros or not finite");
  }
  return scores;
}

const std::vector<std::string>& Pipeline::labels() {
  if (!labels_.empty()) return labels_;
  if (!manifest_.labels) {
    throw bad_folder("the folder has no labels; give texts, or export with --labels FILE");
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
    throw bad_folder(manifest_.labels->file + " has " + std::to_string(result.size()) +
                     " labels; allowed are 1 to " + std::to_string(kMaxLabels));
  }
  return labels_ = std::move(result);
}

// Of the labels inside their template: those that the folder has, or computed once. Of those of a
// folder only what the scores of its head need.
const TextEmbeds& Pipeline::label_embeds() {
  if (label_embeds_) return *label_embeds_;
  const std::vector<std::string>& names = labels();
  if (!manifest_.labels->embeddings) {
    std::vector<std::string> texts;
    for (const std::string& name : names) {
      std::string text = manifest_.labels->text_template;
      for (std::size_t at = 0; (at = text.find("{}", at)) != std::string::npos; at += name.size()) {
        text.replace(at, 2, name);
      }
      texts.push_back(std::move(text));
    }
    return label_embeds_.emplace(embed_texts(texts));
  }
  const auto n = static_cast<std::int64_t>(names.size());
  const std::int64_t e = manifest_.model.embed_dim;
  const std::string& file = *manifest_.labels->embeddings;
  const auto arrays = parse_npz(checked(file), file);
  TextEmbeds embeds;
  if (manifest_.model.head == Head::mean) {
    embeds.texts = array(arrays, "embeddings", file);
    expect(embeds.texts, DType::float32, {n, e}, "'embeddings' of " + file);
  } else {
    embeds.ids = array(arrays, "input_ids", file);
    embeds.tokens = array(arrays, "token_embeds", file);
    expect(embeds.ids, DType::int32, {n, -1}, "'input_ids' of " + file);
    expect(embeds.tokens, DType::float32, {n, embeds.ids.shape[1], e}, "'token_embeds' of " + file);
  }
  return label_embeds_.emplace(std::move(embeds));
}

std::vector<std::size_t> Pipeline::cut_labels() const {
  return label_embeds_ ? label_embeds_->cut : std::vector<std::size_t>();
}

Tensor Pipeline::score_labels(const VideoEmbeds& videos) {
  if (!videos.class_scores) return score(label_embeds(), videos);
  const auto n = static_cast<std::int64_t>(labels().size());
  const std::int64_t b = videos.class_scores->shape.at(0);
  expect_whole(*videos.class_scores, DType::float32, {-1, n}, "the scores of the labels");
  Tensor scores = make_tensor(DType::float32, {n, b});
  for (std::int64_t i = 0; i < n * b; ++i) {
    scores.data<float>()[i] = videos.class_scores->data<float>()[i % b * n + i / b];
  }
  return scores;
}

std::map<std::string, Tensor> Pipeline::golden() {
  if (!manifest_.golden) {
    throw bad_folder("the folder has no golden data to check against; export the checkpoint again");
  }
  return parse_npz(checked(manifest_.golden->file), manifest_.golden->file);
}

Tensor Pipeline::golden_frames(std::int64_t side) {
  const std::string& file = manifest_.golden->clip.value();
  checked(file);
  const auto keep = [&](const Tensor& image) {
    if (image.shape[1] != side || image.shape[2] != side) {
      throw bad_video(file + " has frames of " + std::to_string(image.shape[2]) + "x" +
                      std::to_string(image.shape[1]) + " pixels; the golden data have " +
                      std::to_string(side) + "x" + std::to_string(side));
    }
    return image;
  };
  const Frames found = read_frames(folder_.path() / file, manifest_.model.frames, keep, call_);
  Tensor frames;
  for (std::int64_t number : found.indices) append_rows(frames, found.by_number.at(number));
  return frames;
}

}  // namespace stan_infer
