"""The encoder against PyTorch in BF16, on the published model's shapes and random weights.

    pip install '.[reference]'
    python benchmarks/against_pytorch.py MODEL [--threads N] [--runs 5]

MODEL: a file of the published model's shapes, made by

    python -m pycrispasr.models.random_model 2b.gguf --preset 2b --type q4_k

The two take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from pycrispasr.lab.bench import machine
from pycrispasr.models import gguf_file
from pycrispasr.runtimes import native


def main() -> None:
    """Prints both medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=native.usable_cores())
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    metadata = gguf_file.read(args.model)[0]
    sizes = {name.removeprefix("moss_transcribe.enc."): value for name, value in metadata.items()}
    config = Qwen3OmniMoeAudioEncoderConfig(
        num_mel_bins=sizes["num_mel_bins"],
        encoder_layers=sizes["encoder_layers"],
        d_model=sizes["d_model"],
        encoder_attention_heads=sizes["encoder_attention_heads"],
        encoder_ffn_dim=sizes["encoder_ffn_dim"],
        downsample_hidden_size=sizes["downsample_hidden_size"],
        output_dim=sizes["output_dim"],
        n_window=sizes["n_window"],
        n_window_infer=sizes["n_window_infer"],
    )
    config._attn_implementation = "sdpa"
    theirs = Qwen3OmniMoeAudioEncoder(config).to(torch.bfloat16).eval()
    model = native.NativeModel(args.model)
    session = native.NativeSession(model, threads=args.threads)
    frames = 100 * args.seconds
    mel = np.random.default_rng(0).standard_normal((frames, sizes["num_mel_bins"])).astype(np.float32)
    features, lengths = torch.from_numpy(mel.T.copy()).to(torch.bfloat16), torch.tensor([frames])
    times: dict[str, list[float]] = {"pycrispasr": [], "pytorch": []}
    with torch.inference_mode():
        for run in range(args.runs + 2):
            for name, call in (
                ("pycrispasr", lambda: session.encode(mel)),
                ("pytorch", lambda: theirs(features, feature_lens=lengths)),
            ):
                start = time.perf_counter()
                call()
                if run >= 2:  # the first ones make room and choose kernels
                    times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(machine(args.threads))
    print(f"encoder, {args.seconds} s of audio: pycrispasr {medians['pycrispasr']:.3f} s, PyTorch {torch.__version__} "
          f"BF16 {medians['pytorch']:.3f} s: {medians['pytorch'] / medians['pycrispasr']:.2f}x")  # fmt: skip


if __name__ == "__main__":
    main()
