#!/bin/sh
# Install what cpp needs on Debian 12 or newer, or Ubuntu 22.04 or newer; with --tests, what
# tests/cpp and tests/platforms need, too.
set -eu
[ "$(id -u)" = 0 ] && sudo= || sudo=sudo
$sudo apt-get update -qq
$sudo apt-get install -y --no-install-recommends \
  cmake make g++ pkg-config \
  libavformat-dev libavcodec-dev libavutil-dev libswscale-dev \
  libutf8proc-dev libssl-dev nlohmann-json3-dev
[ "${1:-}" = --tests ] || exit 0
# libclang-rt holds libFuzzer and the sanitizers; older distributions have it inside clang's own.
version=$(apt-cache depends clang | sed -n 's/.*Depends: clang-\([0-9]*\).*/\1/p' | head -n 1)
runtime=libclang-rt-$version-dev
apt-cache show "$runtime" >/dev/null 2>&1 || runtime=
# mmdebstrap unpacks packages for ARM and of other releases, without installing them.
$sudo apt-get install -y --no-install-recommends \
  clang $runtime mmdebstrap g++-aarch64-linux-gnu qemu-user
