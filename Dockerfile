# NGDiff in a container, not as root.
#   CPU:   docker build -t ngdiff .
#   CUDA:  docker build -t ngdiff:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 \
#              --build-arg TORCH_INDEX=https://pypi.org/simple .
#   Run:   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" -v "$HOME/.cache:/cache" ngdiff env
#          with CUDA also: --gpus all
# torch brings its own CUDA libraries: the base's version only says which driver is needed at least. An older driver
# takes an older build, such as TORCH_INDEX=https://download.pytorch.org/whl/cu126.
ARG BASE=python:3.12-slim

FROM ${BASE} AS base
# CUDA's images have no Python; a GPU also wants a compiler, for Triton's kernels
RUN command -v python3 >/dev/null || { \
        apt-get update && \
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
            python3 python3-venv python3-dev gcc libc6-dev && \
        rm -rf /var/lib/apt/lists/*; }

FROM base AS build
ARG TORCH=torch
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /opt/ngdiff && \
    /opt/ngdiff/bin/pip install --no-cache-dir "$TORCH" --index-url "$TORCH_INDEX"
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN /opt/ngdiff/bin/pip install --no-cache-dir "/source[sign]"

FROM base
COPY --from=build /opt/ngdiff /opt/ngdiff
# any user may be given with --user: what is cached goes to /cache, and nothing looks the user's name up
ENV PATH="/opt/ngdiff/bin:$PATH" HOME=/cache USER=ngdiff XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
RUN useradd --no-create-home --home-dir /cache ngdiff && mkdir -m 1777 /cache /work
USER ngdiff
WORKDIR /work
ENTRYPOINT ["ngdiff"]
CMD ["--help"]
