// Calls that end early: what the public Call does not show.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <stan_infer/stan_infer.hpp>
#include <thread>

namespace stan_infer {

struct Call::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool cancelled = false;
  std::optional<std::chrono::steady_clock::time_point> deadline;

  bool passed() const { return deadline && std::chrono::steady_clock::now() >= *deadline; }
};

// While it lives, `stop` is called once, on another thread, when `call` is over. It must not throw,
// and not wait for the thread that destroys the Watch. A call that cannot end costs nothing.
class Watch {
 public:
  Watch(const Call& call, std::function<void()> stop);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  std::shared_ptr<Call::State> state_;
  bool done_ = false;  // guarded by the mutex of the state
  std::thread thread_;
};

// One user at a time; the others wait, or give up when their call is over.
class Turns {
 public:
  void take(const Call& call);  // throws Error (cancelled, deadline)
  void give_back();

 private:
  std::mutex mutex_;
  std::condition_variable free_;
  bool busy_ = false;
};

}  // namespace stan_infer
