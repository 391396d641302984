"""What Python needs to know about a family of models: the parts it is put together of, and how its files name them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pycrispasr.decoding.reader import PlainReader, Reader
from pycrispasr.errors import UnsupportedOperationError
from pycrispasr.models.families.parts import FLOAT_SIZES, ConfigKey, Part, Sizes, front_end_shapes, rename


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models.

    Attributes:
        architecture: "general.architecture" of its files.
        model_type: Of `config.json`, in checkpoints.
        crispasr: What the names of libcrispasr's functions for it begin with.
        name: For people.
        hears: Its languages, for people.
        parts: In the order in which data flows through them.
        prefix: What its files' own metadata keys begin with. None: the architecture.
        keys: What sizes are called in its files, below the architecture.
        constants: Sizes that its files do not tell, where they are these.
        derived: Metadata that its files have besides, from the sizes.
        tensors: What tensors are called in its files, without ".weight" and ".bias", "*" for a layer's number.
        specials: Metadata keys of special tokens, and the names that a vocabulary may have for each.
        texts: Metadata of its files that is text, from the folder of a checkpoint.
        named: Special tokens that are found by their names alone.
        sections: The parts of `config.json` that describe the model, "" for the outermost; None where it is of another
            family.
        config: Where the sizes are in these.
        decoder_section: The one that describes the decoder.
        assumed: What the arithmetic takes for granted: section, key, value.
        in_checkpoint: The names that a tensor may have in a checkpoint, the likeliest first.
        languages: What `language` can be: English names, as the model writes them, by code. None: it takes none.
        takes_context: It can be told what the audio is about.
        without_language: What happens where no language is told.
        reader: Makes what reads its text, given the code of the language that was asked for.
        conversation: It tells who spoke when, and numbers speakers within what it hears in one go: a whole recording,
            if that can be.
    """

    architecture: str
    model_type: str
    crispasr: str
    name: str
    hears: str
    parts: tuple[Part, ...]
    keys: Mapping[str, str]
    tensors: Mapping[str, str]
    specials: Mapping[str, tuple[str, ...]]
    sections: Callable[[Mapping[str, Any]], Mapping[str, Mapping[str, Any]] | None]
    config: Mapping[str, ConfigKey]
    decoder_section: str
    in_checkpoint: Callable[[str], tuple[str, ...]]
    assumed: tuple[tuple[str, str, object], ...] = ()
    prefix: str | None = None
    constants: Mapping[str, int | float | bool] = dataclasses.field(default_factory=dict)
    derived: Callable[[Mapping[str, int | float | bool]], Sizes] = lambda _: {}
    named: tuple[str, ...] = ()
    texts: Callable[[Path], Mapping[str, str]] = lambda _: {}
    languages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    takes_context: bool = False
    without_language: str = "it finds out by itself"
    reader: Callable[[str | None], Reader] = PlainReader
    conversation: bool = False

    def shapes(self, sizes: Mapping[str, int | float | bool]) -> dict[str, tuple[int, ...]]:
        """Every tensor of a model of these sizes, by its shared name, in the order in which data flows through it.

        Shapes are NumPy's: rows first. GGUF counts from the fastest dimension, so it lists them the other way round.
        """
        whole = {key: int(value) for key, value in sizes.items() if key not in FLOAT_SIZES}
        shapes = front_end_shapes(whole)
        for part in self.parts:
            shapes |= part.shapes(whole)
        return shapes

    def part(self, prefix: str) -> Part:
        """Its part whose tensors' names begin so."""
        return next(part for part in self.parts if part.prefix == prefix)

    def module_name(self, name: str) -> str:
        """What a tensor is called inside its part's module of the transformers library."""
        return self.part(name.partition(".")[0]).module_name(name)

    def stored(self, name: str) -> str:
        """A tensor's name in a file of this family."""
        return name if name.startswith("audio.mel_") else rename(name, self.tensors)

    def shared(self, name: str) -> str | None:
        """The name of a stored tensor that all families share; None for one that is not known."""
        try:
            return rename(name, {stored: shared for shared, stored in self.tensors.items()})
        except KeyError:
            return None

    def language(self, wanted: str) -> str:
        """The code of a language that is told by its code or its English name.

        Raises:
            UnsupportedOperationError: The model does not take it.
        """
        if not self.languages:
            raise UnsupportedOperationError(
                f"language={wanted!r}: {self.name} takes no language, it writes what it hears ({self.hears}); leave it "
                "out, or use a model that takes one, such as qwen3-asr:0.6b"
            )
        plain = wanted.strip().casefold()
        for code, name in self.languages.items():
            if plain in (code, name.casefold()):
                return code
        raise UnsupportedOperationError(
            f"language={wanted!r}: {self.name} takes {', '.join(sorted(self.languages))}, or their English names; "
            f"leave it out, and {self.without_language}"
        )
