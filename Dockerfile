# Three images from one file: `api` (no torch), `worker`, and `cluster`, which is a worker with Ray and a node of a Ray
# cluster. docker-compose.yml builds them.
FROM python:3.12-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN useradd --uid 10001 --create-home --home-dir /home/cliptune cliptune \
    && install -d -o cliptune -g cliptune -m 700 /var/lib/cliptune /var/lib/cliptune-checkpoints
ENV CLIPTUNE_HOME=/var/lib/cliptune CLIPTUNE_LOG_FORMAT=json
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY service service
COPY tuner tuner
ENTRYPOINT ["cliptune"]

FROM base AS api
RUN pip install -c constraints.txt '.[server,postgres,oidc]'
USER 10001
VOLUME /var/lib/cliptune
EXPOSE 8765
CMD ["api"]

FROM base AS worker
RUN pip install -c constraints.txt '.[server,postgres,tune]'
USER 10001
CMD ["worker"]

FROM base AS cluster
RUN pip install -c constraints.txt '.[server,postgres,tune,ray]'
USER 10001
CMD ["worker"]
