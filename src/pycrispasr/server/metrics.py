"""What a server counts and measures, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pycrispasr.server.admission import Admission
from pycrispasr.server.served import ServedModel

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_AUDIO_SECONDS = (1, 5, 10, 30, 60, 300, 900, 1800, 3600, 7200, 14400)
_FACTORS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_ENGINE = {
    "pycrispasr_engine_running_segments": ("running", "Segments that are being decoded."),
    "pycrispasr_engine_waiting_segments": ("waiting", "Segments that wait for a free sequence."),
    "pycrispasr_engine_sequences": ("sequences", "Segments that can be decoded at once."),
    "pycrispasr_engine_tokens_total": ("tokens", "Tokens that were decoded."),
    "pycrispasr_engine_audio_seconds_total": ("audio_seconds", "Sound that was decoded."),
    "pycrispasr_engine_memory_bytes": ("memory_bytes", "Memory of weights, caches and workspaces."),
}
"""Metrics of an engine: the field of `Model.stats` that each shows, and what it is."""


class Metrics:
    """A server's metrics, in a registry of their own."""

    def __init__(self, admission: Admission, models: Iterable[ServedModel]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "pycrispasr_requests_total", "Answered requests.", ("route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "pycrispasr_request_seconds", "From a request's first byte to its answer's last.", ("route",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "pycrispasr_queue_seconds", "Transcriptions: from the end of the upload to their turn.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.audio_seconds = Histogram(
            "pycrispasr_audio_seconds", "Sound in a recording, or in a realtime session.", ("route",),
            buckets=_AUDIO_SECONDS, registry=registry,
        )  # fmt: skip
        self.real_time_factor = Histogram(
            "pycrispasr_real_time_factor_ratio", "Transcriptions: seconds of work for a second of sound.",
            buckets=_FACTORS, registry=registry,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "pycrispasr_first_token_seconds", "Transcriptions: from the end of the upload to the first token.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.final_text_seconds = Histogram(
            "pycrispasr_final_text_seconds", "From the end of the upload, of speech, or the commit to the final text.",
            ("route",), buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        registry.register(_State(admission, models))


class _State(Collector):
    """What is so at the moment."""

    def __init__(self, admission: Admission, models: Iterable[ServedModel]) -> None:
        self._admission, self._models = admission, models

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: so `register` asks for no values."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The values."""
        yield GaugeMetricFamily(
            "pycrispasr_running_requests", "Transcriptions that are being worked on.", self._admission.running
        )
        yield GaugeMetricFamily(
            "pycrispasr_waiting_requests", "Transcriptions that wait, or whose upload has not ended.",
            self._admission.waiting,
        )  # fmt: skip
        yield GaugeMetricFamily("pycrispasr_realtime_sessions", "Open realtime sessions.", self._admission.sessions)
        loaded = GaugeMetricFamily("pycrispasr_model_loaded", "1 while a model is in memory.", labels=("model",))
        for served in self._models:
            loaded.add_metric((served.id,), float(served.model is not None))
        yield loaded
        yield from _engines(self._models)


def _engines(models: Iterable[ServedModel]) -> Iterator[Metric]:
    """What the models that are loaded tell of themselves (`Model.stats`), where they do."""
    told = [(served.id, stats()) for served in models if (stats := getattr(served.model, "stats", None)) is not None]
    for name, (field, text) in _ENGINE.items():
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family = kind(name, text, labels=("model",))
        for model, stats in told:
            family.add_metric((model,), float(getattr(stats, field)))
        if told:
            yield family
