"""Estimates how long the inner loops of our products take on ARM processors, beside ggml's, with llvm-mca.

    tools/emulate_kernels.sh FOLDER && python benchmarks/arm_cycles.py FOLDER [--mca llvm-mca-19]

FOLDER is what tools/emulate_kernels.sh built. ggml's loops are compiled here for the same instructions. llvm-mca
assumes that all data are in the first cache and that no branch is mispredicted, so this compares instructions, not
memory. Prints a Markdown table: cycles for 1000 products of two numbers. Debian: llvm-19, g++-aarch64-linux-gnu.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CROSS = "aarch64-linux-gnu-"
PROCESSORS = ("cortex-a72", "neoverse-n1", "apple-m1", "neoverse-v2")
DOT_PRODUCTS = "armv8.2-a+dotprod+fp16"
I8MM = DOT_PRODUCTS + "+i8mm"
FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)+)", re.MULTILINE)
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(.+?)\s*(?://.*)?$")


@dataclass(frozen=True)
class Product:
    """One line of the table: whose loops are compared, and what they multiply with."""

    name: str
    ours: tuple[str, str]
    """A kernel set, and the function's name without its arguments."""
    ggml: tuple[str, str]
    """A source of ggml's, and a part of the function's name."""
    instruction: str
    """Of the products, as a regular expression."""
    march: str
    """What ggml's source is compiled for."""
    also: str = ""
    """An instruction that both loops have, too."""


# ggml_type: 8 is Q8_0, 12 Q4_K, 14 Q6_K. Codes (int8_gemm.h): 0 small, 1 halves, 2 bytes.
SDOT, SMULL, FMLA = r"sdot", r"sm(?:ul|la)l2?(?=\s+v\d+\.8h)", r"fmla"
QUANTS = "arch/arm/quants.c"
Q4_K, Q6_K, Q8_0 = ((QUANTS, f"ggml_vec_dot_{name}") for name in ("q4_K_q8_K", "q6_K_q8_K", "q8_0_q8_0"))
F16 = ("vec.cpp", "ggml_vec_dot_f16")
SGEMM_Q8_0 = ("llamafile/sgemm.cpp", "tinyBLAS_Q0_ARM<block_q8_0>")
SGEMM_F32 = ("llamafile/sgemm.cpp", "tinyBLAS<4, __Float32x4_t, __Float32x4_t, float, float")
SGEMM_F16 = ("llamafile/sgemm.cpp", "tinyBLAS<8, __Float16x8_t")
GEMV = "int8_gemv_rows<(ggml_type){}, 1>"
TILE = "int8_tile_column<(pcr::(anonymous namespace)::Codes){}, 1>"
PRODUCTS = (
    Product("Q4_K, one row", ("dotprod", GEMV.format(12)), Q4_K, SDOT, DOT_PRODUCTS),
    Product("Q6_K, one row", ("dotprod", GEMV.format(14)), Q6_K, SDOT, DOT_PRODUCTS),
    Product("Q8_0, one row", ("dotprod", GEMV.format(8)), Q8_0, SDOT, DOT_PRODUCTS),
    Product("Q4_K, one row, no dot products", ("generic", GEMV.format(12)), Q4_K, SMULL, "armv8-a"),
    Product("Q8_0, one row, no dot products", ("generic", GEMV.format(8)), Q8_0, SMULL, "armv8-a"),
    Product("F16, one row", ("dotprod", "add_products<(ggml_type)1, 1, 1>"), F16, FMLA, "armv8.2-a+dotprod", "fcvtl"),
    Product("Q4_K, many rows", ("dotprod", TILE.format(0)), Q4_K, SDOT, DOT_PRODUCTS),
    Product("Q6_K, many rows", ("dotprod", TILE.format(1)), Q6_K, SDOT, DOT_PRODUCTS),
    Product("Q8_0, many rows", ("dotprod", TILE.format(2)), SGEMM_Q8_0, SDOT, DOT_PRODUCTS),
    Product("Q4_K, many rows, ggml with I8MM", ("dotprod", TILE.format(0)), Q4_K, SDOT, I8MM),
    Product("Q6_K, many rows, ggml with I8MM", ("dotprod", TILE.format(1)), Q6_K, SDOT, I8MM),
    Product("Q8_0, many rows, ggml with I8MM", ("dotprod", TILE.format(2)), Q8_0, SDOT, I8MM),
    Product("F32, many rows", ("dotprod", "gemm_vectors<false>"), SGEMM_F32, FMLA, DOT_PRODUCTS),
    Product("F16 in BF16, many rows", ("bf16", "gemm_vectors<true>"), SGEMM_F16, r"(?:bfdot|fmla)", DOT_PRODUCTS),
)  # fmt: skip


def runs(product: Product, processor: str) -> bool:
    """Whether a processor has the instructions of both loops."""
    if product.ours[0] == "bf16" or product.march == I8MM:
        return processor == "neoverse-v2"
    return processor != "cortex-a72" or product.instruction in (SMULL, FMLA)


def products_of(instruction: str) -> int:
    """Products of two numbers that an instruction computes."""
    name, operands = instruction.split(maxsplit=1)
    if name == "sdot":
        return 16
    if name == "smmla":
        return 32
    return 8 if name == "bfdot" or ".8h" in operands.split(",")[0] else 4


def loops(code: str) -> list[list[str]]:
    """Instructions of the innermost loops."""
    lines = [(int(match[1], 16), match[2]) for match in map(INSTRUCTION.match, code.splitlines()) if match]
    at = {address: i for i, (address, _) in enumerate(lines)}
    found = []
    for i, (address, text) in enumerate(lines):
        target = re.match(r"(?:b\.\w+|b|cbnz|cbz|tbn?z)\s+(?:.*,\s*)?([0-9a-f]+) <", text)
        if target and int(target[1], 16) < address and int(target[1], 16) in at:
            found.append((at[int(target[1], 16)], i))
    inner = [(a, b) for a, b in found if not any((c, d) != (a, b) and a <= c and d <= b for c, d in found)]
    return [[text for _, text in lines[a:b]] for a, b in inner]


def hot_loop(obj: Path, name: str, instruction: str, also: str = "") -> list[str]:
    """The innermost loop with the largest share of products, among the functions with this name."""
    text = subprocess.run(
        [CROSS + "objdump", "-dC", "--no-show-raw-insn", str(obj)], check=True, capture_output=True, text=True
    ).stdout
    pattern = re.compile(instruction + r"\s")
    all_loops = [loop for title, code in FUNCTION.findall(text) if name in title for loop in loops(code)]
    counts = [sum(map(bool, map(pattern.match, loop))) for loop in all_loops]
    with_f16 = [not also or any(line.startswith(also) for line in loop) for loop in all_loops]
    shares = [n / len(loop) if n >= 4 and f16 else 0 for n, f16, loop in zip(counts, with_f16, all_loops, strict=True)]
    return all_loops[shares.index(max(shares))]


def cycles(loop: list[str], processor: str, mca: str) -> float:
    """Cycles for one turn."""
    code = "\n".join(re.sub(r"\s*<.*", "", line) for line in loop if not re.match(r"b[.\s]|bl\s|c?bn?z|tbn?z", line))
    features = "-mattr=+dotprod,+bf16,+i8mm,+fullfp16"
    command = [mca, "-mtriple=aarch64", f"-mcpu={processor}", features, "-iterations=200"]
    report = subprocess.run(command, input=code, check=True, capture_output=True, text=True).stdout
    total = re.search(r"Total Cycles:\s+(\d+)", report)
    assert total, report
    return int(total[1]) / 200


def compile_ggml(source: Path, name: str, march: str, folder: Path) -> Path:
    """One of ggml's sources as an object."""
    out = folder / f"{Path(name).stem}-{march}.o"
    if not out.exists():
        compiler = CROSS + ("gcc" if name.endswith(".c") else "g++")
        cpu = source / "src" / "ggml-cpu"
        includes = [f"-I{path}" for path in (source / "include", source / "src", cpu)]
        flags = ["-O3", "-fPIC", "-w", f"-march={march}", "-DGGML_USE_LLAMAFILE", "-DGGML_USE_CPU_REPACK"]
        subprocess.run([compiler, *flags, *includes, "-c", str(cpu / name), "-o", str(out)], check=True)
    return out


def main() -> None:
    """Reads the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mca", default="llvm-mca-19")
    args = parser.parse_args()
    build = args.folder / "aarch64" / "build"
    cache = (build / "CMakeCache.txt").read_text()
    found = re.search(r"^ggml_SOURCE_DIR:\w+=(.*)$", cache, re.MULTILINE)
    if not found:
        parser.error(f"{build} is not a build of tools/emulate_kernels.sh")

    print("| product | " + " | ".join(PROCESSORS) + " |\n|---|" + "---|" * len(PROCESSORS))
    with tempfile.TemporaryDirectory() as folder:
        for product in PRODUCTS:
            kernels, name = product.ours
            ours = build / "CMakeFiles" / f"pycrispasr_kernels_{kernels}.dir" / "csrc" / "kernels" / "table.cpp.o"
            theirs = compile_ggml(Path(found[1]), product.ggml[0], product.march, Path(folder))
            cells, sides = [], []
            faster = "smmla" if product.march == I8MM else product.instruction
            for obj, function, wanted in ((ours, name, product.instruction), (theirs, product.ggml[1], faster)):
                loop = hot_loop(obj, function, wanted, product.also)
                pattern = re.compile(wanted + r"\s")
                sides.append((loop, sum(products_of(line) for line in loop if pattern.match(line))))
            for processor in PROCESSORS:
                if not runs(product, processor):
                    cells.append("–")
                    continue
                mine, other = (1000 * cycles(loop, processor, args.mca) / n for loop, n in sides)
                cells.append(f"{mine:.0f} / {other:.0f}")
            print(f"| {product.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
