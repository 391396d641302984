"""`pycrispasr serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pycrispasr.cli.common import SERVE, ComputedIn, Device, Mmap, Precision, Runtime, Threads, app, tell
from pycrispasr.errors import UsageError
from pycrispasr.models import hub

_KEY = "PYCRISPASR_API_KEY"


@app.command(rich_help_panel=SERVE)
def serve(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]MODEL",
            help="A model, as for `transcribe -m`, and what clients call it. Again for more; the first one is loaded "
            "at once.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help=f"Ask clients for a key: one a line. {_KEY} in the environment is one, too."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help='Whose pages may use it: "https://example.com", or "*". Again for more.'),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="What has no effect is an error, not a warning.")] = False,
    max_upload: Annotated[float, typer.Option(metavar="BYTES", help="Of one request, at most.")] = 1e9,
    max_seconds: Annotated[float, typer.Option(metavar="SECONDS", help="Of one recording, at most.")] = 14_400.0,
    parallel: Annotated[int, typer.Option(min=1, help="Transcriptions that are worked on at once.")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="Transcriptions that wait; more get 429.")] = 100,
    sessions: Annotated[int, typer.Option(min=1, help="Realtime sessions at once; more get 429.")] = 64,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Of one transcription, and of silence in a realtime session.")
    ] = 3600.0,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="What runs may go on for so long after SIGTERM.")
    ] = 30.0,
    unload_after: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Unload a model that nobody has used for so long.")
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON, an object a line.")] = False,
    device: Device = "auto",
    runtime: Annotated[
        Runtime, typer.Option("--runtime", "-r", help="crispasr: CrispASR's library, which runs other models too.")
    ] = Runtime.auto,
    precision: ComputedIn = Precision.auto,
    mmap: Mmap = True,
    threads: Threads = None,
) -> None:
    """Serve models over HTTP and WebSockets, with OpenAI's shapes. Ctrl-C or SIGTERM ends it."""
    from pycrispasr.server import ServerOptions, create_app
    from pycrispasr.server.process import run

    service = create_app(
        models or [hub.DEFAULT],
        ServerOptions(
            api_keys=_keys(api_key_file), cors=tuple(cors or ()), strict=strict, max_upload=max_upload,
            max_seconds=max_seconds, parallel=parallel, queue=queue, sessions=sessions, timeout=timeout,
            unload_after=unload_after,
        ),
        device=device, runtime=runtime.value, precision=precision.value, mmap=mmap, threads=threads,
    )  # fmt: skip
    run(service, host=host, port=port, grace=grace, log_json=log_json, started=tell)


def _keys(path: str | None) -> tuple[str, ...]:
    """The keys that clients may send: of the environment, and of the lines of a file."""
    keys = [os.environ[_KEY]] if os.environ.get(_KEY) else []
    if path is not None:
        try:
            lines = [line.strip() for line in Path(path).read_text("utf-8").splitlines()]
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise UsageError(f"the keys in {path!r} cannot be read ({reason}): name another file") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise UsageError(f"there is no key in {path!r}: write one into it, or leave --api-key-file away")
        keys += found
    return tuple(keys)
