"""openai-whisper's module `tokenizer`, as far as programs take languages from it: models here have other tokenizers."""

from __future__ import annotations

from pycrispasr.compat import languages

LANGUAGES = languages.LANGUAGES
"""Whisper's languages: English names by codes. Which of them a model takes is its own matter."""

TO_LANGUAGE_CODE = languages.CODES
"""Codes by names."""
