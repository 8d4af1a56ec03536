#!/bin/sh
# Install what cpp and tests/cpp need on Debian 12 or newer, or Ubuntu 22.04 or newer.
set -eu
[ "$(id -u)" = 0 ] && sudo= || sudo=sudo
$sudo apt-get update -qq
# libclang-rt holds libFuzzer and the sanitizers; older distributions have it inside clang's own.
version=$(apt-cache depends clang | sed -n 's/.*Depends: clang-\([0-9]*\).*/\1/p' | head -n 1)
runtime=libclang-rt-$version-dev
apt-cache show "$runtime" >/dev/null 2>&1 || runtime=
$sudo apt-get install -y --no-install-recommends \
  cmake make g++ pkg-config \
  libavformat-dev libavcodec-dev libavutil-dev libswscale-dev \
  libicu-dev libssl-dev nlohmann-json3-dev \
  clang $runtime
