"""Compile a kernel for Hopper without a GPU, and read from its binary what it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fullfield.ops.kernels import pixel, rows, tile
from fullfield.ops.kernels.plan import Plan, plan

KERNELS = {"tile": tile, "rows": rows, "pixel": pixel}
TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
FLOAT32_POINTERS = ("scale_ptr", "ds_ptr", "log_sum_ptr", "kept_ptr")


@dataclass(frozen=True)
class Compiled:
    """What one kernel needs of a multiprocessor. Registers that were spilled lie on its stack, the only thing there."""

    plan: Plan
    registers: int
    stack_bytes: int
    shared_bytes: int
    tensor_cores: bool


def reader() -> str | None:
    """Return the path of cuobjdump: the one that Triton ships, or the machine's."""
    shipped = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(shipped) if shipped.exists() else shutil.which("cuobjdump")


def compile_for_hopper(
    head_width: int, pixels: int, dtype: str, direction: str, channels_last: bool, ones: bool = False
) -> Compiled:
    """Compile the kernel that `plan` chooses, as the launcher would on an H100.

    Triton makes a constant of every integer that is 1; with `ones` all counts that can be are.
    """
    chosen = plan(head_width, pixels)
    constants: dict[str, object] = {"EPS": 1e-6}
    if chosen.kernel == "tile":
        constants |= {"BLOCK_CHANNELS": chosen.block_rows, "WHOLE": pixels <= chosen.block_pixels}
    else:
        constants |= {"BLOCK_ROWS": chosen.block_rows, "BLOCK_COLUMNS": chosen.block_columns}
    if chosen.kernel != "pixel":
        precision = "tf32x3" if dtype == "float32" else "tf32"
        constants |= {"COSINE": True, "BLOCK_PIXELS": chosen.block_pixels, "PRECISION": precision}
    if ones:
        constants |= dict.fromkeys(("images", "heads", "rows", "columns", "across", "blocks"), 1)
    constants["stride_c" if channels_last else "stride_w"] = 1  # the launcher specialises strides of one
    kernel = getattr(KERNELS[chosen.kernel], f"{chosen.kernel}_{direction}")
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*fp32" if name in FLOAT32_POINTERS else f"*{TYPES[dtype]}"
            attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            # channels_last: every stride is a multiple of C, and the launcher sees that it is one of 16
            if head_width % 16 == 0 and (name == "head_width" or (channels_last and name.startswith("stride"))):
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    result = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": getattr(chosen, f"{direction}_warps")}
    )
    ptx = result.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(result.asm["cubin"])
        words = [str(reader()), "--dump-resource-usage", str(file)]
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found is not None, told
    tensor_cores = "wgmma.mma_async" in ptx or "mma.sync" in ptx
    return Compiled(chosen, int(found[1]), int(found[2]), result.metadata.shared, tensor_cores)
