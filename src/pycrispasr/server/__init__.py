"""A server with OpenAI's shapes for speech to text: `pycrispasr serve`, or `create_app` under any ASGI server.

    from pycrispasr.server import ServerOptions, create_app

    app = create_app(["tiny"], ServerOptions(max_seconds=600))

Needs the extra: `pip install 'pycrispasr[serve]'`.

Raises:
    InstallationError: A package that it needs is missing.
"""

import importlib.util

from pycrispasr.errors import InstallationError

_missing = [
    package
    for module, package in {
        "fastapi": "fastapi",
        "prometheus_client": "prometheus_client",
        "python_multipart": "python-multipart",
    }.items()
    if importlib.util.find_spec(module) is None
]
if _missing:
    raise InstallationError(f"the server needs {', '.join(_missing)}: pip install 'pycrispasr[serve]'")

from pycrispasr.server.app import create_app  # noqa: E402
from pycrispasr.server.settings import ServerOptions  # noqa: E402

__all__ = ["ServerOptions", "create_app"]
