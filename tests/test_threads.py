"""The number of threads changes the time, never the result."""

from __future__ import annotations

from pathlib import Path

from pycrispasr import Model
from pycrispasr.models.random_model import generate

from .sounds import make_tones


def test_transcripts_are_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    for kind in ("f32", "q4_k"):
        path = tmp_path / f"{kind}.gguf"
        generate(path, preset="small", type=kind, all_matrices=True, seed=3)
        sound = make_tones(1.5)
        results = []
        for threads in (1, 2, 3, 4):
            with Model(path, threads=threads) as model:
                results.append(model.transcribe(sound, sample_rate=16000, max_new_tokens=6).segments)
        assert all(result == results[0] for result in results[1:]), kind
