// Scores windows that slide over frames as they come, here raw RGB from another program, against
// the labels of a folder of `stan-infer export ... --labels FILE --split`:
//   ffmpeg -v error -i SOURCE -f rawvideo -pix_fmt rgb24 - | watch_frames FOLDER WIDTH HEIGHT RATE
// A window takes a frame every 0.1 s. STAN_INFER_ORT_LIBRARY as in the other programs.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stan_infer/stan_infer.hpp>

int main(int argc, char** argv) {
  const int width = argc == 5 ? std::atoi(argv[2]) : 0, height = argc == 5 ? std::atoi(argv[3]) : 0;
  const double rate = argc == 5 ? std::atof(argv[4]) : 0;  // frames a second
  if (width < 1 || height < 1 || !(rate > 0)) {
    std::fprintf(stderr, "usage: watch_frames FOLDER WIDTH HEIGHT RATE < RGB\n");
    return 2;
  }
  stan_infer::Options options;
  if (const char* library = std::getenv("STAN_INFER_ORT_LIBRARY")) options.onnxruntime = library;
  try {
    stan_infer::Model model(argv[1], options);
    const std::vector<std::string> labels = model.labels();
    stan_infer::StreamOptions windows;
    windows.interval = 0.1;
    stan_infer::Stream stream = model.stream(windows);
    std::vector<std::uint8_t> frame(std::size_t(width) * 3 * std::size_t(height));
    for (int i = 0; std::fread(frame.data(), 1, frame.size(), stdin) == frame.size(); ++i) {
      const auto view = stan_infer::ImageView::packed(stan_infer::PixelFormat::rgb, frame.data(),
                                                      frame.size(), width, height);
      for (const stan_infer::StreamedWindow& window : stream.push(view, i / rate)) {
        const auto chances = model.probabilities(model.score_labels(window.embeds));
        const auto best = std::max_element(chances.begin(), chances.end());
        std::printf("%.2f to %.2f s: %.4f  %s\n", *window.start, *window.end, *best,
                    labels[std::size_t(best - chances.begin())].c_str());
        std::fflush(stdout);
      }
    }
  } catch (const stan_infer::Error& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return e.code() == stan_infer::ErrorCode::internal ? 1 : 2;
  }
  return 0;
}
