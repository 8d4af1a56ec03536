// The public face: every entry checks what it is given, waits for its turn, and lets Error out
// only.
#pragma once

#include <exception>
#include <memory>
#include <new>
#include <string>

#include "backend.hpp"
#include "call.hpp"
#include "error.hpp"
#include "pipeline.hpp"

namespace stan_infer {

template <class Work>
auto guarded(const Work& work) -> decltype(work()) {
  try {
    return work();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::out_of_memory, "there is not enough memory");
  } catch (const std::exception& e) {
    throw Error(ErrorCode::internal, std::string("a bug of stan_infer: ") + e.what());
  } catch (...) {
    throw Error(ErrorCode::internal, "a bug of stan_infer");
  }
}

inline void check_range(const std::string& name, int value, int least, int most) {
  if (value >= least && value <= most) return;
  throw bad_argument(name + " is " + std::to_string(value) + "; allowed are " +
                     std::to_string(least) + " to " + std::to_string(most));
}

struct Model::Impl {
  std::unique_ptr<Backend> backend;
  Pipeline pipeline;
  Info info;
  Turns turns;

  Impl(const std::filesystem::path& folder, const Options& options);

  // Runs a call of the public interface, one at a time.
  template <class Work>
  auto run(const Call& call, const Work& work) -> decltype(work(pipeline)) {
    return guarded([&] {
      turns.take(call);
      const std::unique_ptr<Turns, void (*)(Turns*)> turn(&turns, [](Turns* t) { t->give_back(); });
      pipeline.use(call);
      return work(pipeline);
    });
  }
};

}  // namespace stan_infer
