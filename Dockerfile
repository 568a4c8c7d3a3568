# syntax=docker/dockerfile:1
# For CPUs, the default, and for NVIDIA GPUs:
#   docker build -t resnet50-serving .
#   docker build --target cuda -t resnet50-serving:cuda .
#   docker run -p 127.0.0.1:50051:50051 -v resnet50-weights:/weights \
#     -e RESNET50_VARIANTS=IMAGENET1K_V2 -e RESNET50_ALLOW_PLAINTEXT=true resnet50-serving
# Without TLS it starts only with RESNET50_ALLOW_PLAINTEXT. See docs/how-to/deploy.md.
FROM python:3.12-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY server server
COPY client client
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# All but PyTorch and the server itself.
FROM python:3.12-slim AS base
# The server needs no rights but to read weights and to listen on a high port. Any other user id
# works as well (OpenShift), with a volume of its own: group 0 may write to a new one.
RUN useradd --system --uid 10001 --gid 0 --create-home resnet50 \
    && install --directory --owner resnet50 --group 0 --mode 2775 /weights
# Versions and hashes of all packages; `make lock` renews them.
COPY deploy/lock /lock
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement /lock/server.txt
ENV TORCH_HOME=/weights \
    RESNET50_GRAPH_CACHE_DIR=/weights/graphs \
    USER=resnet50 \
    RESNET50_LISTEN=0.0.0.0:50051 \
    RESNET50_SERVER=127.0.0.1:50051 \
    RESNET50_METRICS_LISTEN=0.0.0.0:9464 \
    RESNET50_LOG_FORMAT=json \
    PYTHONUNBUFFERED=1
VOLUME /weights
# gRPC; metrics and health over HTTP.
EXPOSE 50051 9464
# Loading and warming up takes its time; until then the server says NOT_SERVING. The check itself
# takes 1 s of CPU time, which on a busy machine can be 5 s.
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s --retries=3 \
    CMD ["resnet50", "health"]
# The server is process 1: it drains on SIGTERM and starts no processes that it would have to reap.
STOPSIGNAL SIGTERM
ENTRYPOINT ["resnet50-server"]
# Set RESNET50_VARIANTS; without it the server explains and exits.
CMD ["serve"]

FROM base AS cuda
# torch.compile compiles the CUDA engine's host code with gcc, and caches it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV TORCHINDUCTOR_CACHE_DIR=/weights/inductor \
    TRITON_CACHE_DIR=/weights/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement /lock/torch-cuda.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl && pip check
USER 10001

FROM base AS cpu
RUN pip install --no-cache-dir --no-deps --requirement /lock/torch-cpu.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl && pip check
USER 10001
