"""Writes src/pycrispasr/bundled/silero-vad.npz from the weights in the silero-vad package. Needs torch.

pip download --no-deps silero-vad && python tools/make_vad.py silero_vad-*.whl
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).parent.parent / "src" / "pycrispasr" / "bundled" / "silero-vad.npz"
PREFIX = "_model."  # of the weights for 16 kHz; there are others for 8 kHz


def main(wheel: str) -> None:
    import torch

    with zipfile.ZipFile(wheel) as archive:
        content = archive.read("silero_vad/data/silero_vad.jit")
    load: Any = torch.jit.load
    weights = load(io.BytesIO(content), map_location="cpu").state_dict()
    ours = {name.removeprefix(PREFIX): weights[name] for name in weights if name.startswith(PREFIX)}
    np.savez_compressed(OUT, **{name: values.numpy().astype(np.float16) for name, values in ours.items()})
    print(f"{OUT.name}: {OUT.stat().st_size} bytes, {', '.join(ours)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
