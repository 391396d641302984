"""Every kernel that this processor runs gives the product in double precision, within the rounding of its factors."""

from __future__ import annotations

import platform

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycrispasr.errors import DeviceError, UsageError
from pycrispasr.runtimes import native

Floats = npt.NDArray[np.float32]

KERNELS = native.kernels()
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
BLOCK = {"f32": 1, "f16": 1, "bf16": 1, **dict.fromkeys(("q8_0", "q4_0", "q4_1", "q5_0", "q5_1"), 32)}

# Relative error of both factors: sums in F32; BF16 keeps 8 bits; 8-bit integers are 1/254 of the largest of 32 off.
TOLERANCE = {"f32": 2e-6, "bf16": 1.01 * 2.0**-7, "int8": 1.5e-2}


def matrix_of(kind: str, n_out: int, n_in: int, seed: int = 0) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Random bytes of a kind, and what they stand for `[n_out, n_in]`."""
    values = np.random.default_rng(seed).standard_normal((n_out, n_in)).astype(np.float32)
    stored = native.convert_rows(values, "f32", kind, n_in)
    back = native.convert_rows(stored, kind, "f32", n_in).view(np.float32).reshape(n_out, n_in)
    return stored, back.astype(np.float64)


def rows_of(n_rows: int, n_in: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((n_rows, n_in)).astype(np.float32)


def error(got: Floats, rows: Floats, matrix: npt.NDArray[np.float64]) -> float:
    """Largest error, relative to the lengths of both factors."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)[:, None] * np.linalg.norm(matrix, axis=1)[None]
    return float(np.max(np.abs(got - rows.astype(np.float64) @ matrix.T) / np.maximum(lengths, 1e-300)))


def precisions(kernels: str) -> list[str]:
    return ["f32", "bf16"] if kernels in ("avx512_bf16", "amx", "bf16") else ["f32", "auto"]


def takes_integers(kernels: str) -> bool:
    """Many rows with a quantised matrix are multiplied in 8-bit integers, by our kernels."""
    return kernels not in ("generic", "amx")


CASES = [(kernels, precision) for kernels in KERNELS for precision in precisions(kernels)]


@pytest.mark.parametrize(("kernels", "precision"), CASES)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("each", [False, True])
def test_every_type_is_multiplied(kernels: str, precision: str, kind: str, each: bool) -> None:
    n_in = 2 * BLOCK.get(kind, 256)
    n_in = n_in if n_in > 2 else 77
    stored, matrix = matrix_of(kind, 100, n_in)
    rows = rows_of(37 if not each else 7, n_in)
    got, _ = native.product(rows, stored, kind, 100, kernels=kernels, precision=precision, each=each)
    float_matrix = BLOCK.get(kind) == 1
    integers = not float_matrix and (each or kernels != "amx")  # where they are the faster ones
    exact = precision == "f32" or (float_matrix and (each or precision == "auto"))
    rounded = "f32" if exact else "int8" if integers else "bf16"
    assert error(got, rows, matrix) <= TOLERANCE[rounded]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("each", [False, True])
def test_what_multiplies_is_told(kernels: str, kind: str, each: bool) -> None:
    told = native.product_kernels(kind, kernels=kernels, each=each)
    stored, matrix = matrix_of(kind, 64, 512)
    rows = rows_of(5, 512)
    got, _ = native.product(rows, stored, kind, 64, kernels=kernels, each=each)
    by_ggml, _ = native.product(rows, stored, kind, 64, kernels="ggml", each=each)
    name, _, computed_in = told.partition(", ")
    if told == "ggml":
        np.testing.assert_array_equal(got, by_ggml)
    else:
        assert name == kernels
        kept = {"F32": "f32", "BF16": "bf16", "8-bit integers": "int8"}[computed_in]
        smaller = {"f32": 0.0, "bf16": TOLERANCE["f32"], "int8": TOLERANCE["f32"]}[kept]
        assert smaller <= error(got, rows, matrix) <= TOLERANCE[kept]


def test_what_multiplies_is_told_by_kind_of_product() -> None:
    told = native.kernels_by_product(kernels="generic")
    assert told["many rows"]["Q4_K, Q5_K, Q6_K, Q8_0"] == native.product_kernels("q5_k", kernels="generic")
    assert told["few rows"]["float"] == "generic, F32"
    assert set(native.kernels_by_product(kernels="ggml")["many rows"].values()) == {"ggml"}
    with pytest.raises(UsageError, match="no kernels 'none'"):
        native.product_kernels("f16", kernels="none")


@settings(max_examples=60, deadline=None)
@given(
    n_out=st.integers(1, 200),
    n_in=st.integers(1, 150),
    n_rows=st.integers(1, 210),
    threads=st.integers(1, 3),
    case=st.sampled_from(CASES),
    each=st.booleans(),
)
def test_every_size_is_multiplied(
    n_out: int, n_in: int, n_rows: int, threads: int, case: tuple[str, str], each: bool
) -> None:
    stored, matrix = matrix_of("f16", n_out, n_in, seed=n_in)
    rows = rows_of(n_rows, n_in, seed=n_rows)
    got, _ = native.product(rows, stored, "f16", n_out, kernels=case[0], precision=case[1], each=each, threads=threads)
    assert error(got, rows, matrix) <= TOLERANCE["bf16" if case[1] == "bf16" and not each else "f32"]


@pytest.mark.parametrize(("kernels", "precision"), CASES)
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k", "q6_k"])
def test_a_row_s_product_does_not_depend_on_its_company(kernels: str, precision: str, each: bool, kind: str) -> None:
    """To the last bit: so texts do not depend on batches, blocks and threads."""
    stored, _ = matrix_of(kind, 70, 512)
    rows = rows_of(200, 512)
    options = {"kernels": kernels, "precision": precision, "each": each}
    whole, _ = native.product(rows, stored, kind, 70, threads=2, **options)
    for first, last in ((0, 1), (0, 5), (17, 33), (3, 200), (199, 200)):
        part, _ = native.product(rows[first:last], stored, kind, 70, threads=1, **options)
        np.testing.assert_array_equal(part, whole[first:last])


@pytest.mark.parametrize("kernels", [name for name in KERNELS if takes_integers(name)])
@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["q4_k", "q5_k", "q6_k", "q8_0"]),
    n_out=st.integers(1, 150),
    blocks=st.integers(1, 11),
    n_rows=st.integers(1, 70),
    threads=st.integers(1, 3),
)
def test_one_row_and_many_have_the_same_products_in_integers(
    kernels: str, kind: str, n_out: int, blocks: int, n_rows: int, threads: int
) -> None:
    """To the last bit: so that either may be taken for any number of rows."""
    n_in = blocks * BLOCK.get(kind, 256)
    stored, _ = matrix_of(kind, n_out, n_in, seed=blocks)
    rows = rows_of(n_rows, n_in, seed=n_rows)
    rows[:, :n_in:7] *= 100  # and some that stand out
    one, _ = native.product(rows, stored, kind, n_out, kernels=kernels, each=True)
    many, _ = native.product(rows, stored, kind, n_out, kernels=kernels, each=False, threads=threads)
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("kind", ["q4_k", "q5_k", "q6_k", "q8_0"])
def test_instruction_sets_agree_in_integers(kind: str) -> None:
    """All that have fused multiply-add, to the last bit."""
    stored, _ = matrix_of(kind, 50, 1280)
    rows = rows_of(9, 1280)
    fused = KERNELS if platform.machine() in ("aarch64", "arm64", "ARM64") else KERNELS[1:]
    results = [native.product(rows, stored, kind, 50, kernels=kernels, each=True)[0] for kernels in fused]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize(("kernels", "precision"), CASES)
@pytest.mark.parametrize("each", [False, True])
def test_zeros_denormals_and_large_numbers(kernels: str, precision: str, each: bool) -> None:
    stored, matrix = matrix_of("f32", 20, 64)
    for scale in (0.0, 1e-42, 1e-30, 1e30):
        rows = rows_of(5, 64) * np.float32(scale)
        got, _ = native.product(rows, stored, "f32", 20, kernels=kernels, precision=precision, each=each)
        assert np.isfinite(got).all()
        # BF16 instructions take denormals for zeros; what they stand for is below 2^-126 of anything.
        assert np.abs(got - rows.astype(np.float64) @ matrix.T).max() <= max(1e-2 * scale * 64, 1e-36 * (scale < 1e-38))


@pytest.mark.parametrize("kind", ["q8_0", "q4_k", "q5_k", "q6_k"])
@pytest.mark.parametrize("extreme", [0, 1])
def test_integer_products_take_the_extremes(kind: str, extreme: int) -> None:
    """Every code at its largest and smallest, rows at plus and minus their scale: no sum may saturate."""
    n_in = 1024
    signs = np.where(np.random.default_rng(0).random((40, n_in)) < 0.5, -1, 1).astype(np.float32)
    signs[:2] = [[1], [-1]]
    values = np.tile(np.array([[1.0, -1.0][extreme]], np.float32), (40, n_in)) * signs
    stored = native.convert_rows(values, "f32", kind, n_in)
    matrix = native.convert_rows(stored, kind, "f32", n_in).view(np.float32).reshape(40, n_in).astype(np.float64)
    for kernels in KERNELS:
        for each in (True, False):
            got, _ = native.product(signs, stored, kind, 40, kernels=kernels, each=each)
            assert error(got, signs, matrix) <= TOLERANCE["int8"]


def test_kernels_agree_with_ggml_s() -> None:
    for kind in ("f16", "q8_0", "q4_k"):
        stored, matrix = matrix_of(kind, 64, 512)
        rows = rows_of(50, 512)
        got, _ = native.product(rows, stored, kind, 64, kernels="ggml")
        assert error(got, rows, matrix) <= TOLERANCE["int8"]


def test_generic_kernels_are_always_there_and_the_best_come_last() -> None:
    assert KERNELS[0] == "generic"
    assert len(set(KERNELS)) == len(KERNELS)


def test_what_cannot_be_computed_is_told() -> None:
    stored, _ = matrix_of("f32", 4, 8)
    rows = rows_of(2, 8)
    with pytest.raises(UsageError, match=r"no kernels 'sse9' here: give 'auto', 'ggml', 'generic'"):
        native.product(rows, stored, "f32", 4, kernels="sse9")
    with pytest.raises(UsageError, match="precision is 'f8': give 'auto', 'f32' or 'bf16'"):
        native.product(rows, stored, "f32", 4, precision="f8")
    with pytest.raises(DeviceError, match="no BF16 instructions: use precision 'auto' or 'f32'"):
        native.product(rows, stored, "f32", 4, kernels="generic", precision="bf16")
    with pytest.raises(UsageError, match="3 rows of 8 f32 have 96"):
        native.product(rows, stored, "f32", 3)
