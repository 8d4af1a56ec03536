// Calls that end early, and ONNX Runtime in the hands of the caller. Its functions are those of the
// library but for a few, which count, and hold a run until they let it go or terminate it.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <mutex>
#include <stan_infer/stan_infer.hpp>
#include <thread>

#include "codes.hpp"

namespace {

using namespace stan_infer;

const OrtApi* real = nullptr;
OrtApi table;
std::mutex mutex;
std::condition_variable changed;
bool held = false;        // runs wait
int passing = 0;          // so many do not, first
bool running = false;     // one does
bool terminated = false;  // it is to stop
int environments = 0, threads_set = 0;

OrtStatusPtr hold_run(OrtSession* session, const OrtRunOptions* options, const char* const* in,
                      const OrtValue* const* inputs, size_t in_count, const char* const* out,
                      size_t out_count, OrtValue** outputs) noexcept {
  {
    std::unique_lock<std::mutex> lock(mutex);
    if (passing > 0) {
      --passing;
    } else {
      running = true;
      changed.notify_all();
      changed.wait(lock, [] { return !held || terminated; });
      terminated = running = false;
    }
  }
  return real->Run(session, options, in, inputs, in_count, out, out_count, outputs);
}

OrtStatusPtr terminate(OrtRunOptions* options) noexcept {
  OrtStatusPtr status = real->RunOptionsSetTerminate(options);
  const std::lock_guard<std::mutex> lock(mutex);
  terminated = true;
  changed.notify_all();
  return status;
}

OrtStatusPtr count_environment(OrtLoggingLevel level, const char* id, OrtEnv** env) noexcept {
  ++environments;
  return real->CreateEnv(level, id, env);
}

OrtStatusPtr count_threads(OrtSessionOptions* options, int threads) noexcept {
  ++threads_set;
  return real->SetIntraOpNumThreads(options, threads);
}

const OrtApi* get_api(uint32_t) noexcept { return &table; }
const char* get_version() noexcept { return "1.99.0"; }
const OrtApiBase kBase = {get_api, get_version};

void hold(bool value, int let_pass = 0) {
  const std::lock_guard<std::mutex> lock(mutex);
  held = value;
  passing = let_pass;
  changed.notify_all();
}

void wait_for_run() {
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [] { return running; });
}

void need(bool ok, const std::string& what) {
  if (!ok) throw Error(ErrorCode::internal, what);
}

std::string code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return kCodes[static_cast<int>(e.code())];
  }
  return "none";
}

void expect(const char* name, const std::string& wanted, const std::function<void()>& call) {
  const std::string found = code_of(call);
  need(found == wanted, std::string(name) + ": " + found + " in place of " + wanted);
}

Options options() {
  Options result;
  result.ort_api_base = &kBase;
  result.threads = 1;
  return result;
}

// A run that is held is ended by another thread, by a deadline, and while others wait for it.
void calls(const char* folder, const char* video) {
  using std::chrono::milliseconds;
  Model model(folder, options());
  const VideoEmbeds wanted = model.embed_video(video);
  const auto same = [&] {
    need(model.embed_video(video).clips.bytes == wanted.clips.bytes, "same");
  };
  const Tensor clip = model.read_clip(video).pixels;

  const Call over = Call::within(milliseconds(-1)), gone;
  gone.cancel();
  need(over.is_over() && gone.is_over() && !Call().is_over(), "what is over");
  need(!Call::within(std::chrono::steady_clock::duration::max()).is_over(), "a far deadline");
  for (const auto& [call, code] : {std::pair(&over, "deadline"), std::pair(&gone, "cancelled")}) {
    expect("read_clip", code, [&, c = call] { model.read_clip(video, *c); });
    expect("embed_clips", code, [&, c = call] { model.embed_clips(clip, *c); });
    expect("embed_video", code, [&, c = call] { model.embed_video(video, *c); });
    expect("embed_videos", code, [&, c = call] { model.embed_videos({video, video}, *c); });
    expect("embed_texts", code, [&, c = call] { model.embed_texts({"a"}, *c); });
    expect("score_labels", code, [&, c = call] { model.score_labels(wanted, *c); });
    expect("labels", code, [&, c = call] { model.labels(*c); });
    expect("self_test", code, [&, c = call] { model.self_test(*c); });
    expect("check", code, [&, c = call] { c->check(); });
  }
  same();

  hold(true);
  expect("a deadline in a run", "deadline",
         [&] { model.embed_clips(clip, Call::within(milliseconds(20))); });
  hold(false);
  same();

  hold(true);
  const Call first, second, third;
  std::string codes[3];
  std::thread in_run([&] { codes[0] = code_of([&] { model.embed_clips(clip, first); }); });
  wait_for_run();
  expect("a deadline while another runs", "deadline",
         [&] { model.embed_texts({"a"}, Call::within(milliseconds(20))); });
  std::thread waits([&] { codes[1] = code_of([&] { model.labels(second); }); });
  second.cancel();
  waits.join();
  std::thread queued([&] { codes[2] = code_of([&] { model.read_clip(video, third); }); });
  first.cancel();
  in_run.join();
  hold(false);
  queued.join();
  need(codes[0] == "cancelled", "the run: " + codes[0]);
  need(codes[1] == "cancelled", "the one that waits: " + codes[1]);
  need(codes[2] == "none", "the one whose turn comes: " + codes[2]);
  same();

  // Many at once, of which every other one is cancelled at some time.
  std::vector<std::thread> all;
  std::vector<Call> given(8);
  std::atomic<int> wrong{0};
  for (std::size_t i = 0; i < given.size(); ++i) {
    all.emplace_back([&, i] {
      const std::string code = code_of([&] { model.embed_clips(clip, given[i]); });
      wrong += code != "none" && !(i % 2 && code == "cancelled");
    });
  }
  for (std::size_t i = 1; i < given.size(); i += 2) given[i].cancel();
  for (std::thread& thread : all) thread.join();
  need(wrong == 0, "some of many");
  same();
}

// Pushes that are cancelled in their first, second ... run; then the same frame again.
void stream(const char* folder) {
  Model model(folder, options());
  const StreamOptions chosen{3, 1, 1.0};
  Stream wanted = model.stream(chosen), ended = model.stream(chosen);
  const std::vector<std::uint8_t> memory(24 * 40 * 3, 77);
  std::vector<std::uint8_t> pixels(memory);
  int cancelled = 0, passes = 0, windows = 0;
  // A run of the room's length, frames that stand for several, a gap, a clock that is set back.
  for (const double time : {0., 1., 2., 3., 4., 7., 8., 11., 20., 21., 22., 25., 1., 2., 4.}) {
    for (std::uint8_t& value : pixels) value = static_cast<std::uint8_t>(value * 5 + 1);
    const ImageView view =
        ImageView::packed(PixelFormat::rgb, pixels.data(), pixels.size(), 40, 24);
    const std::vector<StreamedWindow> right = wanted.push(view, time);
    std::optional<std::vector<StreamedWindow>> found;
    for (int runs = 0; !found; ++runs) {
      need(runs < 8, "a push of so many runs");
      hold(true, runs);
      const Call call;
      bool done = false;
      std::thread other([&] {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&] { return running || done; });
        const bool in_run = running;
        lock.unlock();
        if (in_run) call.cancel();
      });
      const std::string code = code_of([&] { found = ended.push(view, time, call); });
      {
        const std::lock_guard<std::mutex> lock(mutex);
        done = true;
        changed.notify_all();
      }
      other.join();
      hold(false);
      need(code == (found ? "none" : "cancelled"), "a push: " + code);
      cancelled += !found;
    }
    need(found->size() == right.size(), "as many windows");
    windows += static_cast<int>(right.size());
    passes += !right.empty();  // others wait
    for (std::size_t i = 0; i < right.size(); ++i) {
      need((*found)[i].first == right[i].first && (*found)[i].start == right[i].start &&
               (*found)[i].end == right[i].end &&
               (*found)[i].embeds.clips.bytes == right[i].embeds.clips.bytes,
           "the same window");
    }
  }
  // In preprocessing, in the trunk, and in the branch of each window.
  need(cancelled == 15 + passes + windows, "the runs in which a push ended");
  need(ended.counts().taken == 15 && ended.counts().gaps == 2, "the counts");
  need(ended.counts().repeated == wanted.counts().repeated, "the counts of both");
}

// With ONNX Runtime, or OpenVINO if $ENGINE is there: runs until another thread cancels.
void loop(const char* folder, const char* video) {
  Options chosen = options();
  if (std::getenv("ENGINE")) {
    chosen = Options();
    chosen.engine = Engine::openvino;
    chosen.batch = 4;
  }
  Model model(folder, chosen);
  const std::vector<std::filesystem::path> videos(4, video);
  const VideoEmbeds wanted = model.embed_videos(videos);
  need(wanted.clips.shape[0] == 4, "four clips");
  for (int i = 0; i < 5; ++i) {
    const Call call;
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(3 * i));
      call.cancel();
    });
    expect("a loop", "cancelled", [&] {
      while (true) model.embed_videos(videos, call);
    });
    other.join();
    need(model.embed_videos(videos).clips.bytes == wanted.clips.bytes, "same");
  }
}

// An environment and session options of the caller's.
void own(const char* folder, const char* video) {
  // FFmpeg's, which the library links.
  const auto log_level = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "av_log_get_level"));
  const int level_before = log_level();
  const auto check = [](OrtStatusPtr status) { need(!status, "ONNX Runtime"); };
  Model plain(folder, options());
  need(environments == 1 && threads_set > 0, "its own environment");
  const VideoEmbeds wanted = plain.embed_video(video);
  OrtEnv* env = nullptr;
  OrtSessionOptions* session = nullptr;
  check(real->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "host", &env));
  check(real->CreateSessionOptions(&session));
  check(real->SetIntraOpNumThreads(session, 1));
  Options given;
  given.ort_api_base = &kBase;
  given.ort_env = env;
  given.ort_session_options = session;
  environments = threads_set = 0;
  {
    Model model(folder, given);
    need(model.embed_video(video).clips.bytes == wanted.clips.bytes, "same");
    need(model.info().engine == "ONNX Runtime 1.99.0", "the library that was given");
  }
  need(environments == 0 && threads_set == 0, "another environment, or other threads");
  Model again(folder, given);  // the environment is still there
  need(again.embed_video(video).clips.bytes == wanted.clips.bytes, "same again");

  const auto refused = [&](const char* name, const char* code,
                           const std::function<void(Options&)>& change) {
    Options other = given;
    change(other);
    expect(name, code, [&] { Model(folder, other); });
  };
  refused("a path too", "bad_argument", [](Options& o) { o.onnxruntime = "x.so"; });
  refused("threads too", "bad_argument", [](Options& o) { o.threads = 1; });
  refused("a provider too", "bad_argument", [](Options& o) { o.provider = "CUDA"; });
  refused("options too", "bad_argument", [](Options& o) { o.provider_options["a"] = "b"; });
  refused("no base", "bad_argument", [](Options& o) { o.ort_api_base = nullptr; });
  const OrtApiBase old = {[](uint32_t) noexcept -> const OrtApi* { return nullptr; }, get_version};
  refused("an old one", "missing", [&](Options& o) { o.ort_api_base = &old; });
  real->ReleaseSessionOptions(session);
  need(log_level() == level_before, "the level of FFmpeg's log is the host's");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    need(argc == 4, "usage: runtime calls|loop|own|stream FOLDER VIDEO");
    setenv("ORT_DISABLE_TELEMETRY", "1", 1);
    void* library = dlopen(std::getenv("STAN_INFER_ORT_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
    need(library, "no ONNX Runtime");
    const auto base = reinterpret_cast<decltype(&OrtGetApiBase)>(dlsym(library, "OrtGetApiBase"));
    real = base()->GetApi(18);
    // Of this table of 18 no more is used, and it is no longer than that of any newer library.
    std::memcpy(&table, real, offsetof(OrtApi, AddExternalInitializersFromFilesInMemory));
    table.Run = hold_run;
    table.RunOptionsSetTerminate = terminate;
    table.CreateEnv = count_environment;
    table.SetIntraOpNumThreads = count_threads;
    const std::string what = argv[1];
    if (what == "stream") {
      stream(argv[2]);
      return 0;
    }
    (what == "calls" ? calls : what == "loop" ? loop : own)(argv[2], argv[3]);
  } catch (const Error& e) {
    std::cerr << "error: " << e.what() << "\n";
    return 2;
  }
  return 0;
}
