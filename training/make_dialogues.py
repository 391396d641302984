"""Make the dialogues in tests/data, and count what is right: `python training/make_dialogues.py`.

The trained checkpoint runs in the transformers library's own classes, with matrices rounded as a Q8_0 file has them.
What counts as right are the words, the speakers, and the times to 0.15 s.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from diarize import Dialogue, Dialogues, demonstrations
from transformers import MossTranscribeDiarizeForConditionalGeneration, MossTranscribeDiarizeProcessor

from finetune import ROOT
from reference import rounded
from voices import SAMPLE_RATE

TOLERANCE = 0.15
SMALL = 0.92  # compression: 26 kbit/s of Opus

Segment = dict[str, float | int | str]


class Reference:
    """The checkpoint in the transformers library's classes."""

    def __init__(self, folder: Path, q8_0: bool) -> None:
        self.processor = MossTranscribeDiarizeProcessor.from_pretrained(folder)
        self.model = MossTranscribeDiarizeForConditionalGeneration.from_pretrained(folder).eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                if q8_0 and parameter.ndim == 2:
                    parameter.copy_(rounded(parameter))

    def write(self, samples: np.ndarray) -> str:
        """What it writes about float samples at 16 kHz."""
        inputs = self.processor.apply_transcription_request(samples.astype(np.float32), return_tensors="pt")
        with torch.no_grad():
            written = self.model.generate(**inputs, do_sample=False, max_new_tokens=400)
        return self.processor.decode(written[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)

    def segments(self, samples: np.ndarray) -> list[Segment]:
        found = self.processor.extract_speaker_dict(self.write(samples))
        names = {"Start": "start", "End": "end", "Speaker": "speaker", "Content": "text"}
        if isinstance(found, str):
            return []
        return [{names[key]: value for key, value in segment.items()} for segment in found]


def wanted(dialogue: Dialogue) -> list[Segment]:
    return [
        {
            "start": round(turn.start / SAMPLE_RATE, 2),
            "end": round(turn.end / SAMPLE_RATE, 2),
            "speaker": turn.speaker,
            "text": " ".join(word for word, _, _ in turn.words),
        }
        for turn in dialogue.turns
    ]


def same(found: list[Segment], said: list[Segment], *names: str) -> bool:
    return [[each[name] for name in names] for each in found] == [[each[name] for name in names] for each in said]


def worst_time(found: list[Segment], said: list[Segment]) -> float:
    """The largest error of a time, in seconds."""
    pairs = zip(found, said, strict=True)
    return max((abs(a[key] - b[key]) for a, b in pairs for key in ("start", "end")), default=0.0)


def count(model: Reference, dialogues: Dialogues, number: int, seconds: float, turns: int) -> str:
    """One row of the table."""
    words = speakers = times = 0
    for _ in range(number):
        dialogue = dialogues.draw(dialogues.random.uniform(0.4, 1) * seconds, turns)
        found, said = model.segments(dialogue.samples), wanted(dialogue)
        right = same(found, said, "text")
        words += right
        speakers += right and same(found, said, "text", "speaker")
        times += right and worst_time(found, said) <= TOLERANCE
    return f"| at most {seconds:g} s and {turns} turns | {number} | {words} | {speakers} | {times} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work", help="folder with the checkpoint")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "data")
    parser.add_argument("--number", type=int, default=8, help="dialogues that are counted, of each kind")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = Reference(arguments.work / "diarize", q8_0=True)
    dialogues = Dialogues(seed=4242)
    print("| dialogues | number | segments and words right | speakers too | words and times right |")
    print("|---|--:|--:|--:|--:|")
    for seconds, turns in ((8, 3), (20, 6), (40, 12)):
        print(count(model, dialogues, arguments.number, seconds, turns), flush=True)
    for number, dialogue in enumerate(demonstrations(), start=1):
        file = arguments.out / f"dialogue-{number}.opus"
        soundfile.write(file, dialogue.samples, SAMPLE_RATE, "OPUS", format="OGG", compression_level=SMALL)
        lines = ",\n".join(json.dumps(segment) for segment in wanted(dialogue))
        file.with_suffix(".json").write_text(f"[\n{lines}\n]\n")
        samples, _ = soundfile.read(file, dtype="float32")
        found, said = model.segments(samples), wanted(dialogue)
        right = same(found, said, "text", "speaker")
        error = f"times within {worst_time(found, said):.2f} s" if right else f"wrong: {found}"
        print(f"{file.name}: {len(samples) / SAMPLE_RATE:.1f} s, {error}")


if __name__ == "__main__":
    main()
