"""Many requests: the server as an application of Ray Serve, whose replicas hold a model each."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pycrispasr.errors import InstallationError, UsageError
from pycrispasr.models import hub
from pycrispasr.options import LoadingOptions
from pycrispasr.ray.lent import lent_threads

if TYPE_CHECKING:
    from pycrispasr.server import ServerOptions

_LISTS = ("model", "api_keys", "cors")  # in a text, as on the command line, there are commas between their values


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """How many replicas there are, and what each of them has.

    Attributes:
        model: What each of them serves: one model or several, as for `pycrispasr.server.create_app`. A path must be
            there on every machine.
        min_replicas: How many there are at least.
        max_replicas: How many there are at most, as there is work for them. None: always as many as `min_replicas`.
        autoscaling_config: Others of Ray's rules for their number, by Ray's names. By default a replica is added where
            each has more than `parallel` requests, the server's option: "target_ongoing_requests".
        max_ongoing_requests: How many requests and realtime sessions a replica is given at once. None: `parallel` and
            `sessions`, the server's options. What comes then waits at Ray's proxies, up to `queue` for each of them;
            more is refused with 503.
        num_cpus: How many of Ray's CPUs a replica takes; it computes in so many threads, and at least one.
        num_gpus: How much of a GPU a replica takes: 0.25 puts four of them on one.
        grace: Seconds that what runs may go on in a replica that is to end.
    """

    model: tuple[str, ...] = (hub.DEFAULT,)
    min_replicas: int = 1
    max_replicas: int | None = None
    autoscaling_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    max_ongoing_requests: int | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    grace: float = 30.0


def app(arguments: Mapping[str, Any]) -> Any:
    """Builds the application, as Ray Serve calls it.

        serve run pycrispasr.ray:app model=moss-transcribe num_gpus=0.5 max_replicas=4

    Args:
        arguments: Those of `ReplicaOptions`, `pycrispasr.server.ServerOptions` and `LoadingOptions` by their names.
            Texts are read as the numbers or the lists that they stand for.

    Returns:
        A `ray.serve.Application`, for `ray.serve.run`.

    Raises:
        InstallationError: Ray Serve is missing, or what the server needs.
        UsageError: There is no such argument, or no such value of it.
    """
    try:
        import ray.serve
    except ImportError as error:
        raise InstallationError("this needs Ray Serve: pip install 'pycrispasr[ray,serve]'") from error
    from pycrispasr.server import ServerOptions, create_app

    with _plainly():
        replicas, options, loading = _read(arguments, ReplicaOptions, ServerOptions, LoadingOptions)
        create_app(replicas.model, options, **loading.keywords())  # raises what replicas would only raise one by one
        most = replicas.max_ongoing_requests
        deployment = ray.serve.deployment(
            ray.serve.ingress()(Server),
            name="pycrispasr",
            max_ongoing_requests=options.parallel + options.sessions if most is None else most,
            max_queued_requests=max(1, options.queue),
            graceful_shutdown_timeout_s=replicas.grace,
            ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
            **_number(replicas, options),
        )
    return deployment.bind(replicas.model, options, loading)


class Server:
    """A replica. Ray Serve makes it in a process of its own."""

    def __init__(self, models: Sequence[str], options: ServerOptions, loading: LoadingOptions) -> None:
        from pycrispasr.server import create_app

        if loading.threads is None:
            loading = dataclasses.replace(loading, threads=lent_threads())
        self._app = create_app(models, options, **loading.keywords())

    def __serve_build_asgi_app__(self) -> Any:
        """The name by which `serve.ingress` asks for the app."""
        return self._app

    async def check_health(self) -> None:
        """The name by which Ray Serve asks: before the first request, and every ten seconds.

        Raises:
            PycrispasrError: The model cannot be loaded.
        """
        first = self._app.state.service.models.first
        if not first.ready or first.failure is not None:
            await first.load()


def _number(replicas: ReplicaOptions, options: ServerOptions) -> dict[str, Any]:
    """How many replicas there are, as Ray Serve is told.

    Raises:
        UsageError: Ray has no such rule.
    """
    from ray.serve.config import AutoscalingConfig

    if replicas.max_replicas is None and not replicas.autoscaling_config:
        return {"num_replicas": replicas.min_replicas}
    for name in replicas.autoscaling_config:
        if name not in AutoscalingConfig.model_fields:  # Ray would say nothing
            known = ", ".join(AutoscalingConfig.model_fields)
            raise UsageError(f"Ray has no rule {name!r} for autoscaling_config: there are {known}")
    rules = {
        "min_replicas": replicas.min_replicas,
        "max_replicas": replicas.min_replicas if replicas.max_replicas is None else replicas.max_replicas,
        "target_ongoing_requests": options.parallel,
    }
    return {"autoscaling_config": rules | replicas.autoscaling_config}


def _read(arguments: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """Objects of options out of the arguments for all of them."""
    import pydantic

    names = {kind: [field.name for field in dataclasses.fields(kind)] for kind in kinds}
    known = [name for some in names.values() for name in some]
    for name in arguments:
        if name not in known:
            raise UsageError(f"there is no argument {name!r}: there are {', '.join(known)}")
    values = {
        name: [one for one in value.split(",") if one] if name in _LISTS and isinstance(value, str) else value
        for name, value in arguments.items()
    }
    return [
        pydantic.TypeAdapter(kind).validate_python({name: values[name] for name in names[kind] if name in values})
        for kind in kinds
    ]


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Says what is wrong with a value in a sentence, whoever has found it.

    Raises:
        UsageError: Something is.
    """
    import pydantic

    try:
        yield
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        reason = first.get("ctx", {}).get("error")  # of options that check themselves: a sentence already
        raise UsageError(str(reason or f"{name} cannot be {first['input']!r}: {first['msg']}")) from None
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None
