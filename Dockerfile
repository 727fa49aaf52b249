# An image that runs `switchkd` on NVIDIA GPUs: docs/how-to/install.md.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04
# a compiler and Python's headers for torch.compile
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv python3-dev gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/switchkd
ENV PATH=/opt/switchkd/bin:$PATH
WORKDIR /tmp/switchkd
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY pyproject.toml setup.py README.md LICENSE ./
COPY conf conf
COPY lightning_switchkd lightning_switchkd
RUN pip install --no-cache-dir --no-deps .
WORKDIR /work
ENTRYPOINT ["switchkd"]
