"""Many machines: a worker for Ray Data, and a server for Ray Serve, each of which holds a model.

    import pycrispasr.ray

    pycrispasr.ray.transcribe("recordings/", concurrency=8).write_parquet("texts/")

    $ serve run pycrispasr.ray:app model=moss-transcribe max_replicas=8

Ray does all the rest: it starts them where there is room, hands recordings and requests to them, and starts them again
when they die. Needs extras, on every machine: `pip install 'pycrispasr[ray]'`, for Ray Serve `'pycrispasr[ray,serve]'`.
"""

from pycrispasr.ray.data import Transcriber, transcribe
from pycrispasr.ray.serving import ReplicaOptions, app

__all__ = ["ReplicaOptions", "Transcriber", "app", "transcribe"]
