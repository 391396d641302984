"""`pycrispasr models`: what there is, what lies here, and fetching and removing it."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from typing import Annotated

import typer

from pycrispasr.cli.common import TRANSCRIBE, AsJson, app, bytes_text, is_terminal, log_to_stderr, printable, tell
from pycrispasr.models import hub

models = typer.Typer(help="List models; fetch, remove and find them.")
app.add_typer(models, name="models", rich_help_panel=TRANSCRIBE)

Name = Annotated[str, typer.Argument(metavar="NAME", help='A name that `pycrispasr models` lists, or "org/repo:file".')]
Revision = Annotated[
    str | None, typer.Option(help="A branch, tag or commit; by default the newest state at the first use.")
]


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the models with names of their own, and the others of their kind in the Hugging Face hub's cache."""
    if context.invoked_subcommand is not None:
        return
    known = hub.models()
    if as_json:
        print(json.dumps([dataclasses.asdict(model) for model in known], indent=2, default=str))
        return
    # A name of our own needs no revision.
    names = [
        model.name + (f" (revision {model.revision})" * bool(model.revision and "/" in model.name)) for model in known
    ]
    width = max(map(len, names))
    print(f"{'name':<{width}}  {'type':<5} {'size':>8}  where")
    for name, model in zip(names, known, strict=True):
        print(printable(f"{name:<{width}}  {model.type:<5} {_size(model):>8}  {model.path or 'not here'}"))


@models.command()
def download(name: Name, revision: Revision = None) -> None:
    """Fetch a model into the Hugging Face hub's cache, unless it is there, and print its path."""
    log_to_stderr(logging.WARNING, "pycrispasr: %(message)s")
    print(hub.resolve(name, revision=revision))


@models.command()
def remove(
    name: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, not even on a terminal.")] = False
) -> None:
    """Remove a model from the Hugging Face hub's cache, in every revision; other files of its repository stay."""
    paths = hub.cached(name)
    for path in paths:
        tell(str(path))
    if paths and not yes and is_terminal(sys.stdin):
        typer.confirm("Remove it?" if len(paths) == 1 else f"Remove these {len(paths)}?", abort=True, err=True)
    freed = hub.remove(name)
    tell(f"{name}: {bytes_text(freed)} removed" if paths or freed else f"{name}: not in the cache")


@models.command()
def path(name: Name, revision: Revision = None) -> None:
    """Print where a model lies; the network is not used. Exit status 1 when it is not here."""
    print(hub.resolve(name, revision=revision, local_files_only=True))


def _size(model: hub.KnownModel) -> str:
    if model.size is None and model.approximate_size is not None:
        return "~" + bytes_text(model.approximate_size)
    return "?" if model.size is None else bytes_text(model.size)
