#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "call.hpp"
#include "decoding.hpp"

namespace stan_infer {
namespace {

// Threads that decode, and the one that takes their frames.
class Team {
 public:
  Team(const std::filesystem::path& path, const Index& index, const Wanted& wanted,
       std::size_t threads)
      : path_(path), index_(index), wanted_(wanted), count_(threads), next_(threads) {}

  void run(const Keep& keep, const Call& call) {
    {
      const Watch watch(call, [this] { end(nullptr); });
      std::vector<std::thread> threads;
      try {
        threads.reserve(count_);
        for (std::size_t i = 0; i < count_; ++i) {
          threads.emplace_back([this, i] { work(i); });
        }
        while (auto frame = next_frame()) keep(frame->first, std::move(frame->second));
      } catch (...) {
        end(std::current_exception());
      }
      for (std::thread& thread : threads) thread.join();
    }
    call.check();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  using Frame = std::pair<std::int64_t, Tensor>;
  struct Ended {};

  void work(std::size_t number) {
    try {
      decode(number);
      const std::lock_guard<std::mutex> lock(mutex_);
      ++done_;
    } catch (...) {
      end(std::current_exception());
    }
    changed_.notify_all();
  }

  void decode(std::size_t number) {
    Decoding decoding(path_, index_, stop_);
    Independence independence(*decoding.media().stream().codecpar);
    const std::size_t begin = wanted_.ranges[0].first;
    bool learns = false, began = false;
    const auto next = [&]() -> std::optional<Range> {
      // One that does not decode the first range gets the packet with which it begins.
      if (!learns && !began && number > 0) {
        learns = true;
        return Range{begin, begin};
      }
      const std::size_t at = began ? next_++ : number;
      learns = false;
      began = true;
      return at < wanted_.ranges.size() ? std::optional(wanted_.ranges[at]) : std::nullopt;
    };
    const auto take = [&](media::Media& media, const AVFrame& frame) {
      const auto found = wanted_.numbers.find(frame.pts);
      // The number of decoders was chosen for frames as the container says.
      if (std::int64_t{frame.width} * frame.height > index_.pixels) throw Dependent{};
      if (learns || found == wanted_.numbers.end()) return;
      offer({found->second, media::to_rgb(media, frame)});
    };
    decoding.run(next, wanted_.thin ? &wanted_.packets : nullptr, take, &independence);
  }

  // Waits until the one before is taken, so that few are there at once.
  void offer(Frame frame) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return !offered_ || ended_; });
    if (ended_) throw Ended{};
    offered_ = std::move(frame);
    lock.unlock();
    changed_.notify_all();
  }

  // Nothing: there are no more, or none is wanted.
  std::optional<Frame> next_frame() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return offered_ || ended_ || done_ == count_; });
    if (ended_ || !offered_) return std::nullopt;
    std::optional<Frame> frame;
    frame.swap(offered_);
    lock.unlock();
    changed_.notify_all();
    return frame;
  }

  // The first reason counts; others come of it.
  void end(const std::exception_ptr& reason) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!ended_) failure_ = reason;
      ended_ = true;
    }
    stop_.cancel();
    changed_.notify_all();
  }

  const std::filesystem::path& path_;
  const Index& index_;
  const Wanted& wanted_;
  const std::size_t count_;
  std::atomic<std::size_t> next_;  // range that nobody has taken yet
  const Call stop_;
  std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  std::optional<Frame> offered_;
  std::size_t done_ = 0;  // threads
  bool ended_ = false;
  std::exception_ptr failure_;
};

}  // namespace

void decode_side_by_side(const std::filesystem::path& path, const Index& index,
                         const Wanted& wanted, std::size_t threads, const Keep& keep,
                         const Call& call) {
  Team(path, index, wanted, threads).run(keep, call);
}

}  // namespace stan_infer
