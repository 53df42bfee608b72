"""What this machine can do, measured in a few seconds, and the profile that says it.

Memory bandwidth bounds the speed of decoding, which reads every weight once a token; the speed of
8-bit products bounds reading a prompt. Both are the best of several passes, as STREAM counts: the
machine's ability, not its mood.
"""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.device import Device, Sourced
from edgetune.host import available_memory_bytes

# Arrays at least this large, and twice the last cache, up to a size that is filled in a second.
_LEAST_BYTES, _MOST_BYTES = 256_000_000, 1_000_000_000
_TIMES_CACHE = 2
_READ_S = 2.0
_PRODUCT = (128, 2048, 2048)
_BLOCK = 32
_PRODUCT_S = 2.0


@dataclass(frozen=True)
class Speeds:
    """Measured figures; null with a reason where one could not be taken."""

    bandwidth: Sourced | None
    int8: Sourced | None
    reasons: dict[str, str]


def measure_speeds(threads: int) -> Speeds:
    """Memory read bandwidth in GB/s and 8-bit products in GOPS. Takes a few seconds."""
    reasons: dict[str, str] = {}
    bandwidth = int8 = None
    try:
        bandwidth = measure_bandwidth(threads)
    except MemoryError:
        reasons["memory_bandwidth_gb_s"] = "too little memory is available"
    try:
        int8 = measure_int8(threads)
    except ImportError as why:
        reasons["int8_gops"] = f"{why.name} is not installed here"
    except RuntimeError as why:
        reasons["int8_gops"] = f"onnxruntime does not run the product: {str(why).splitlines()[0]}"
    return Speeds(bandwidth, int8, reasons)


def measure_bandwidth(threads: int) -> Sourced:
    """GB/s (10**9 bytes) that `threads` threads read together. Raises MemoryError when arrays well
    beyond the last cache do not fit."""
    import numpy as np

    cache = _last_cache_bytes()
    whole = min(max(_LEAST_BYTES, _TIMES_CACHE * cache), _MOST_BYTES)
    if whole > available_memory_bytes() // 2:
        raise MemoryError
    # A dot product of an array with itself reads each line once and is vectorized everywhere.
    arrays = [np.full(whole // threads // 4, 0.5, dtype=np.float32) for _ in range(threads)]
    times: list[float] = []
    until = time.perf_counter() + _READ_S
    while len(times) < 3 or time.perf_counter() < until:
        times.append(_together([functools.partial(np.dot, a, a) for a in arrays]))
    read = sum(array.nbytes for array in arrays)
    how = f"edgetune devices probe: {threads} threads read {read / 1e6:.0f} MB (numpy dot products"
    how += f", last cache {cache / 1e6:.0f} MB), best of {len(times)}"
    return Sourced(value=round(read / min(times) / 1e9, 1), source=how, status="measured")


def measure_int8(threads: int) -> Sourced:
    """GOPS of onnxruntime's product with 8-bit weights in blocks of 32, the one that packages use.

    Raises ImportError without onnx, RuntimeError where onnxruntime has no such kernel.
    """
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        _product_model(), options, providers=["CPUExecutionProvider"]
    )
    rows, inner, columns = _PRODUCT
    given = {"x": np.random.default_rng(0).standard_normal((rows, inner)).astype(np.float32)}
    session.run(None, given)
    best, until = float("inf"), time.perf_counter() + _PRODUCT_S
    while time.perf_counter() < until:
        started = time.perf_counter()
        session.run(None, given)
        best = min(best, time.perf_counter() - started)
    gops = 2 * rows * inner * columns / best / 1e9
    how = f"edgetune devices probe: onnxruntime {onnxruntime.__version__}, MatMulNBits, 8 bits in "
    how += f"blocks of {_BLOCK}, {rows} x {inner} by {inner} x {columns}, {threads} threads, best"
    return Sourced(value=round(gops, 1), source=how, status="measured")


def with_speeds(device: Device, speeds: Speeds | None) -> Device:
    """The profile with what was measured."""
    if speeds is None:
        return device
    update = {"memory_bandwidth_gb_s": speeds.bandwidth, "int8_gops": speeds.int8}
    return device.model_copy(update=update)


def probed_yaml(device: Device, name: str, speeds: Speeds | None = None) -> str:
    """A profile of this machine as YAML text, fit for `-d FILE` and for `devices/`.

    `speeds`: null where they were not asked for.
    """
    cpu, memory = device.cpu, device.memory_gb
    flags = ", ".join(cpu.instruction_sets)
    lines = [
        "# Written by `edgetune devices probe`. Add what a datasheet tells; every number has a",
        "# source and a status (datasheet, vendor-benchmark, derived, measured, unverified).",
        f"name: {name}",
        f"description: {_quoted(device.description)}",
        f"arch: {device.arch}",
        f"os: {device.os}",
        "cpu:",
        f"  model: {_quoted(cpu.model)}",
        f"  cores: {_sourced(cpu.cores, 'g')}",
        f"  instruction_sets: [{flags}]",
        f"memory_gb: {_sourced(memory, '.2f')}",
    ]
    for key, number in (
        ("memory_bandwidth_gb_s", speeds.bandwidth if speeds else None),
        ("int8_gops", speeds.int8 if speeds else None),
    ):
        if number is not None:
            lines.append(f"{key}: {_sourced(number, 'g')}")
        elif speeds is not None:
            lines.append(f"# {key}: not measured: {speeds.reasons[key]}")
    lines += ["providers:", "  - name: CPUExecutionProvider", "session:"]
    lines.append(f"  intra_op_num_threads: {device.session.intra_op_num_threads}")
    return "\n".join(lines) + "\n"


def _together(jobs: list[Any]) -> float:
    """Seconds from a common start until the last of the jobs, each in a thread, is done."""
    start = threading.Barrier(len(jobs) + 1)

    def run(job: Any) -> None:
        start.wait()
        job()

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    start.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def _last_cache_bytes() -> int:
    """Bytes of the largest cache that Linux tells of; 0 where it does not."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = file.read_text(encoding="ascii").strip()
            sizes.append(int(text.rstrip("KM")) * (1 << 20 if text.endswith("M") else 1 << 10))
        except (OSError, ValueError):
            continue
    return max(sizes)


def _product_model() -> bytes:
    """An ONNX model with one MatMulNBits node over random weights."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = _PRODUCT
    random = np.random.default_rng(0)
    weights = random.integers(0, 256, (columns, inner // _BLOCK, _BLOCK), dtype=np.uint8)
    scales = np.full((columns, inner // _BLOCK), 0.01, dtype=np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
        K=inner, N=columns, bits=8, block_size=_BLOCK, accuracy_level=4,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(scales, "s")],
    )
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    return bytes(model.SerializeToString())


def _sourced(number: Sourced, form: str) -> str:
    source = _quoted(number.source)
    return f"{{value: {number.value:{form}}, source: {source}, status: {number.status}}}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
