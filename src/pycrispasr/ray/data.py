"""Many recordings: a worker for Ray Data, which holds a model."""

from __future__ import annotations

import dataclasses
import inspect
import os
import typing
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from pycrispasr.errors import InstallationError, UsageError
from pycrispasr.model import Model
from pycrispasr.models import hub
from pycrispasr.options import JobKeywords, LoadingOptions, WorkerKeywords, check_names, takes
from pycrispasr.ray.lent import lent_threads
from pycrispasr.results import manifest
from pycrispasr.results.segment import Segment

if TYPE_CHECKING:
    from typing_extensions import Unpack

_COLUMNS = ("bytes", *manifest.AUDIO)  # what may hold the recordings, the first of them that is there


@takes(WorkerKeywords)
class Transcriber:
    """A worker of Ray Data, for `map_batches`. It opens its model once.

        dataset.map_batches(
            Transcriber,
            fn_constructor_kwargs={"model": "moss-transcribe"},
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=4),
            num_gpus=0.25,
            batch_size=16,
        )

    Every row gets the columns "text", "status", "complete", "duration", "error" and "segments", as lists of results of
    the command line have them: plain strings, numbers and lists, of the same types whatever was heard. A recording that
    cannot be read has the status "failed" and an error; the others go on. Columns that the rows have already are kept,
    but for those of these names.

    Args:
        model: As for `Model`. A path must be there on every machine.
        column: Which column holds the recordings: paths, addresses, or the bytes of audio files. None: the first there
            is of "bytes", "audio", "audio_filepath", "path" and "file".
        **options: See `LoadingOptions`, `ReadingOptions` and `DecodingOptions`.

    Where Ray lends a part of a GPU, the process sees that GPU only. `threads` are by default as many as the worker has
    of Ray's CPUs, and at least one.

    Raises:
        PycrispasrError: What `Model` raises. It ends the work: where rows are asked for, Ray raises an error of its own
            that names it.
        UsageError: There is no such column, or it holds something else.
        UnsupportedOperationError: CrispASR's library runs the model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = hub.DEFAULT,
        *,
        column: str | None = None,
        **options: Unpack[WorkerKeywords],
    ) -> None:
        check_names("Transcriber", options, WorkerKeywords)
        self._column = column
        loading = LoadingOptions.of(options)
        if loading.threads is None:
            loading = dataclasses.replace(loading, threads=lent_threads())
        self._options = cast(
            JobKeywords, {name: value for name, value in options.items() if not hasattr(loading, name)}
        )
        self._model = Model(model, **dataclasses.asdict(loading))

    def __call__(self, batch: Any) -> Any:
        """Transcribes rows.

        Args:
            batch: Rows in any of Ray Data's formats: dictionaries of arrays, Arrow tables, or data frames.

        Returns:
            An Arrow table.
        """
        import pyarrow as pa
        from ray.data.block import BlockAccessor

        table = BlockAccessor.for_block(BlockAccessor.batch_to_block(batch)).to_arrow()
        results = [
            {"segments": transcript.to_dict()["segments"]} | manifest.summary(transcript)
            for transcript in self._model.transcribe_many(self._recordings(table), **self._options)
        ]
        added = pa.Table.from_pylist(results, pa.schema(_types()))
        table = table.select([name for name in table.column_names if name not in added.column_names])
        for name in added.column_names:
            table = table.append_column(added.schema.field(name), added[name])
        return table

    def _recordings(self, table: Any) -> list[str | bytes]:
        from pyarrow import types

        names = (self._column,) if self._column is not None else _COLUMNS
        name = next((name for name in names if name in table.column_names), None)
        if name is None:
            wanted = repr(self._column) if self._column is not None else "of recordings: name it with column="
            raise UsageError(f"there is no column {wanted}; there are {', '.join(map(repr, table.column_names))}")
        kind = table.schema.field(name).type
        fitting = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_null)
        if not any(fits(kind) for fits in fitting):
            raise UsageError(f"column {name!r} holds {kind}: it must hold paths, addresses or bytes of audio files")
        return [b"" if one is None else one for one in table[name].to_pylist()]  # nothing is a file without audio


def transcribe(
    recordings: Any,
    *,
    model: str | os.PathLike[str] = hub.DEFAULT,
    concurrency: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch_size: int = 16,
    **options: Any,
) -> Any:
    """Transcribes recordings with a pool of workers, on all machines of the cluster that Ray is connected to.

    A worker that dies is started again, and the batch that it had is done again: all rows come out, and once. Ray sets
    no limit to this: a recording for which no worker has enough memory is tried for ever. For all else that Ray offers,
    use `map_batches` with `Transcriber`.

    Args:
        recordings: A `ray.data.Dataset` with a column of recordings, as `ray.data.read_binary_files(...,
            include_paths=True)` gives it; or a path, an address, or several of them, which give a column "audio". In
            the place of a folder comes what is in it and within, as far as its ending tells audio. The workers read
            files by themselves, so that paths must mean the same on every machine.
        model: As for `Transcriber`. Every worker opens it.
        concurrency: How many workers, or the least and the most of them, as there is work.
        num_cpus: How many of Ray's CPUs a worker takes; it computes in so many threads.
        num_gpus: How much of a GPU a worker takes: 0.25 puts four of them on one.
        batch_size: How many rows a worker takes at once. Few keep all workers busy to the end; many are faster where
            recordings are short.
        **options: Others of `Transcriber`.

    Returns:
        A `ray.data.Dataset`, with the columns that `Transcriber` adds. Work begins when its rows are asked for, and
        goes on as they are.

    Raises:
        InstallationError: Ray is missing.
        AudioNotFoundError: There is no audio file in a folder.
        TypeError: `Transcriber` has no such option.
        UsageError: There are no recordings.
    """
    data = _ray_data()
    arguments = inspect.signature(Transcriber).bind(model, **options).arguments
    if not isinstance(recordings, data.Dataset):
        paths = [recordings] if isinstance(recordings, (str, os.PathLike)) else recordings
        recordings = data.from_items([{"audio": path} for path in _everywhere(paths)])
    min_size, max_size = (concurrency, concurrency) if isinstance(concurrency, int) else concurrency
    return recordings.map_batches(
        Transcriber,
        fn_constructor_kwargs=arguments,
        compute=data.ActorPoolStrategy(min_size=min_size, max_size=max_size),
        batch_size=batch_size,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
    )


def _everywhere(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Recordings by names that do not depend on where a process runs."""
    found = manifest.expand(map(os.fsdecode, paths), recursive=True)
    names = [path if "://" in path else os.path.abspath(path) for path in found]
    if not names:
        raise UsageError("there are no recordings: pass a dataset, or at least one path")
    return names


def _types() -> list[tuple[str, Any]]:
    """The columns that are added, with their types: those of `result.Segment`, whatever a batch has of them."""
    import pyarrow as pa

    kinds = {"complete": pa.bool_(), "duration": pa.float64()}
    return [
        *((name, kinds.get(name, pa.string())) for name in manifest.RESULTS),
        ("segments", pa.list_(_type(Segment))),
    ]


def _type(hint: Any) -> Any:
    """Arrow's type for a type hint of `result`."""
    import pyarrow as pa

    plain = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    if hint in plain:
        return plain[hint]
    if dataclasses.is_dataclass(hint):
        return pa.struct([(name, _type(one)) for name, one in typing.get_type_hints(hint).items()])
    first = typing.get_args(hint)[0]
    if typing.get_origin(hint) is tuple:
        return pa.list_(_type(first))
    return pa.string() if isinstance(first, str) else _type(first)  # of a Literal, or of what may be None


def _ray_data() -> Any:
    try:
        import ray.data
    except ImportError as error:
        raise InstallationError("this needs Ray Data: pip install 'pycrispasr[ray]'") from error
    return ray.data
