# The monitor: FastAPI, SQLAlchemy, prometheus-client; no torch. Build from the top folder:
#   docker build -f deploy/monitor.Dockerfile .
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
# Only what decides the packages: a change of code does not install them anew.
# Some wheels come with symbols for a debugger, a fifth of all. Not *.libs: what auditwheel wrote, strip breaks.
COPY pyproject.toml constraints.txt ./
RUN touch README.md \
 && python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --no-compile -c constraints.txt '.[monitor,postgres]' \
 && /opt/venv/bin/pip uninstall -y --quiet trainhealth setuptools pip \
 && find /opt/venv -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} + \
 && find /opt/venv -name '*.so' -not -path '*.libs/*' -exec strip -g {} +

FROM ${PYTHON_IMAGE}
RUN useradd --no-create-home --shell /usr/sbin/nologin --uid 10001 trainhealth \
 && for who in database trainer prometheus alertmanager grafana operator; do \
      install -d -o trainhealth -g trainhealth "/secrets/$who"; \
    done \
 && install -d -o trainhealth -g trainhealth /data
COPY --from=packages /opt/venv /opt/venv
COPY shared /app/shared
COPY monitor_service /app/monitor_service
COPY deploy/compose/prepare.py /app/prepare.py
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001
EXPOSE 8321
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8321/healthz', timeout=2)"]
CMD ["python", "-m", "monitor_service", "serve", "--host", "0.0.0.0"]
