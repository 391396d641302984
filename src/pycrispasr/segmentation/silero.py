"""Where in audio somebody speaks: Silero's voice activity detector, version 6, computed with NumPy.

Source: https://github.com/snakers4/silero-vad (MIT). Its weights lie in `bundled/silero-vad.npz`, rounded to float16.
"""

from __future__ import annotations

import functools
import importlib.resources

import numpy as np
import numpy.typing as npt

from pycrispasr.audio import Samples

FRAME = 512
"""Samples that get one probability: 32 ms."""

_CONTEXT = 64  # samples before a frame that are seen with it
_MIRRORED = 64  # samples at its end that are seen once more, backwards
_FFT, _HOP, _COLUMNS = 256, 128, 4  # of a frame's spectrogram
_STRIDES = (1, 2, 2, 1)  # of the convolutions over its columns, each of three columns
_WIDTH = 128  # of the LSTM

_Floats = npt.NDArray[np.float32]


class VoiceDetector:
    """The probability of speech for each 32 ms of audio.

    Frames are computed one by one, so that the blocks which the audio comes in do not change a bit of the result.
    """

    def __init__(self) -> None:
        self._network = _network()
        self._rest = np.zeros(_CONTEXT, np.float32)  # the context, and samples that fill no frame yet
        self._hidden = np.zeros(_WIDTH, np.float32)
        self._cell = np.zeros(_WIDTH, np.float32)

    def push(self, samples: Samples) -> list[float]:
        """A probability for each frame that becomes complete with these samples, mono at 16 kHz, shape `[n]`."""
        held = np.concatenate([self._rest, samples])
        count = (len(held) - _CONTEXT) // FRAME
        self._rest = held[count * FRAME :].copy()
        return [self._next(held[i * FRAME : (i + 1) * FRAME + _CONTEXT]) for i in range(count)]

    def _next(self, samples: Samples) -> float:
        """One frame with its context, `[64 + 512]`."""
        network = self._network
        mirrored = np.concatenate([samples, samples[-2 : -2 - _MIRRORED : -1]])
        columns = mirrored[_PLACES]  # [4, 256]
        parts = np.square(columns @ network.spectrum).reshape(_COLUMNS, 2, -1)  # real and imaginary, [4, 2, 129]
        x = np.sqrt(parts[:, 0] + parts[:, 1])
        for (kernel, bias), stride in zip(network.convolutions, _STRIDES, strict=True):
            padded = np.zeros((len(x) + 2, x.shape[1]), np.float32)
            padded[1:-1] = x
            windows = np.stack([padded[t : t + 3].reshape(-1) for t in range(0, len(x), stride)])
            x = np.maximum(windows @ kernel + bias, 0)

        gates = network.lstm @ np.concatenate([x[0], self._hidden]) + network.lstm_bias
        input_gate, forget_gate, _, output_gate = _sigmoid(gates).reshape(4, _WIDTH)
        self._cell = forget_gate * self._cell + input_gate * np.tanh(gates[2 * _WIDTH : 3 * _WIDTH])
        self._hidden = output_gate * np.tanh(self._cell)
        return float(_sigmoid(np.maximum(self._hidden, 0) @ network.score + network.score_bias))


_PLACES = np.arange(_COLUMNS)[:, None] * _HOP + np.arange(_FFT)


def _sigmoid(x: _Floats) -> _Floats:
    return np.asarray(np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * x))


class _Network:
    """The weights as they are multiplied."""

    def __init__(self, weights: dict[str, _Floats]) -> None:
        self.spectrum = weights["stft.forward_basis_buffer"][:, 0].T.copy()  # [256, 2 * 129]
        self.convolutions = [  # [3 * in, out], [out]
            (weights[f"{name}.weight"].transpose(2, 1, 0).reshape(-1, len(weights[f"{name}.bias"])),
             weights[f"{name}.bias"])
            for name in (f"encoder.{i}.reparam_conv" for i in range(len(_STRIDES)))
        ]  # fmt: skip
        self.lstm = np.concatenate([weights["decoder.rnn.weight_ih"], weights["decoder.rnn.weight_hh"]], axis=1)
        self.lstm_bias = weights["decoder.rnn.bias_ih"] + weights["decoder.rnn.bias_hh"]  # input, forget, cell, output
        self.score = weights["decoder.decoder.2.weight"][0, :, 0]
        self.score_bias = weights["decoder.decoder.2.bias"][0]


@functools.cache
def _network() -> _Network:
    resource = importlib.resources.files("pycrispasr") / "bundled" / "silero-vad.npz"
    with importlib.resources.as_file(resource) as path, np.load(path) as file:
        return _Network({name: file[name].astype(np.float32) for name in file.files})
