// The rules are those of stan_infer/engines/stream.py; tests/engines/stream_cases.json holds both
// to them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <sstream>

#include "frames.hpp"
#include "model.hpp"

namespace stan_infer {
namespace {

constexpr double kMostTime = 1e12;                            // seconds, forward or back
constexpr double kLeastInterval = 1e-6, kMostInterval = 1e6;  // seconds
constexpr double kEarly = 1e-6;  // seconds; times are rounded to container units, none is smaller

void check_number(const std::string& name, double value, double least, double most) {
  if (value >= least && value <= most) return;  // false for NaN
  std::ostringstream text;
  text << name << " is " << value << "; allowed are " << least << " to " << most << " s";
  throw bad_argument(text.str());
}

// Where windows are, counted in frames of the grid.
struct Windows {
  std::int64_t seen = 0;   // frames ever
  std::int64_t begun = 0;  // the first of them since windows began anew
  std::int64_t next = 0;   // first frame of the next window

  void begin_anew() { begun = next = seen; }

  // One frame more; whether a window ends with it.
  bool add(int window, int stride) {
    const std::int64_t first = ++seen - window;
    if (first < next || first < begun) return false;
    next = first + stride;
    return true;
  }
};

// A frame that is taken.
struct Taken {
  std::optional<double> time;
  std::int64_t copies = 1;  // frames of the grid that it stands for, none where it is left out
  bool anew = false;        // whether windows begin anew with it
};

// Which frames are taken, and where windows begin.
struct Progress {
  StreamCounts counts;
  std::optional<double> last;   // time of the last frame
  std::optional<double> begin;  // time of the grid's first frame
  std::int64_t number = 0;      // of the grid's next frame
  Windows all;                  // with the frames that wait
  Windows stored;               // without them
  std::size_t held = 0;         // frames at the start of the rows
  std::size_t waiting = 0;      // frames that have not passed the trunk

  Taken take(double time, double interval, int window) {
    const bool set_back = last && time < *last - window * interval;
    if (last && time <= *last && !set_back) {
      ++counts.late;
      return {time, 0};
    }
    last = time;
    if (!begin) begin = time;
    // At most 2e12 / 1e-6, which is a whole number of 64 bits.
    const double at = std::floor((time - *begin + kEarly) / interval);
    const std::int64_t copies = static_cast<std::int64_t>(at) + 1 - number;
    if (copies > window || set_back) {
      ++counts.gaps;
      begin = time;
      number = 1;
      return {time, 1, true};
    }
    if (copies < 1) {
      ++counts.skipped;
      return {time, 0};
    }
    counts.repeated += copies - 1;
    number += copies;
    return {time, copies};
  }
};

}  // namespace

struct Stream::Impl {
  std::shared_ptr<Model::Impl> model;
  Parts parts;
  int window, stride;
  std::optional<double> interval;
  std::vector<Tensor> rows;  // K times [2 T, N, D]: so that those of a window lie side by side
  std::vector<std::optional<double>> times;
  Tensor pixels;  // uint8 [at_once, S, S, 3]: the frames that wait, and one more
  std::vector<Taken> waiting;
  Progress now;
  mutable std::mutex mutex;  // of what is shown of `now` while a call changes it

  Impl(std::shared_ptr<Model::Impl> owner, const Parts& found, const StreamOptions& options)
      : model(std::move(owner)),
        parts(found),
        window(options.window.value_or(model->info.frames)),
        stride(options.stride),
        interval(options.interval) {
    check_range("window", window, parts.least, parts.most);
    check_range("stride", stride, 1, std::numeric_limits<int>::max());
    check_range("at_once", options.at_once, 1, Pipeline::kFramesAtOnce);
    if (interval) check_number("interval", *interval, kLeastInterval, kMostInterval);
    for (int k = 0; k < parts.layers; ++k) {
      rows.push_back(make_tensor(DType::float32, {2 * window, parts.row[0], parts.row[1]}));
    }
    times.resize(static_cast<std::size_t>(2 * window));
    const int at_once = std::min(options.at_once, parts.at_once);
    pixels = make_tensor(DType::uint8, {at_once, parts.side, parts.side, 3});
    waiting.resize(static_cast<std::size_t>(at_once));
  }

  std::size_t bytes_of_row() const { return rows[0].bytes.size() / times.size(); }

  // Room for `count` frames more, at most T: the last T - 1 go to the front, more no window needs.
  void make_room(std::int64_t count) {
    if (now.held + static_cast<std::size_t>(count) <= times.size()) return;
    const auto keep = static_cast<std::size_t>(window) - 1, from = now.held - keep;
    for (Tensor& tensor : rows) {
      std::byte* begin = tensor.bytes.data();
      std::memmove(begin, begin + from * bytes_of_row(), keep * bytes_of_row());
    }
    std::copy_n(times.begin() + static_cast<std::ptrdiff_t>(from), keep, times.begin());
    now.held = keep;
  }

  // The window that ends with the frame behind the first `held`.
  StreamedWindow window_at(Pipeline& pipeline, std::int64_t first, std::size_t held) const {
    const std::size_t low = held - static_cast<std::size_t>(window);
    std::vector<View> views;
    for (const Tensor& tensor : rows) {
      views.emplace_back(DType::float32, Shape{1, window, parts.row[0], parts.row[1]},
                         tensor.bytes.data() + low * bytes_of_row());
    }
    return {first, times[low], times[held - 1], pipeline.branch(views)};
  }

  // Puts row `i` of what the trunk gave at a place; ahead: times of the grid until the frame's own.
  void store(const std::vector<Tensor>& found, std::size_t i, const Taken& frame,
             std::int64_t ahead, std::size_t place) {
    for (std::size_t k = 0; k < rows.size(); ++k) {
      std::memcpy(rows[k].bytes.data() + place * bytes_of_row(),
                  found[k].bytes.data() + i * bytes_of_row(), bytes_of_row());
    }
    times[place] = frame.time;
    if (ahead > 0) *times[place] -= static_cast<double>(ahead) * *interval;
  }

  // Stores the frames that waited, none of which completes a window: the stream is what it was.
  void store_waiting(const std::vector<Tensor>& found) {
    for (std::size_t i = 0; i < now.waiting; ++i) {
      const Taken& frame = waiting[i];
      if (frame.anew) now.stored.begin_anew();
      make_room(frame.copies);
      for (std::int64_t ahead = frame.copies; ahead-- > 0;) {
        store(found, i, frame, ahead, now.held++);
        now.stored.add(window, stride);
      }
    }
    now.waiting = 0;
  }

  // Whatever is thrown, `now` stays what it was, and with it the stream.
  std::vector<StreamedWindow> push(Pipeline& pipeline, const ImageView& frame,
                                   std::optional<double> time) {
    check_image(frame, "the frame");
    if (time) check_number("the time of a frame", *time, -kMostTime, kMostTime);
    if (interval && !time) {
      throw bad_argument("a stream with an interval needs the time of every frame");
    }
    Progress then = now;
    const Taken taken = interval ? then.take(*time, *interval, window) : Taken{time};
    std::vector<StreamedWindow> found;
    if (taken.copies > 0) {
      const Tensor one = pipeline.pixels_of(frame);
      std::copy(one.bytes.begin(), one.bytes.end(), pixels.bytes.begin() + place_of(then.waiting));
      ++then.counts.taken;
      if (taken.anew) then.all.begin_anew();
      bool is_full = false;
      for (std::int64_t i = 0; i < taken.copies; ++i) {
        is_full = then.all.add(window, stride) || is_full;
      }
      waiting[then.waiting++] = taken;
      if (is_full || then.waiting == waiting.size()) found = pass(pipeline, taken, then);
    }
    keep(then);
    return found;
  }

  std::ptrdiff_t place_of(std::size_t frame) const {
    return static_cast<std::ptrdiff_t>(frame * (pixels.bytes.size() / waiting.size()));
  }

  // Runs the trunk on the frames that wait, the last of which is `taken`.
  std::vector<StreamedWindow> pass(Pipeline& pipeline, const Taken& taken, Progress& then) {
    const std::size_t before = now.waiting;
    const std::vector<Tensor> rows_of_trunk = pipeline.trunk_of_pixels(
        View(DType::uint8,
             {static_cast<std::int64_t>(then.waiting), parts.side, parts.side, 3},
             pixels.bytes.data()));
    store_waiting(rows_of_trunk);
    make_room(taken.copies);
    then.waiting = 0;
    then.held = now.held;
    then.stored = now.stored;
    if (taken.anew) then.stored.begin_anew();
    std::vector<StreamedWindow> found;
    for (std::int64_t ahead = taken.copies; ahead-- > 0;) {
      store(rows_of_trunk, before, taken, ahead, then.held++);
      if (then.stored.add(window, stride)) {
        found.push_back(window_at(pipeline, then.stored.seen - window, then.held));
      }
    }
    return found;
  }

  void keep(const Progress& then) {
    const std::lock_guard<std::mutex> lock(mutex);
    now = then;
  }
};

Stream::Stream(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Stream::~Stream() = default;
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;

Stream::Impl& Stream::impl() const {
  if (!impl_) throw bad_argument("this Stream was moved from; use the one that it was moved to");
  return *impl_;
}

Stream Model::stream(const StreamOptions& options, const Call& call) {
  return impl().run(call, [&](Pipeline& pipeline) {
    return Stream(std::make_unique<Stream::Impl>(impl_, pipeline.parts(), options));
  });
}

std::vector<StreamedWindow> Stream::push(const ImageView& frame, std::optional<double> time,
                                         const Call& call) {
  Impl& own = impl();
  return own.model->run(call,
                        [&](Pipeline& pipeline) { return own.push(pipeline, frame, time); });
}

void Stream::reset(const Call& call) {
  Impl& own = impl();
  own.model->run(call, [&](Pipeline&) { own.keep({}); });
}

StreamCounts Stream::counts() const {
  const Impl& own = impl();
  const std::lock_guard<std::mutex> lock(own.mutex);
  return own.now.counts;
}

std::size_t Stream::bytes_held() const {
  std::size_t sum = impl().pixels.bytes.size();
  for (const Tensor& tensor : impl().rows) sum += tensor.bytes.size();
  return sum;
}

}  // namespace stan_infer
