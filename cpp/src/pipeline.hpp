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

// What a stream must know of the video tower in two graphs.
struct Parts {
  int least = 0, most = 0;  // frames of a window
  int at_once = 0;          // frames that pass the trunk together, at most
  std::int64_t side = 0;    // of a frame in pixels
  Shape row;                // [N, D]: tokens of a frame, width
  int layers = 0;           // K: of the branch; so many rows pass between the graphs
};

class Pipeline {
 public:
  // Reads the manifest and checks all files; graphs are opened when they are first needed.
  // `backend` must outlive the pipeline. batch: clips that go through the network at once.
  // readers: threads that may decode a video. Every function throws Error.
  Pipeline(const std::filesystem::path& folder, const Backend& backend, int batch, int readers);

  const Manifest& manifest() const { return manifest_; }

  void use(const Call& call) { call_ = call; }  // ends what is done from now on, until the next one

  Tensor preprocess(const View& frames);                 // uint8 [n, H, W, 3] -> [n, S, S, 3]
  Tensor shrunk(const View& frame);  // the same of one frame; its own size is no work
  Clip read_clip(const std::filesystem::path& video);
  Tensor clip_of_frames(const std::vector<ImageView>& frames, const FrameOptions& options);
  VideoEmbeds embed_clips(const Tensor& clips);  // [clips, T, ..] as read_clip gives it
  VideoEmbeds embed_videos(const std::vector<std::filesystem::path>& videos);  // a clip of each

  bool has_parts() const;  // of the two graphs one or both, in an engine that runs them
  Parts parts();  // opens both graphs, and that of preprocessing; checks that they fit the model
  Tensor pixels_of(const ImageView& frame);  // checked -> uint8 [1, S, S, 3]
  // uint8 [F, S, S, 3] -> K times [F, N, D]; trunk takes float32 [F, 3, S, S] where the graph does.
  std::vector<Tensor> trunk_of_pixels(const View& frames);
  std::vector<Tensor> trunk(const View& frames);
  VideoEmbeds branch(const std::vector<View>& rows);  // K times [clips, T, N, D]

  TextEmbeds embed_texts(const std::vector<std::string>& texts);
  TextEmbeds embed_ids(const Tensor& ids);  // int32 [texts, L]

  // int32 [texts, L]. cut: gets the numbers of texts that lost words because they do not fit.
  Tensor tokenize(const std::vector<std::string>& texts, std::vector<std::size_t>& cut);

  // float32 [texts, clips]: cosine, or the Mug score.
  Tensor score(const TextEmbeds& texts, const VideoEmbeds& videos);

  const std::vector<std::string>& labels();
  std::vector<std::size_t> cut_labels() const;     // that lost words, once they were embedded
  Tensor score_labels(const VideoEmbeds& videos);  // float32 [labels, clips]

  std::map<std::string, Tensor> golden();
  // Of the golden clip those frames that are taken from a video, uint8 [T, side, side, 3], as they
  // are decoded. Throws Error (bad_video) where they are of another size.
  Tensor golden_frames(std::int64_t side);

  static constexpr int kFramesAtOnce = 8;  // through the trunk, where several are given

 private:

  struct Opened {
    const Graph* graph = nullptr;
    std::unique_ptr<Session> session;
  };

  Opened& open(const std::string& role);
  Bytes checked(const std::string& file) const;
  std::set<std::string> check_content(const Graph& graph, const Bytes& content) const;
  std::map<std::string, Tensor> run(Opened& opened, const std::map<std::string, View>& inputs);
  std::map<std::string, Tensor> run_batches(Opened& opened, const View& rows, std::int64_t most);
  Tensor clip_of(const std::map<std::int64_t, Tensor>& frames,
                 const std::vector<std::int64_t>& indices);
  VideoEmbeds embeds_of(const std::map<std::string, Tensor>& outputs, const std::string& file,
                        std::int64_t b, std::int64_t t) const;
  const TextEmbeds& label_embeds();

  Folder folder_;
  Manifest manifest_;
  const Backend& backend_;
  std::int64_t batch_;
  int readers_;
  Call call_ = Call::endless();
  std::map<std::string, Opened> opened_;
  std::optional<Tokenizer> tokenizer_;
  std::vector<std::string> labels_;         // read when they are first needed,
  std::optional<TextEmbeds> label_embeds_;  // and embedded
};

}  // namespace stan_infer
