"""One stream in a process of its own: the memory it takes, and how soon it gives its first batch.

Run by the benchmark; imports no more than a training's data would.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

from benchmarks.streams import VOXEL_SIZE_UM, make_stream, to_fill, told
from cubeclf_core.tissue import survey
from cubeclf_core.volumes import open_volume

_STATUS = Path("/proc/self/status")
_RETIRING = 16  # batches after the pool has been filled


def probe(path: Path, *, memory_bytes: int, threads: int, step: int = 0) -> dict[str, float]:
    """Start a stream in a fresh process, fill its pool, and go on until some regions retire.

    Parameters
    ----------
    path
        Of the volume.
    memory_bytes
        The stream's setting.
    threads
        That decode.
    step
        At which to start; as a resumed training does.

    Returns
    -------
    dict
        Seconds from the construction of the stream to its first batch and to the last region of
        the full pool, and bytes of memory: before the stream was made, and at most.
    """
    flags = {"memory-bytes": memory_bytes, "threads": threads, "step": step}
    told = [f"--{name}={value}" for name, value in flags.items()]
    command = [sys.executable, "-m", "benchmarks.probe", str(path.resolve()), *told]
    folder = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _probe(arguments: argparse.Namespace) -> dict[str, float]:
    volume = open_volume(arguments.path, voxel_size_um=VOXEL_SIZE_UM)
    seen = survey(volume, volume.n_channels)  # which a run records
    finest = told(volume)
    settings = {"memory_bytes": arguments.memory_bytes, "threads": arguments.threads}
    state = make_stream(finest, seen, **settings).state(arguments.step)
    before = _memory("VmRSS")

    begun = time.perf_counter()
    stream = make_stream(finest, seen, **settings, state=state)
    batches = stream.batches(arguments.step, 1 << 40)
    next(batches)
    first_batch_s = time.perf_counter() - begun
    for _ in islice(batches, to_fill(stream) - 1):
        pass
    pool_s = time.perf_counter() - begun
    for _ in islice(batches, _RETIRING):
        pass
    return {
        "first_batch_s": first_batch_s,
        "pool_s": pool_s,
        "before_bytes": before,
        "peak_bytes": _memory("VmHWM"),
    }


def _memory(what: str) -> int:
    """Bytes of memory that the process holds (VmRSS), or has held at most (VmHWM)."""
    if _STATUS.exists():
        found = re.search(rf"^{what}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        assert found
        return int(found[1]) * 1024
    # Elsewhere only the most is known. Not so on Linux, as it counts the parent's there.
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("path", type=Path)
    for flag in ("--memory-bytes", "--threads", "--step"):
        parser.add_argument(flag, type=int, required=True)
    print(json.dumps(_probe(parser.parse_args())))
