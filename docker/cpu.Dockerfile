# Exported folders on a CPU, without PyTorch: ONNX Runtime, PyAV and this package.
#
#   docker build -f docker/cpu.Dockerfile -t stan-infer .
#   docker run --rm --network none -v "$PWD:/data:ro" stan-infer run FOLDER dog.mp4 --text "a dog runs"
#
# The service of examples/python/service.py is a target of its own:
#
#   docker build -f docker/cpu.Dockerfile --target service -t stan-infer-service .
#   docker run --rm --read-only --tmpfs /tmp -p 8000:8000 -v "$PWD/FOLDER:/model:ro" stan-infer-service

FROM python:3.13-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY stan_infer stan_infer
COPY kernels kernels
COPY export export
# What is installed is this folder; its own pyproject.toml bounds the versions of the others.
# hadolint ignore=DL3013
RUN python -m venv --without-pip /opt/stan \
    && pip --python /opt/stan/bin/python install --no-cache-dir ".[runtime]"

FROM build AS build-service
RUN pip --python /opt/stan/bin/python install --no-cache-dir \
    "fastapi>=0.115,<1" "uvicorn>=0.30,<1"

FROM python:3.13-slim-bookworm AS base
RUN useradd --uid 10001 --create-home stan
ENV PATH=/opt/stan/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

FROM base AS service
COPY --from=build-service /opt/stan /opt/stan
COPY examples/python/service.py /app/service.py
WORKDIR /app
ENV MODEL=/model
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "uvicorn", "service:app", "--host", "0.0.0.0", "--port", "8000", \
     "--limit-concurrency", "16"]

FROM base AS cpu
COPY --from=build /opt/stan /opt/stan
WORKDIR /data
USER 10001:10001
ENTRYPOINT ["stan-infer"]
CMD ["--help"]
