// An exported folder, ready: video files and texts in, embeddings and scores out.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backend.hpp"
#include "manifest.hpp"
#include "tensor.hpp"
#include "tokenizer.hpp"

namespace stan_infer {

struct VideoEmbeds {
  Tensor clips;                        // float32 [clips, E]
  Tensor frames;                       // float32 [clips, T, E]
  std::optional<Tensor> class_scores;  // float32 [clips, labels], of a graph with labels in it
};

struct TextEmbeds {
  Tensor ids;     // int32 [texts, L]
  Tensor texts;   // float32 [texts, E]
  Tensor tokens;  // float32 [texts, L, E]
};

class Pipeline {
 public:
  // Reads the manifest and checks all files; graphs are opened when they are first needed.
  // `backend` must outlive the pipeline. Every function throws Error.
  Pipeline(const std::filesystem::path& folder, const Backend& backend);

  const Manifest& manifest() const { return manifest_; }

  Tensor preprocess(const Tensor& frames);                 // uint8 [n, H, W, 3] -> [n, S, S, 3]
  Tensor read_clip(const std::filesystem::path& video);    // input of the video graph, [1, T, ..]
  VideoEmbeds embed_video(const Tensor& clips);            // [clips, T, ..] as read_clip gives it
  Tensor tokenize(const std::vector<std::string>& texts);  // int32 [texts, L]
  TextEmbeds embed_texts(const Tensor& ids);

  // float32 [texts, clips]: cosine, or the Mug score.
  Tensor score(const TextEmbeds& texts, const VideoEmbeds& video);

  std::vector<std::string> labels();
  Tensor score_labels(const VideoEmbeds& video);  // float32 [labels, clips]

  std::map<std::string, Tensor> golden();

  // Texts that lost words because they do not fit, by tokenize.
  const std::vector<std::string>& cut_texts() const { return cut_texts_; }

 private:
  struct Opened {
    const Graph* graph = nullptr;
    std::unique_ptr<Session> session;
  };

  Opened& open(const std::string& role);
  Bytes checked(const std::string& file) const;
  std::set<std::string> check_content(const Graph& graph, const Bytes& content) const;
  std::map<std::string, Tensor> run(Opened& opened, const std::map<std::string, Tensor>& inputs);
  std::map<std::string, Tensor> run_batches(Opened& opened, const Tensor& rows, std::int64_t most);

  Folder folder_;
  Manifest manifest_;
  const Backend& backend_;
  std::map<std::string, Opened> opened_;
  std::optional<Tokenizer> tokenizer_;
  std::vector<std::string> cut_texts_;
};

// exp(score / temperature), normalised over the texts; scores: float32 [texts, 1].
std::vector<double> probabilities(const Tensor& scores, double temperature);

}  // namespace stan_infer
