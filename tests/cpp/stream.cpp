// A stream of frames, by the public header alone.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <limits>
#include <new>
#include <sstream>
#include <stan_infer/stan_infer.hpp>
#include <thread>

#include "codes.hpp"

namespace {

std::atomic<std::int64_t> live{0};  // allocations that were not freed yet
std::atomic<std::size_t> asked{0};  // bytes of all

[[maybe_unused]] void* counted(std::size_t size) {
  void* memory = std::malloc(size ? size : 1);
  if (!memory) throw std::bad_alloc();
  ++live;
  asked += size;
  return memory;
}

[[maybe_unused]] void freed(void* memory) noexcept {
  if (memory) --live;
  std::free(memory);
}

}  // namespace

// Clang's ThreadSanitizer has operators of its own, which cannot be replaced.
#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define OWN_OPERATORS
#endif
#endif
#ifndef OWN_OPERATORS
void* operator new(std::size_t size) { return counted(size); }
void* operator new[](std::size_t size) { return counted(size); }
void operator delete(void* memory) noexcept { freed(memory); }
void operator delete[](void* memory) noexcept { freed(memory); }
void operator delete(void* memory, std::size_t) noexcept { freed(memory); }
void operator delete[](void* memory, std::size_t) noexcept { freed(memory); }
#endif

namespace {

using namespace stan_infer;

Options options() {
  Options result;
  if (const char* library = std::getenv("STAN_INFER_ORT_LIBRARY")) result.onnxruntime = library;
  const std::string engine = std::getenv("ENGINE") ? std::getenv("ENGINE") : "";
  if (engine == "openvino") result.engine = Engine::openvino;
  if (engine == "tensorrt") result.engine = Engine::tensorrt;
  result.threads = 1;
  return result;
}

void need(bool ok, const std::string& what) {
  if (!ok) throw Error(ErrorCode::internal, what);
}

// Frames of one colour each.
class Picture {
 public:
  explicit Picture(int colour, int width = 40, int height = 24)
      : width_(width),
        height_(height),
        bytes_(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3) {
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      bytes_[i] = static_cast<std::uint8_t>(static_cast<std::size_t>(colour) * 37 + i % 7 * 20);
    }
  }
  ImageView view() const {
    return ImageView::packed(PixelFormat::rgb, bytes_.data(), bytes_.size(), width_, height_);
  }

 private:
  int width_, height_;
  std::vector<std::uint8_t> bytes_;
};

void write(std::ofstream& file, const Tensor& tensor) {
  file.write(reinterpret_cast<const char*>(tensor.bytes.data()),
             static_cast<std::streamsize>(tensor.bytes.size()));
}

std::string spelled(const std::optional<double>& time) {
  char text[40] = "-";
  if (time) std::snprintf(text, sizeof text, "%.17g", *time);
  return text;
}

// push FOLDER WINDOW STRIDE INTERVAL FORMAT WIDTH HEIGHT FILE < TIMES: frames without gaps of FILE,
// each with its time or "-". Prints the windows; their embeddings take the place of the frames:
// clips and frames of each, and the scores of the labels where the folder has some.
void push(char** arguments) {
  Model model(arguments[0], options());
  StreamOptions chosen;
  if (arguments[1] != std::string("-")) chosen.window = std::stoi(arguments[1]);
  chosen.stride = std::stoi(arguments[2]);
  if (arguments[3] != std::string("-")) chosen.interval = std::strtod(arguments[3], nullptr);
  const PixelFormat format =
      arguments[4] == std::string("bgr") ? PixelFormat::bgr : PixelFormat::rgb;
  const int width = std::stoi(arguments[5]), height = std::stoi(arguments[6]);
  const std::size_t size = static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3;
  std::ifstream file(arguments[7], std::ios::binary);
  const std::string raw(std::istreambuf_iterator<char>(file), {});
  std::ofstream embeds(arguments[7], std::ios::binary);
  Stream stream = model.stream(chosen);
  need(model.info().has_stream, "has_stream");
  std::size_t at = 0;
  for (std::string word; std::cin >> word; at += size) {
    std::optional<double> time;
    if (word != "-") time = std::strtod(word.c_str(), nullptr);
    need(at + size <= raw.size(), "a frame for each time");
    // A copy that is gone behind the call, so that a sanitizer sees what is kept.
    const std::vector<std::uint8_t> frame(raw.begin() + static_cast<std::ptrdiff_t>(at),
                                          raw.begin() + static_cast<std::ptrdiff_t>(at + size));
    const ImageView view = ImageView::packed(format, frame.data(), size, width, height);
    for (const StreamedWindow& window : stream.push(view, time)) {
      std::cout << "window " << window.first << " " << spelled(window.start) << " "
                << spelled(window.end) << "\n";
      write(embeds, window.embeds.clips);
      write(embeds, window.embeds.frames);
      if (model.info().has_labels) write(embeds, model.score_labels(window.embeds));
    }
  }
  const StreamCounts counts = stream.counts();
  std::cout << "counts " << counts.taken << " " << counts.skipped << " " << counts.repeated << " "
            << counts.late << " " << counts.gaps << "\nbytes " << stream.bytes_held() << "\n";
}

bool same(const std::vector<StreamedWindow>& a, const std::vector<StreamedWindow>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.first == y.first && x.start == y.start && x.end == y.end &&
           x.embeds.clips.bytes == y.embeds.clips.bytes &&
           x.embeds.frames.bytes == y.embeds.frames.bytes;
  });
}

std::string text_of(const StreamCounts& c) {
  std::ostringstream text;
  text << c.taken << " " << c.skipped << " " << c.repeated << " " << c.late << " " << c.gaps;
  return text.str();
}

// misuse FOLDER WITHOUT: a line for each mistake, with the code of its error or "none". WITHOUT: a
// folder without trunk and branch.
void misuse(const char* folder, const char* without) {
  const auto tell = [](const char* name, const std::function<void()>& call) {
    std::string code = "none", what;
    try {
      call();
    } catch (const Error& e) {
      code = kCodes[static_cast<int>(e.code())];
      what = e.what();
    }
    std::cout << name << "\t" << code << "\t" << what << "\n";
  };
  Model model(folder, options());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinite = std::numeric_limits<double>::infinity();
  const auto making = [&](const char* name, const StreamOptions& chosen) {
    tell(name, [&] { model.stream(chosen); });
  };
  making("nothing wrong", {3, 2, 0.5});
  making("stride > window", {3, 4, {}});
  making("windows without end between", {3, INT32_MAX, {}});
  making("window 0", {0, 1, {}});
  making("a negative window", {-3, 1, {}});
  making("a large window", {INT32_MAX, 1, {}});
  making("the smallest window", {INT32_MIN, 1, {}});
  making("stride 0", {3, 0, {}});
  making("a negative stride", {3, INT32_MIN, {}});
  making("interval 0", {3, 1, 0.0});
  making("a negative interval", {3, 1, -1.0});
  making("a small interval", {3, 1, 1e-300});
  making("a large interval", {3, 1, 1e7});
  making("an infinite interval", {3, 1, infinite});
  making("an interval of no number", {3, 1, nan});
  making("no frame at once", {3, 1, {}, 0});
  making("nine frames at once", {3, 1, {}, 9});
  const Call gone;
  gone.cancel();
  tell("a call that was cancelled", [&] { model.stream({}, gone); });
  tell("a folder without parts", [&] {
    Model other(without, options());
    need(!other.info().has_stream, "has_stream");
    other.stream();
  });

  // Wrong pushes between right ones change nothing.
  const std::vector<Picture> pictures{Picture(1), Picture(2), Picture(3), Picture(4)};
  const std::vector<double> times{0, 0.5, 1.0, 1.7};
  Stream stream = model.stream({2, 1, 0.5}), clean = model.stream({2, 1, 0.5});
  const auto pushing = [&](const char* name, const std::function<void(ImageView&)>& change,
                           std::optional<double> time = 90.0) {
    tell(name, [&] {
      ImageView view = pictures[0].view();
      change(view);
      stream.push(view, time);
    });
  };
  // Nobody may read it.
  const std::size_t page = 1 << 16;
  void* closed = mmap(nullptr, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  need(closed != MAP_FAILED, "mmap");
  const ImageView unread = ImageView::packed(
      PixelFormat::bgr, static_cast<const std::uint8_t*>(closed), page, 100, 200);
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    need(same(stream.push(pictures[i].view(), times[i]), clean.push(pictures[i].view(), times[i])),
         "the windows");
    if (i == 2) {
      tell("a skipped frame is not read", [&] {
        need(stream.push(unread, 1.2).empty() && clean.push(unread, 1.2).empty(), "skipped");
      });
      tell("a late frame is not read", [&] {
        need(stream.push(unread, 1.0).empty() && clean.push(unread, 1.0).empty(), "late");
      });
    }
    if (i + 1 == pictures.size()) break;
    pushing("no image", [](ImageView& v) { v = ImageView(); });
    pushing("a null pointer", [](ImageView& v) { v.planes[0].data = nullptr; });
    pushing("a negative width", [](ImageView& v) { v.width = -40; });
    pushing("a small stride", [](ImageView& v) { v.planes[0].stride = 119; });
    pushing("a large stride", [](ImageView& v) { v.planes[0].stride = 121; });
    pushing("the largest stride", [](ImageView& v) { v.planes[0].stride = SIZE_MAX; });
    pushing("few bytes", [](ImageView& v) { --v.planes[0].size; });
    pushing("a large height", [](ImageView& v) { v.height = 25; });
    pushing("the largest sides", [](ImageView& v) { v.width = v.height = INT32_MAX; });
    pushing("no format", [](ImageView& v) { v.format = static_cast<PixelFormat>(77); });
    pushing("nv12 without colour", [](ImageView& v) { v.format = PixelFormat::nv12; });
    const auto right = [](ImageView&) {};
    pushing("no time", right, std::nullopt);
    pushing("a time of no number", right, nan);
    pushing("a time that is infinite", right, -infinite);
    pushing("a time that is far", right, 1e12 * 1.001);
    pushing("a skipped frame that is wrong", [](ImageView& v) { v.width = 0; },
            times[i] + 1e-3);
    tell("a call that was cancelled", [&] { stream.push(pictures[0].view(), 90.0, gone); });
    tell("a call past its deadline", [&] {
      stream.push(pictures[0].view(), 90.0,
                  Call::until(std::chrono::steady_clock::time_point::min()));
    });
    tell("a reset that was cancelled", [&] { stream.reset(gone); });
  }
  need(text_of(stream.counts()) == text_of(clean.counts()), text_of(stream.counts()));
  need(text_of(stream.counts()) == "4 1 0 1 0", text_of(stream.counts()));

  stream.reset();
  need(text_of(stream.counts()) == "0 0 0 0 0", "the counts behind a reset");
  Stream fresh = model.stream({2, 1, 0.5});
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    need(same(stream.push(pictures[i].view(), times[i]), fresh.push(pictures[i].view(), times[i])),
         "the windows behind a reset");
  }
  Stream moved = std::move(stream);
  tell("a stream that was moved from", [&] { stream.push(pictures[0].view(), 9.0); });
  tell("the counts of one", [&] { stream.counts(); });
  tell("the bytes of one", [&] { stream.bytes_held(); });
  tell("the reset of one", [&] { stream.reset(); });
  tell("the one that it was moved to", [&] { moved.push(pictures[0].view(), 9.0); });
  Model other = std::move(model);
  tell("a model that was moved from", [&] { model.stream(); });
  tell("a stream of a model that was moved", [&] { moved.push(pictures[0].view(), 9.5); });
  { const Model last = std::move(other); }
  tell("a stream whose model is gone", [&] {
    need(moved.push(pictures[0].view(), 10.0).size() == 1, "a window");
  });
}

// memory FOLDER: a stream holds what it held, however much is pushed.
void memory(const char* folder) {
  Model model(folder, options());
  const Picture picture(5, 320, 240);
  Stream stream = model.stream({3, 2, 0.1});
  const std::size_t held = stream.bytes_held();
  const auto push_some = [&](int from, int to) {
    std::size_t windows = 0;
    for (int i = from; i < to; ++i) {
      // Every tenth leaves two times of the grid out, every hundredth is behind a gap.
      const double time = i * 0.1 + i / 10 * 0.2 + i / 100 * 5.0;
      windows += stream.push(picture.view(), time).size();
    }
    return windows;
  };
  push_some(0, 250);  // with gaps: runtimes keep something for each number of frames
  need(live > 0, "allocations are not counted");
  const std::int64_t before = live;
  need(push_some(250, 650) > 100, "windows");
  const std::int64_t more = live - before;
  need(more == 0, std::to_string(more) + " allocations more");
  need(stream.bytes_held() == held && stream.counts().gaps == 6, "held");

  Stream seldom = model.stream({3, 1, 1000.0});
  seldom.push(picture.view(), 0);
  const std::size_t so_far = asked;
  for (int i = 1; i <= 100; ++i) seldom.push(picture.view(), i);
  need(seldom.counts().skipped == 100, "skipped");
  need(asked - so_far < 100 * 1024, "what is skipped takes memory");  // its picture has 230 kB
}

// threads FOLDER: two streams of a model, each used by two threads, while others ask for counts.
void threads(const char* folder) {
  Model model(folder, options());
  std::array<Stream, 2> streams{model.stream({3, 1, {}}), model.stream({2, 2, {}})};
  const Picture picture(3);
  std::atomic<std::size_t> found[2] = {{0}, {0}};
  std::vector<std::thread> all;
  std::atomic<int> wrong{0};
  for (std::size_t i = 0; i < 4; ++i) {
    all.emplace_back([&, i] {
      try {
        for (int n = 0; n < 10; ++n) {
          found[i % 2] += streams[i % 2].push(picture.view()).size();
          if (streams[1 - i % 2].counts().taken > 20) ++wrong;
          if (n == 5) model.embed_frames({picture.view()});
        }
      } catch (const Error&) {
        ++wrong;
      }
    });
  }
  for (std::thread& thread : all) thread.join();
  need(wrong == 0 && found[0] == 18 && found[1] == 10, "the windows of all");
  need(streams[0].counts().taken == 20 && streams[1].counts().taken == 20, "the frames of all");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "push" && argc == 10) {
      push(argv + 2);
    } else if (what == "misuse" && argc == 4) {
      misuse(argv[2], argv[3]);
    } else if (what == "memory" && argc == 3) {
      memory(argv[2]);
    } else if (what == "threads" && argc == 3) {
      threads(argv[2]);
    } else {
      return 2;
    }
  } catch (const Error& e) {
    std::cerr << kCodes[static_cast<int>(e.code())] << ": " << e.what() << "\n";
    return 2;
  }
  return 0;
}
