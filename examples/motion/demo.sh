#!/bin/sh
# The main job on real input: inspect a trained checkpoint, classify clips, export, run the export,
# compare its speed with eager mode.
set -e
cd "$(dirname "$0")"
out=../../out/motion
mkdir -p ../../out

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

say stan-infer inspect motion.safetensors
say stan-infer run motion.safetensors clips --labels labels.txt --top 1
say stan-infer export motion.safetensors -o "$out" --license Apache-2.0
say stan-infer run "$out" clips --labels labels.txt --top 1
say stan-infer verify motion.safetensors "$out" --frames 1,8
say stan-infer embed "$out" clips -o ../../out/clips.npz
# 4: other work keeps the engines from the CPUs, so nothing can be timed now; verify checked outputs.
say stan-infer bench motion.safetensors --engine eager,ort --batch 1,4 --frames 8 || [ $? = 4 ]
