"""Imports point one way, and the public names are those that are written down here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pycrispasr

SOURCE = Path(pycrispasr.__file__).parent
HEADER = Path(__file__).parent.parent / "csrc" / "include" / "pycrispasr.h"

LAYERS = [
    # Each may import from those below it, and from itself. A name stands for a module or for all of a package.
    {"__main__", "_pyinstaller"},
    {"cli", "ray"},
    {"server"},
    {"compat"},
    {"lab"},
    {"model"},
    {"models", "live"},
    {"decoding"},
    {"runtimes", "segmentation"},
    {"results"},
    {"audio"},
    {"options", "text", "terminal", "atomic"},
    {"errors"},
]
TYPES_ONLY = {  # type hints that point up
    ("errors", "results.transcript"),  # of `CancelledError.partial`
    ("options", "model"),  # of `DecodingOptions.aligner`
    ("results.formats", "results.transcript"),
    ("results.cues", "results.transcript"),
    *((f"compat.whisper.{module}", "compat.whisper.model") for module in ("audio", "decoding", "transcribe")),
}

PUBLIC = """
    AsyncSession AudioError AudioNotFoundError Backend BusyError CancelledError ClosedError DecodingOptions Device
    DeviceError Event Final InstallationError InternalError Job LiveText LoadingOptions Model ModelFormatError ModelInfo
    ModelNotFoundError OutOfMemoryError OutputError Overrun Partial Progress PycrispasrError ReadingOptions Segment
    Session Silence SpeechStarted Timings Token Transcript UnsupportedModelError UnsupportedOperationError UsageError
    Word __version__ audio backends devices transcribe
"""
MODULES = {
    "audio": "Audio AudioReader CHUNK_SECONDS Limits Resampler SAMPLE_RATE Samples check_rate listen load open to_mono",
    "formats": "Cue FORMATS Format cues event_to_json render to_audacity to_json to_srt to_tsv to_txt to_vtt",
    "hub": "DEFAULT KnownModel cached checkpoint models remove resolve",
    "output": "files pending stems write",
}
METHODS = {
    "AsyncSession": "cancel close closed end events feed finish lost poll push reset text tokens",
    "Job": "cancel close closed partial progress segments stuck tokens",
    "Model": "align close closed info job languages longest runtime segments session stats stream takes_context "
    "tells_speakers tokenize transcribe transcribe_many",
    "Session": "cancel close closed end events feed finish lost poll push reset text tokens",
    "Transcript": "complete duration from_json language segments text timings to_audacity to_dict to_json to_srt "
    "to_tsv to_txt to_vtt warnings word_times words",
}
FUNCTIONS = """
    abi_version adapt backend_get clip_params_default clip_prompt convert_rows decode decode_step device_count
    device_get embed encode frame_count ggml_version importance kernels_name log_mel model_error model_free
    model_get_info model_load model_params_default product product_kernels row_bytes row_count session_advance
    session_align session_attention session_begin session_begin_hypothesis session_cancel session_end
    session_end_hypothesis session_error session_feed
    session_free session_memory session_new session_next session_params_default session_reset session_result session_run
    session_take session_wake set_log_level take_log token_bytes tokenize usable_cores usable_cores_of version
"""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") or "__init__"


def exists(name: str) -> bool:
    path = SOURCE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imported(path: Path) -> Iterator[str]:
    """The modules of this package that a module imports, inside functions too; for type hints where that is listed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        node for block in ast.walk(tree) if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if exists(name.removeprefix("pycrispasr.")) else node.module for name in inside]
        else:
            continue
        for name in names:
            other = name.removeprefix("pycrispasr.")
            if other != name and not (node in for_types and (module_name(path), other) in TYPES_ONLY):
                yield other


EDGES = {
    (name, other)
    for path in sorted(SOURCE.rglob("*.py"))
    if (name := module_name(path)) not in ("__init__", "_cdefs")
    for other in imported(path)
    if other not in (name, "_cdefs")
}


def layer(module: str) -> int:
    return next(place for place, names in enumerate(LAYERS) if module.split(".")[0] in names)


@pytest.mark.parametrize(("module", "other"), sorted(EDGES), ids=lambda one: one)
def test_a_module_imports_only_from_layers_below(module: str, other: str) -> None:
    is_same_package = module.split(".")[0] == other.split(".")[0]
    assert layer(module) < layer(other) or is_same_package


def test_no_imports_go_in_a_circle() -> None:
    reached: dict[str, set[str]] = {}
    for module, other in EDGES:
        reached.setdefault(module, set()).add(other)
    while True:
        grown = {
            module: others.union(*(reached.get(one, set()) for one in others)) for module, others in reached.items()
        }
        if grown == reached:
            break
        reached = grown
    assert [module for module, others in reached.items() if module in others] == []


def test_the_public_names_are_these() -> None:
    assert sorted(pycrispasr.__all__) == sorted(PUBLIC.split())
    assert all(getattr(pycrispasr, name) is not None for name in pycrispasr.__all__)
    for module, names in MODULES.items():
        content = vars(getattr(pycrispasr, module))
        assert {name for name in names.split() if name not in content} == set(), module
    for kind, names in METHODS.items():
        found = getattr(pycrispasr, kind)
        fields = set(getattr(found, "__dataclass_fields__", ()))
        assert {name for name in dir(found) if not name.startswith("_")} | fields == set(names.split())


def test_ray_is_not_needed_before_it_is_used() -> None:
    program = "import sys; sys.modules['ray'] = None; import pycrispasr.ray; print('fastapi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_c_functions_are_these() -> None:
    found = re.findall(r"^PCR_API [^(]*?pcr_(\w+)\(", HEADER.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(found) == sorted(FUNCTIONS.split())
