# CPU image with Java for the official caption metrics. Not built or tested by CI.
#   docker build -t multitask-vl .
#   docker run --rm -v "$PWD/work:/work" multitask-vl make-synthetic --out data/world
#   docker run --rm -v "$PWD/work:/work" multitask-vl extract --config configs/examples/quickstart.yaml
#   docker run --rm -v "$PWD/work:/work" multitask-vl train --config configs/examples/quickstart.yaml
# work/ must be writable by user 1000 and contain configs/, which this command creates:
#   docker run --rm -v "$PWD/work:/work" multitask-vl configs --copy configs
# With a GPU: build with --build-arg TORCH_INDEX=https://pypi.org/simple and run with --gpus all.
FROM python:3.11.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

RUN apt-get update \
    && apt-get install -y --no-install-recommends openjdk-17-jre-headless \
    && rm -rf /var/lib/apt/lists/*

# torch and torchvision first: they are the largest layer and change least often
COPY requirements.txt /build/
RUN grep -E '^torch(vision)?[<>=]' /build/requirements.txt > /build/torch.txt \
    && pip install --index-url "$TORCH_INDEX" -r /build/torch.txt \
    && pip install -r /build/requirements.txt

COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE /build/
COPY multitask_vl /build/multitask_vl
COPY feature_extraction /build/feature_extraction
COPY launch /build/launch
COPY configs /build/configs
RUN pip install --no-deps /build && rm -rf /build

RUN useradd --uid 1000 --create-home user && mkdir /work && chown user /work
USER user
WORKDIR /work
ENTRYPOINT ["multitask-vl"]
CMD ["--help"]
