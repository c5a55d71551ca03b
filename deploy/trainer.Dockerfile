# The trainer. Build from the top folder: docker build -f deploy/trainer.Dockerfile .
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS packages
# Where pip looks for torch. Empty: where it looks for everything, which on Linux brings a CUDA build of some GB.
ARG TORCH_INDEX_URL=
WORKDIR /build
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir ${TORCH_INDEX_URL:+--index-url $TORCH_INDEX_URL} torch==2.13.0
COPY pyproject.toml constraints.txt ./
RUN touch README.md \
 && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt '.[train]' \
 && /opt/venv/bin/pip uninstall -y --quiet trainhealth

FROM ${PYTHON_IMAGE}
RUN useradd --create-home --shell /usr/sbin/nologin --uid 10001 trainhealth \
 && install -d -o trainhealth -g trainhealth /data
COPY --from=packages /opt/venv /opt/venv
COPY shared /app/shared
COPY trainer /app/trainer
COPY deploy/configs /app/deploy/configs
COPY deploy/compose/train.sh deploy/compose/is_training.sh /app/
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 MPLCONFIGDIR=/tmp
WORKDIR /data
USER 10001
# Whatever it does, something is written: a batch each second, a checkpoint now and then.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["sh", "/app/is_training.sh"]
CMD ["sh", "/app/train.sh", "/app/deploy/configs/tiny.toml"]
