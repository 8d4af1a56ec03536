# Everything on an NVIDIA GPU: PyTorch, our kernels, ONNX Runtime on CUDA, export and verify.
#
#   docker build -f docker/gpu.Dockerfile -t stan-infer-gpu .
#   docker run --rm --gpus all --network none -v "$PWD:/data" stan-infer-gpu doctor
#
# CUDA and cuDNN come with the packages; the machine needs NVIDIA's driver and its container toolkit.
# Nobody has built or run this image yet: no GPU was there. TensorRT: add the extra trt to ".[gpu]".

FROM python:3.13-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY stan_infer stan_infer
COPY kernels kernels
COPY export export
# What is installed is this folder; its own pyproject.toml bounds the versions of the others.
# hadolint ignore=DL3013
RUN python -m venv --without-pip /opt/stan \
    && pip --python /opt/stan/bin/python install --no-cache-dir ".[gpu]"

FROM python:3.13-slim-bookworm AS gpu
# Triton compiles its launcher with a C compiler when a kernel first runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home stan
COPY --from=build /opt/stan /opt/stan
ENV PATH=/opt/stan/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /data
USER 10001:10001
ENTRYPOINT ["stan-infer"]
CMD ["--help"]
