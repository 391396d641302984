# pycrispasr serve, for the CPU: docs/serve.md.
#   docker build -t pycrispasr .
#   docker run -p 127.0.0.1:8000:8000 -v models:/models pycrispasr -m moss-transcribe

FROM python:3.13-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python -m venv /opt/pycrispasr
# Portable: the code for the processor is chosen when it runs, not when it is built.
RUN CMAKE_ARGS=-DPYCRISPASR_PORTABLE=ON /opt/pycrispasr/bin/pip install --no-cache-dir '/source[serve,av]'

FROM python:3.13-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home pycrispasr \
    && install -d -o pycrispasr /models
COPY --from=build /opt/pycrispasr /opt/pycrispasr
ENV HF_HOME=/models PATH=/opt/pycrispasr/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001
VOLUME /models
EXPOSE 8000
# The first start may fetch a model.
HEALTHCHECK --start-period=10m --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["pycrispasr", "serve", "--host", "0.0.0.0"]
CMD ["-m", "moss-transcribe"]
