#include "call.hpp"

#include <system_error>

#include "error.hpp"

namespace stan_infer {

using Clock = std::chrono::steady_clock;

Call::Call() : state_(std::make_shared<State>()) {}

Call::Call(std::nullptr_t) {}

Call Call::endless() { return Call(nullptr); }

Call Call::until(Clock::time_point deadline) {
  Call call;
  call.state_->deadline = deadline;
  return call;
}

Call Call::within(Clock::duration limit) {
  const Clock::time_point now = Clock::now();
  // A sum that overflows would be a deadline in the past.
  const bool fits = limit < Clock::time_point::max() - now;
  return fits ? until(now + limit) : Call();
}

void Call::cancel() const noexcept {
  if (!state_) return;
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->cancelled = true;
  }
  state_->changed.notify_all();
}

bool Call::is_over() const noexcept {
  if (!state_) return false;
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->cancelled || state_->passed();
}

void Call::check() const {
  if (!state_) return;
  const std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->cancelled) throw Error(ErrorCode::cancelled, "the call was cancelled");
  if (state_->passed()) {
    throw Error(ErrorCode::deadline, "the call was not done at its deadline; allow more time");
  }
}

Watch::Watch(const Call& call, std::function<void()> stop) : state_(call.state_) {
  if (!state_) return;
  const auto wait = [this, stop = std::move(stop)] {
    std::unique_lock<std::mutex> lock(state_->mutex);
    const auto awake = [this] { return done_ || state_->cancelled; };
    if (state_->deadline) {
      state_->changed.wait_until(lock, *state_->deadline, awake);
    } else {
      state_->changed.wait(lock, awake);
    }
    if (done_) return;
    lock.unlock();
    stop();
  };
  try {
    thread_ = std::thread(wait);
  } catch (const std::system_error& e) {
    throw Error(ErrorCode::out_of_memory, std::string("cannot start a thread: ") + e.what());
  }
}

Watch::~Watch() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    done_ = true;
  }
  state_->changed.notify_all();
  thread_.join();
}

void Turns::take(const Call& call) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    call.check();
    if (!busy_) {
      busy_ = true;
      return;
    }
  }
  const Watch watch(call, [this] {
    { const std::lock_guard<std::mutex> lock(mutex_); }  // whoever looks and waits has begun to
    free_.notify_all();
  });
  std::unique_lock<std::mutex> lock(mutex_);
  free_.wait(lock, [&] { return !busy_ || call.is_over(); });
  call.check();
  busy_ = true;
}

void Turns::give_back() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    busy_ = false;
  }
  // All: one that is woken as its call ends would keep the turn from the others.
  free_.notify_all();
}

}  // namespace stan_infer
