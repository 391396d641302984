"""A checkpoint's chat template, which says how its prompts are written."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_logger = logging.getLogger("pycrispasr")

Messages = Sequence[Mapping[str, Any]]


def chat_template(folder: Path) -> Callable[[Messages], str] | None:
    """What makes a prompt of messages, as the transformers library does, with the beginning of an answer behind them.

    Gives "" for messages that the template does not take. Templates run in Jinja's sandbox.

    Returns:
        None where the folder has no template, or the package `jinja2` is missing (extra `[convert]`).
    """
    source = _source(folder)
    if source is None:
        return None
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        _logger.warning("the checkpoint's chat template is not read, since jinja2 is missing: pip install jinja2")
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def render(messages: Messages) -> str:
        try:
            return environment.from_string(source).render(messages=messages, add_generation_prompt=True)
        except (TemplateError, LookupError, TypeError, ValueError) as error:
            _logger.info("the chat template does not take %r: %s", messages, error)
            return ""

    return render


def _source(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        try:
            template = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(template, str):
            return template
    return None
