// Shows single parts of the library to the tests; results as JSON lines or raw bytes.
#include <utf8proc.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "call.hpp"
#include "error.hpp"
#include "folder.hpp"
#include "sha256.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"
#include "video.hpp"

namespace {

using Json = nlohmann::json;

// probe tokens TOKENIZER_JSON < TEXTS: a JSON list of texts; one line per text, ids or an error.
void tokens(const char* file) {
  const stan_infer::Bytes bytes = stan_infer::read_file(file, 1 << 26);
  const stan_infer::Tokenizer tokenizer(
      {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  const Json texts = Json::parse(std::string(std::istreambuf_iterator<char>(std::cin), {}));
  for (const std::string text : texts) {
    Json answer;
    try {
      answer["ids"] = tokenizer.encode(text);
    } catch (const stan_infer::Error& e) {
      answer["error"] = e.what();
    }
    std::cout << answer.dump(-1, ' ', true, Json::error_handler_t::replace) << "\n";
  }
}

// probe unicode < TEXTS: a JSON list of texts; their forms, the characters of each class as ranges,
// and the code pages, as JSON.
void unicode() {
  Json answer;
  for (const std::string text : Json::parse(std::cin)) {
    const stan_infer::Text points = stan_infer::from_utf8(text);
    answer["NFC"].push_back(stan_infer::to_utf8(stan_infer::nfc(points)));
    answer["NFKC"].push_back(stan_infer::to_utf8(stan_infer::nfkc(points)));
    answer["lower"].push_back(stan_infer::to_utf8(stan_infer::lower(points)));
  }
  const std::pair<const char*, bool (*)(char32_t)> classes[] = {
      {"letter", stan_infer::is_letter},
      {"plain letter", stan_infer::is_plain_letter},
      {"number", stan_infer::is_number},
      {"lower", stan_infer::is_lower},
      {"upper", stan_infer::is_upper},
      {"digit", stan_infer::is_digit},
      {"space", stan_infer::is_space},
      {"unknown", [](char32_t c) {
         return utf8proc_category(static_cast<utf8proc_int32_t>(c)) == UTF8PROC_CATEGORY_CN;
       }}};
  for (const auto& [name, holds] : classes) {
    for (char32_t c = 0; c < 0x110000; ++c) {
      if (!holds(c)) continue;
      const char32_t first = c;
      while (holds(c + 1) && c + 1 < 0x110000) ++c;
      answer["classes"][name].push_back({first, c + 1});
    }
  }
  for (const auto& [name, characters] : stan_infer::code_pages()) {
    answer["pages"][name] = stan_infer::to_utf8(characters);
  }
  std::cout << answer << "\n";
}

// probe seconds TOKENIZER_JSON < TEXTS: a JSON list of texts; the least time of the thread that
// each took of three times, as a JSON list.
void seconds(const char* file) {
  const stan_infer::Bytes bytes = stan_infer::read_file(file, 1 << 26);
  const stan_infer::Tokenizer tokenizer(
      {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  const auto now = [] {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  };
  const Json texts = Json::parse(std::string(std::istreambuf_iterator<char>(std::cin), {}));
  Json answer;
  for (const std::string text : texts) {
    double least = 1e9;
    for (int i = 0; i < 3; ++i) {
      const double start = now();
      try {
        tokenizer.encode(text);
      } catch (const stan_infer::Error&) {
      }
      least = std::min(least, now() - start);
    }
    answer.push_back(least);
  }
  std::cout << answer << "\n";
}

// probe frames VIDEO T FILE [THREADS [LEAST]]: the frames one after another to FILE; their numbers
// and sizes as JSON. THREADS: that may decode a video of LEAST pixels or more.
void frames(const char* video, int count, const char* file, int threads, int least) {
  const auto found = stan_infer::read_frames(
      video, count, [](const stan_infer::Tensor& image) { return image; },
      stan_infer::Call::endless(), {threads, least});
  std::ofstream out(file, std::ios::binary);
  Json sizes;
  for (std::int64_t number : found.indices) {
    const stan_infer::Tensor& image = found.by_number.at(number);
    out.write(reinterpret_cast<const char*>(image.bytes.data()),
              static_cast<std::streamsize>(image.bytes.size()));
    sizes.push_back(image.shape);
  }
  std::cout << Json{{"indices", found.indices},
                    {"total", found.total_frames},
                    {"shapes", sizes},
                    {"decoders", found.decoders}}
            << "\n";
}

// probe cancel VIDEO [THREADS]: the call is cancelled as the first frame is there.
void cancel(const char* video, int threads) {
  const stan_infer::Call call;
  const auto shrink = [&](const stan_infer::Tensor& image) {
    call.cancel();
    return image;
  };
  stan_infer::read_frames(video, 8, shrink, call, {threads, 0});
}

// probe deadlines VIDEO THREADS: calls that end at deadlines of all sorts, or not.
void deadlines(const char* video, int threads) {
  for (int i = 0; i < 40; ++i) {
    const auto call = stan_infer::Call::within(std::chrono::microseconds(i * i * 50));
    try {
      stan_infer::read_frames(
          video, 8, [](const stan_infer::Tensor& image) { return image; }, call, {threads, 0});
    } catch (const stan_infer::Error& e) {
      if (e.code() != stan_infer::ErrorCode::deadline) throw;
    }
  }
}

// probe turns: many threads that wait for each other, of which some are cancelled.
void turns() {
  stan_infer::Turns one;
  std::atomic<int> inside{0}, together{0}, taken{0};
  int counted = 0;  // guarded by the turns
  std::vector<stan_infer::Call> calls(16);
  for (std::size_t i = 0; i < calls.size(); i += 3) {
    calls[i] = stan_infer::Call::within(std::chrono::milliseconds(5 + i));
  }
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < calls.size(); ++i) {
    threads.emplace_back([&, i] {
      const stan_infer::Call call = i % 4 == 1 ? stan_infer::Call::endless() : calls[i];
      for (int k = 0; k < 100; ++k) {
        try {
          one.take(call);
        } catch (const stan_infer::Error&) {
          return;
        }
        together += inside++ != 0;
        ++counted;
        std::atomic<bool> stopped{false};
        const stan_infer::Watch watch(call, [&] { stopped = true; });
        std::this_thread::yield();
        --inside;
        one.give_back();
        ++taken;
      }
    });
  }
  for (std::size_t i = 0; i < calls.size(); i += 2) calls[i].cancel();
  for (std::thread& thread : threads) thread.join();
  std::cout << Json{{"taken", taken.load()}, {"counted", counted}, {"together", together.load()}}
            << "\n";
}

// probe sha256 FILE: the hash of each beginning of it, with the processor's instructions or
// without.
void hashes(const char* file) {
  const stan_infer::Bytes bytes = stan_infer::read_file(file, 1 << 26);
  Json lines;
  for (bool plain : {false, true}) {
    for (std::size_t size = 0; size <= bytes.size(); ++size) {
      lines.push_back(stan_infer::sha256_hex(bytes.data(), size, plain));
    }
  }
  std::cout << lines << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "tokens" && argc == 3) {
      tokens(argv[2]);
    } else if (what == "unicode" && argc == 2) {
      unicode();
    } else if (what == "seconds" && argc == 3) {
      seconds(argv[2]);
    } else if (what == "frames" && argc >= 5 && argc <= 7) {
      frames(argv[2], std::stoi(argv[3]), argv[4], argc > 5 ? std::stoi(argv[5]) : 1,
             argc > 6 ? std::stoi(argv[6]) : 0);
    } else if (what == "cancel" && (argc == 3 || argc == 4)) {
      cancel(argv[2], argc == 4 ? std::stoi(argv[3]) : 1);
    } else if (what == "deadlines" && argc == 4) {
      deadlines(argv[2], std::stoi(argv[3]));
    } else if (what == "turns" && argc == 2) {
      turns();
    } else if (what == "sha256" && argc == 3) {
      hashes(argv[2]);
    } else {
      std::cerr << "usage: probe tokens TOKENIZER_JSON | unicode | seconds TOKENIZER_JSON | frames "
                   "VIDEO T FILE [THREADS [LEAST]] | cancel VIDEO [THREADS] | deadlines VIDEO "
                   "THREADS | turns | sha256 FILE\n";
      return 2;
    }
  } catch (const stan_infer::Error& e) {
    std::cerr << "error: " << e.what() << "\n";
    return 2;
  }
  return 0;
}
