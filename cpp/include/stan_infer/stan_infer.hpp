// An exported folder in C++: video and texts in, embeddings and scores out.
//
//   stan_infer::Model model("out/motion");
//   auto video = model.embed_video("clip.mp4");
//   auto texts = model.embed_texts({"a dog runs", "a cat sleeps"});
//   auto chances = model.probabilities(model.score(texts, video));
//
// Errors: every function that is not noexcept throws Error and nothing else.
// Threads: any thread may call; calls on one Model wait for each other, Models are independent. A
// Call ends such waiting, and the work.
// Ownership: what is returned belongs to the caller; memory that is given is read during the call
// only, and never written.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#define STAN_INFER_VERSION "0.1.0"

// STAN_INFER_SHARED comes with the installed package. A static copy exports nothing from the
// program or the shared object that it becomes a part of.
#ifdef STAN_INFER_SHARED
#define STAN_INFER_API __attribute__((visibility("default")))
#else
#define STAN_INFER_API
#endif

// Of ONNX Runtime's own header, which is not needed here.
struct OrtApiBase;
struct OrtEnv;
struct OrtSessionOptions;

namespace stan_infer {

enum class ErrorCode {
  bad_argument,  // a shape, size, pointer or option that the caller gave
  bad_folder,    // the exported folder: what its files say, or that one is missing
  changed,       // a file of the folder is not the one that was exported
  bad_video,     // a video file: none, cut off, damaged
  bad_text,      // a caption: blank, not UTF-8, mojibake
  engine,        // the engine does not open or run a graph
  missing,       // a library, a GPU, or a part that this build leaves out
  out_of_memory,
  cancelled,  // by Call::cancel
  deadline,   // of the Call
  internal,   // a bug of ours
};

// what(): one line of UTF-8: what is wrong, where, and what to do.
class STAN_INFER_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

enum class DType { uint8, int32, int64, float32 };

using Shape = std::vector<std::int64_t>;

// A dense array in row-major order. A Tensor that is given to a Model must hold as many bytes as
// its shape says.
struct STAN_INFER_API Tensor {
  DType dtype = DType::uint8;
  Shape shape;
  std::vector<std::byte> bytes;

  // The elements; T is std::uint8_t, std::int32_t, std::int64_t or float. Throws Error
  // (bad_argument) unless that is dtype.
  template <class T>
  const T* data() const {
    check_type<T>();
    return reinterpret_cast<const T*>(bytes.data());
  }
  template <class T>
  T* data() {
    check_type<T>();
    return reinterpret_cast<T*>(bytes.data());
  }

 private:
  template <class T>
  void check_type() const {
    constexpr bool u8 = std::is_same_v<T, std::uint8_t>, i32 = std::is_same_v<T, std::int32_t>,
                   i64 = std::is_same_v<T, std::int64_t>, f32 = std::is_same_v<T, float>;
    static_assert(u8 || i32 || i64 || f32, "no element type of a Tensor");
    constexpr DType wanted = u8    ? DType::uint8
                             : i32 ? DType::int32
                             : i64 ? DType::int64
                                   : DType::float32;
    if (dtype != wanted) throw Error(ErrorCode::bad_argument, "a tensor has another type of data");
  }
};

enum class PixelFormat {
  rgb,   // one plane, 3 bytes a pixel
  bgr,   // the same in the order of OpenCV
  nv12,  // a plane of Y; one of U and V in turn, for every two columns and two rows
  i420,  // planes of Y, U and V, the latter for every two columns and two rows
};

enum class ColorMatrix { bt601, bt709, bt2020 };

// `size` bytes may be read from `data` on; a row begins `stride` bytes after the one above it.
struct Plane {
  const std::uint8_t* data = nullptr;
  std::size_t size = 0;
  std::size_t stride = 0;
};

// A frame in the caller's memory, upright, top row first, 8 bits a sample.
struct STAN_INFER_API ImageView {
  PixelFormat format = PixelFormat::rgb;
  int width = 0, height = 0;  // in pixels; sides may be odd, then colour has a column or row for
                              // the last one, too
  std::array<Plane, 3> planes;
  ColorMatrix matrix = ColorMatrix::bt601;  // of nv12 and i420
  bool full_range = false;                  // of nv12 and i420: 0 to 255, else 16 to 235

  // Planes without gaps, one after another, in `size` bytes. Throws Error (bad_argument) where
  // these are too few.
  static ImageView packed(PixelFormat format, const std::uint8_t* data, std::size_t size, int width,
                          int height);
};

struct FrameOptions {
  bool sample = true;  // false: takes all frames, 1 to 64, which were chosen before
  // Seconds of each frame, where they come at an uneven rate: the clip is then spread evenly by
  // time. Else empty: by number, as of a video file.
  std::vector<double> timestamps;
};

// Ends the calls that it is given to: at once by cancel(), or at a deadline. They throw Error
// (cancelled or deadline), the model stays as it was, and its next call works. One that is over
// stays over. Copies are the same Call; any thread may use it, but no signal handler.
//
// Ended at once: waiting for a busy model, reading a video, runs of ONNX Runtime and OpenVINO. Not
// before they are done: opening a graph, which the first call does, and a run of TensorRT.
class STAN_INFER_API Call {
 public:
  Call();  // without a deadline
  Call(const Call&) = default;
  Call& operator=(const Call&) = default;
  static Call until(std::chrono::steady_clock::time_point deadline);
  static Call within(std::chrono::steady_clock::duration limit);  // from now on
  static Call endless();  // cannot end, cancel() does nothing: what functions have by default

  void cancel() const noexcept;
  bool is_over() const noexcept;  // cancelled, or past its deadline
  void check() const;             // throws Error (cancelled or deadline) if it is

 private:
  friend class Watch;
  struct State;
  explicit Call(std::nullptr_t);
  std::shared_ptr<State> state_;
};

enum class Engine { onnxruntime, openvino, tensorrt };

struct Options {
  Engine engine = Engine::onnxruntime;
  // That the engine uses within one call, 0 to 1024; 0: its choice. As many, at most 8 and with 0
  // one per processor, decode a long video in H.264; what comes out does not depend on it.
  int threads = 0;
  int batch = 1;    // clips that go through the network at once, 1 to 64

  // libonnxruntime.so, 1.18 or newer; empty: the system's libonnxruntime.so.1. It is loaded once
  // and stays. The variable ORT_DISABLE_TELEMETRY of the process becomes 1 unless it has a value.
  std::filesystem::path onnxruntime;
  // Execution provider of ONNX Runtime, as "CUDA", "TensorRT", "XNNPACK", "CoreML" or "NNAPI", in
  // any case, with its options; Error (missing) where that build has it not. What it cannot compute
  // ONNX Runtime computes on the CPU.
  std::string provider = "CPU";
  std::map<std::string, std::string> provider_options;

  // An ONNX Runtime of the caller's own, in place of the path: OrtGetApiBase() of it, and, if
  // wanted, an environment (whose telemetry is left as it is) and session options, whose threads
  // and providers then count and not those above. All must outlive the Model and its Streams.
  // Session options are copied, and the copy reads ONNX only and multiplies 8 bits exactly.
  const OrtApiBase* ort_api_base = nullptr;
  OrtEnv* ort_env = nullptr;
  const OrtSessionOptions* ort_session_options = nullptr;
};

struct Info {
  int frames = 0;          // T: of a clip
  int image_size = 0;      // S: pixels of its sides
  int embed_dim = 0;       // E
  int context_length = 0;  // L: tokens of a text, with its start and end
  double temperature = 0;  // of the softmax over texts
  bool is_mug = false;     // scores are of frames with tokens, not cosines
  bool has_texts = false;  // embed_texts may be called
  bool has_labels = false;
  bool has_stream = false;  // stream may be called: a folder of --split, in an engine that runs it
  std::string engine;     // with its version
  std::string version;    // of the engine alone
  std::string provider;   // "CPUExecutionProvider": of ONNX Runtime; "": its session options say it
  std::string precision;  // of the video graph: "fp32", "fp16", "int8"
};

// The clip of a video file.
struct Clip {
  Tensor pixels;  // as embed_clips wants it: uint8 [1, T, S, S, 3] RGB, or of a folder with float
                  // input float32 [1, T, 3, S, S], normalised
  std::vector<std::int64_t> frame_indices;  // T numbers of frames, from 0
  std::int64_t total_frames = 0;            // of the video
  std::string hdr;  // "PQ" or "HLG": the transfer of a video in HDR, whose values are taken as they
                    // are stored; "" else
};

struct VideoEmbeds {
  Tensor clips;                        // float32 [clips, E], not normalised
  Tensor frames;                       // float32 [clips, T, E]
  std::optional<Tensor> class_scores;  // float32 [clips, labels], of a folder for classification
};

struct TextEmbeds {
  Tensor ids;                    // int32 [texts, L]
  Tensor texts;                  // float32 [texts, E], not normalised
  Tensor tokens;                 // float32 [texts, L, E]
  std::vector<std::size_t> cut;  // numbers of the texts that lost words: only L tokens are used
};

// One comparison of the self-test.
struct Stage {
  std::string name;  // "decode", "preprocess", "video_embeds", ...
  double error = 0;  // of decode and preprocess in levels of 255; of ids their number; else relative
  double allowed = 0;
  bool ran = true;   // false: this build leaves the part out, or the folder has no data for it
  std::string note = "";  // why it did not run, or what ended it
  bool passed() const noexcept { return ran && error <= allowed; }  // false for NaN
  bool failed() const noexcept { return ran && !passed(); }
};

struct StreamOptions {
  std::optional<int> window;  // T, frames of a window; none: Info::frames
  int stride = 1;             // from the first frame of a window to that of the next, in frames
  // Seconds between two frames of a window, 1e-6 to 1e6. Of the frames that are pushed, the first
  // at or after each such time is taken, others are skipped. Where several times pass between two
  // frames, the second stands for all of them; after more than a whole window, or where the clock
  // is set back by as much, the windows begin anew. None: every frame is taken, times are labels.
  std::optional<double> interval;
  // Most frames that pass the trunk together, 1 to 8. Frames wait until a window is full, or until
  // there are so many. That is less work than one after the other; with 1 each passes as it comes,
  // so that the last frame of a window has less to wait for.
  int at_once = 8;
};

struct StreamedWindow {
  std::int64_t first = 0;            // number of its first frame, of those that were taken
  // Times of its first and last frame in seconds, where given; of a frame that stands for several
  // times of the grid, those before its own, `interval` apart.
  std::optional<double> start, end;
  VideoEmbeds embeds;                // of one clip, the T frames; for score and score_labels
};

// What became of the frames that were pushed.
struct StreamCounts {
  std::int64_t taken = 0;     // are frames of windows
  std::int64_t skipped = 0;   // lay between two times of the grid
  std::int64_t repeated = 0;  // times of the grid in a gap, which the frame behind it fills
  std::int64_t late = 0;      // at or before the time of an earlier frame, left out
  std::int64_t gaps = 0;      // longer than a window, forward or back; the windows began anew
};

// Windows of T frames that slide over frames as they come. The trunk reads each frame alone, once,
// and only the branch mixes those of a window; embeddings are those of embed_clips for the same
// frames. Its memory is taken when it is made, by Model::stream, and does not grow.
//
// It is a part of its Model, which it keeps alive: any thread may call, and a push waits for other
// calls on the Model and for those on its other streams. Frames that several threads push come in
// the order of their turns.
class STAN_INFER_API Stream {
 public:
  ~Stream();
  // Of a Stream that was moved from, every function throws Error (bad_argument).
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;

  // Adds a frame of any size and format; returns the windows that it completes, mostly one or none.
  // time: of the frame in seconds, -1e12 to 1e12, which a stream with an interval needs. The pixels
  // of a frame that is skipped or late are not read. Where an Error is thrown, the stream is as it
  // was before, and the frame may be pushed again.
  std::vector<StreamedWindow> push(const ImageView& frame, std::optional<double> time = {},
                                   const Call& call = Call::endless());

  void reset(const Call& call = Call::endless());  // as it was when it was made

  StreamCounts counts() const;
  // Rows of 2 T frames, which are 2 T K N D numbers of 4 bytes, and at_once frames of 3 S S bytes.
  std::size_t bytes_held() const;

 private:
  friend class Model;
  struct Impl;
  explicit Stream(std::unique_ptr<Impl> impl);
  Impl& impl() const;
  std::unique_ptr<Impl> impl_;
};

class STAN_INFER_API Model {
 public:
  // Opens a folder that `stan-infer export` wrote and checks all of its files; graphs are opened
  // when they are first needed.
  explicit Model(const std::filesystem::path& folder, const Options& options = {});
  ~Model();
  // Of a Model that was moved from, every function throws Error (bad_argument).
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;

  Info info() const;

  // The frames of a video file that the model's authors take.
  Clip read_clip(const std::filesystem::path& video, const Call& call = Call::endless());

  // The pixels of a Clip of frames that the caller decoded, oldest first, of any sizes: all of a
  // video or of a window of a camera. Of RGB and BGR it has the bytes of Python's session.prepare, and of the
  // i420 of a video's decoder those of read_clip. Fewer than T frames are repeated. RGB without
  // gaps is not copied, and what the clip does not take is not read.
  Tensor clip_of_frames(const std::vector<ImageView>& frames, const FrameOptions& options = {},
                        const Call& call = Call::endless());

  // Any number of clips, one behind the other: the pixels of a Clip each.
  VideoEmbeds embed_clips(const Tensor& clips, const Call& call = Call::endless());
  // One clip of each video, in batches.
  VideoEmbeds embed_video(const std::filesystem::path& video, const Call& call = Call::endless());
  VideoEmbeds embed_videos(const std::vector<std::filesystem::path>& videos,
                           const Call& call = Call::endless());
  VideoEmbeds embed_frames(const std::vector<ImageView>& frames, const FrameOptions& options = {},
                           const Call& call = Call::endless());

  // Windows that slide over frames which come one after the other, as from a camera. The folder
  // must be one of `stan-infer export ... --split`, the engine ONNX Runtime or OpenVINO.
  Stream stream(const StreamOptions& options = {}, const Call& call = Call::endless());

  TextEmbeds embed_texts(const std::vector<std::string>& texts,  // UTF-8
                         const Call& call = Call::endless());

  // float32 [texts, clips]: cosine of `texts` with `clips`, or the Mug score of `tokens` and `ids`
  // with `frames`; the other members may be empty. Throws Error (bad_argument) where an embedding
  // is all zeros or not finite: scores are always numbers.
  Tensor score(const TextEmbeds& texts, const VideoEmbeds& videos,
               const Call& call = Call::endless());

  std::vector<std::string> labels(const Call& call = Call::endless());
  // float32 [labels, clips].
  Tensor score_labels(const VideoEmbeds& videos, const Call& call = Call::endless());
  // Numbers of the labels that lost words when score_labels embedded them first; of a folder that
  // has their embeddings none.
  std::vector<std::size_t> cut_labels(const Call& call = Call::endless());

  // Of scores float32 [n, 1], those of one clip: exp(score / temperature), which sum to 1.
  std::vector<double> probabilities(const Tensor& scores) const;

  // Computes the golden data of the folder again, a stage for each part that it has. Throws Error
  // (bad_folder) where no stage could run.
  std::vector<Stage> self_test(const Call& call = Call::endless());

 private:
  friend class Stream;
  struct Impl;
  Impl& impl() const;
  std::shared_ptr<Impl> impl_;
};

}  // namespace stan_infer
