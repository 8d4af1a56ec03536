// What the tests' programs print for an error, in the order of ErrorCode in <stan_infer/stan_infer.hpp>.
#pragma once

inline const char* const kCodes[] = {"bad_argument", "bad_folder",    "changed",
                                     "bad_video",    "bad_text",      "engine",
                                     "missing",      "out_of_memory", "cancelled",
                                     "deadline",     "internal"};
