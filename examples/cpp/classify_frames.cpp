// Scores frames in memory against the labels of the folder, here raw RGB from another program:
//   ffmpeg -v error -i VIDEO -f rawvideo -pix_fmt rgb24 - | classify_frames FOLDER WIDTH HEIGHT
// STAN_INFER_ORT_LIBRARY names libonnxruntime.so where the system has none.
#include <cstdio>
#include <cstdlib>
#include <stan_infer/stan_infer.hpp>

int main(int argc, char** argv) {
  const int width = argc == 4 ? std::atoi(argv[2]) : 0, height = argc == 4 ? std::atoi(argv[3]) : 0;
  if (width < 1 || height < 1) {
    std::fprintf(stderr, "usage: classify_frames FOLDER WIDTH HEIGHT < RGB\n");
    return 2;
  }
  const std::size_t row = std::size_t(width) * 3, size = row * std::size_t(height);
  std::vector<std::vector<std::uint8_t>> frames;
  for (std::vector<std::uint8_t> frame(size); std::fread(frame.data(), 1, size, stdin) == size;) {
    frames.push_back(frame);
  }
  stan_infer::Options options;
  if (const char* library = std::getenv("STAN_INFER_ORT_LIBRARY")) options.onnxruntime = library;
  try {
    stan_infer::Model model(argv[1], options);
    std::vector<stan_infer::ImageView> views;  // of all frames: the model's authors take some
    for (const auto& frame : frames) {
      views.push_back(stan_infer::ImageView::packed(stan_infer::PixelFormat::rgb, frame.data(),
                                                    frame.size(), width, height));
    }
    const auto scores = model.score_labels(model.embed_frames(views));  // float32 [labels, 1]
    const std::vector<double> chances = model.probabilities(scores);
    const std::vector<std::string> labels = model.labels();
    for (std::size_t i = 0; i < labels.size(); ++i) {
      std::printf("%.4f  %s\n", chances[i], labels[i].c_str());
    }
  } catch (const stan_infer::Error& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return e.code() == stan_infer::ErrorCode::internal ? 1 : 2;
  }
  return 0;
}
