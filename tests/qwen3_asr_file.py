"""Files of the Qwen3-ASR family for tests: random ones with other metadata, and one that names a language."""

from __future__ import annotations

from pathlib import Path

from pycrispasr import Model
from pycrispasr.models import gguf_file
from pycrispasr.models.random_model import generate

from .gguf_edit import rewrite
from .sounds import make_tones


def edited(path: Path, out: Path, **values: object) -> Path:
    return rewrite(path, out, values={"general.architecture": "qwen3asr", **values})


class Telling:
    """A model that writes "language French<asr_text>" in front of its text when it hears this sound."""

    def __init__(self, folder: Path) -> None:
        path, out = folder / "many-words.gguf", folder / "telling.gguf"
        generate(path, preset="qwen3-asr-nano", type="f32", hyperparameters={"llm.vocab_size": 2000})
        vocabulary = gguf_file.load(path)[0]["tokenizer.ggml.tokens"].content
        with Model(path, threads=1) as model:
            for seed in range(50):
                self.sound = make_tones(4, seed=seed)
                found = model.transcribe(self.sound, sample_rate=16000, max_new_tokens=8).segments[0].tokens
                first = [token.id for token in found[:3]]
                # Words that no prompt needs: they can be called something else.
                if len(set(first)) == 3 and all(vocabulary[id_].startswith("Ġ") and id_ > 300 for id_ in first):
                    break
        self.text = "".join(token.text for token in found[3:]).strip()
        for id_, text in zip(first, ("language", "ĠFrench", "<asr_text>"), strict=True):
            vocabulary[id_] = text
        vocabulary[vocabulary.index("<asr_text>", first[2] + 1)] = "<other>"
        self.model = Model(edited(path, out, **{"tokenizer.ggml.tokens": vocabulary}), threads=1)
