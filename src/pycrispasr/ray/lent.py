"""What Ray lends to the process that asks."""

from __future__ import annotations


def lent_threads() -> int | None:
    """The CPUs that Ray has lent to this worker; None in a process that is none."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
