"""The shapes of other packages, for programs that call them already. See `docs/drop-in.md`.

from pycrispasr.compat import whisper
from pycrispasr.compat.faster_whisper import WhisperModel
"""
