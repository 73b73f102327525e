# The versions of requirements.lock, for machines with NVIDIA GPUs or, with TORCH_INDEX, without:
#   docker build -t apa-rlhf .
#   docker build -t apa-rlhf:cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#   docker run --rm --gpus all -v "$PWD/runs:/work/runs" -v "$PWD/cache:/work/cache" apa-rlhf algo=apa hardware=gpu
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# PyPI's build of torch brings the CUDA libraries; the driver is the host's.
ARG TORCH_INDEX=https://pypi.org/simple
ARG EXTRAS=hub,sentiment,dashboard,winrate

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# Torch and Triton compile small pieces while they run on a GPU.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/apa-rlhf
COPY requirements.lock ./
RUN pip install --index-url "$TORCH_INDEX" --no-deps "$(grep -E '^torch==' requirements.lock)"
COPY . .
RUN pip install -c requirements.lock -e ".[$EXTRAS]"

# Runs and caches belong to whoever mounts them.
WORKDIR /work
ENTRYPOINT ["python", "/opt/apa-rlhf/main.py"]
