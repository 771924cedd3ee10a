# One image, four targets: webserver, daemon, code-location and serving. Its root filesystem may be read-only: state is
# on the volume /srv/ml-platform/var, temporary files are in /tmp. How to run it: docs/how-to/github.md.
#
# The digest pins the base image: change tag and digest together.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip
RUN python3 -m venv /opt/ml-platform
WORKDIR /srv/ml-platform
COPY requirements.lock ./
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/ml-platform/bin/pip install --require-hashes --only-binary :all: --requirement requirements.lock
COPY pyproject.toml README.md workspace.yaml dagster.yaml ./
COPY data data
COPY ml_platform ml_platform
# An editable installation: the platform finds its lock file, data and settings next to its code.
RUN /opt/ml-platform/bin/pip install --no-deps --no-build-isolation --no-cache-dir --editable . \
    && /opt/ml-platform/bin/python -m compileall -q ml_platform

FROM ${PYTHON_IMAGE} AS base
# A numeric user, so that Kubernetes can verify that it is not root.
RUN groupadd --gid 10001 platform && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp platform
COPY --from=build /opt/ml-platform /opt/ml-platform
COPY --from=build /srv/ml-platform /srv/ml-platform
RUN install --directory --owner 10001 --group 10001 /srv/ml-platform/var
WORKDIR /srv/ml-platform
# The commit, because the image contains no git.
ARG CODE_REVISION=unknown
ENV PATH=/opt/ml-platform/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    DAGSTER_HOME=/srv/ml-platform \
    DAGSTER_DISABLE_TELEMETRY=1 \
    ML_PLATFORM_CODE_REVISION=${CODE_REVISION}
VOLUME /srv/ml-platform/var
USER 10001:10001
STOPSIGNAL SIGTERM

FROM base AS webserver
EXPOSE 3000
# No authentication: publish the port on loopback only, or behind a proxy that authenticates users.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:3000/server_info', timeout=5)"]
ENTRYPOINT ["dagster-webserver", "--host", "0.0.0.0", "--port", "3000"]
CMD ["--workspace", "workspace.yaml"]

FROM base AS daemon
HEALTHCHECK --interval=30s --timeout=30s --start-period=120s \
    CMD ["dagster-daemon", "liveness-check"]
ENTRYPOINT ["dagster-daemon", "run"]
CMD ["--workspace", "workspace.yaml"]

FROM base AS code-location
EXPOSE 4000
HEALTHCHECK --interval=15s --timeout=20s --start-period=60s \
    CMD ["dagster", "api", "grpc-health-check", "--port", "4000"]
ENTRYPOINT ["dagster", "code-server", "start", "--host", "0.0.0.0", "--port", "4000"]
CMD ["--module-name", "ml_platform.definitions", "--location-name", "ml_platform"]

FROM base AS serving
EXPOSE 8080 8081
# Liveness, not readiness: before the first promotion there is no version to load, and a restart would not help.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/v2/health/live', timeout=3)"]
ENTRYPOINT ["ml-platform", "serve", "--host", "0.0.0.0"]
CMD ["churn"]
