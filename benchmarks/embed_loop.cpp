// embed_loop FOLDER THREADS PASSES VIDEO...: what benchmarks.cpp times, as embed_loop.py in Python.
// Prints the seconds of each pass over the videos, then the embedding of each video.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stan_infer/stan_infer.hpp>

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  stan_infer::Options options;
  options.threads = std::atoi(argv[2]);
  if (const char* library = std::getenv("STAN_INFER_ORT_LIBRARY")) options.onnxruntime = library;
  try {
    stan_infer::Model model(argv[1], options);
    std::vector<stan_infer::Tensor> found(static_cast<std::size_t>(argc - 4));
    for (int pass = 0; pass < std::atoi(argv[3]); ++pass) {
      const auto start = std::chrono::steady_clock::now();
      for (std::size_t i = 0; i < found.size(); ++i) {
        found[i] = model.embed_video(argv[i + 4]).clips;
      }
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      std::printf("%.9f ", taken.count());
    }
    for (const stan_infer::Tensor& row : found) {
      std::printf("\n");
      for (std::int64_t i = 0; i < row.shape.back(); ++i) std::printf("%.9g ", row.data<float>()[i]);
    }
  } catch (const stan_infer::Error& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 2;
  }
  return 0;
}
