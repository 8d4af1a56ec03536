// Scores one video file against texts:
//   classify_file FOLDER VIDEO "a dog runs" "a cat sleeps"
// STAN_INFER_ORT_LIBRARY names libonnxruntime.so where the system has none.
#include <cstdio>
#include <cstdlib>
#include <stan_infer/stan_infer.hpp>

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: classify_file FOLDER VIDEO TEXT...\n");
    return 2;
  }
  const std::vector<std::string> texts(argv + 3, argv + argc);
  stan_infer::Options options;
  if (const char* library = std::getenv("STAN_INFER_ORT_LIBRARY")) options.onnxruntime = library;
  try {
    stan_infer::Model model(argv[1], options);
    const auto video = model.embed_video(argv[2]);
    const auto scores = model.score(model.embed_texts(texts), video);  // float32 [texts, 1]
    const std::vector<double> chances = model.probabilities(scores);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      std::printf("%.4f  %s\n", chances[i], texts[i].c_str());
    }
  } catch (const stan_infer::Error& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return e.code() == stan_infer::ErrorCode::internal ? 1 : 2;
  }
  return 0;
}
