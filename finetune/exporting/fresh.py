"""An exported file as a stranger uses it: in another process, by the lines that its card shows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.errors import RunFailed

_AT_A_TIME = 32


@dataclass(frozen=True)
class Use:
    """How to get probabilities of `cuboids`, shape (n, c, z, y, x), out of a file.

    Attributes
    ----------
    load
        Lines of Python; PATH stands for the file.
    predict
        What follows for every batch.
    """

    load: str
    predict: str

    def example(self, name: str) -> str:
        """Write the lines for a file of some name."""
        return f"{self.load.replace('PATH', repr(name))}\n{self.predict}"


USES = {
    "keras": Use(
        """\
import os
os.environ["KERAS_BACKEND"] = "torch"
import keras
model = keras.models.load_model(PATH)
model.trainable = False""",
        "probabilities = model(cuboids.transpose(0, 3, 4, 2, 1)).cpu().numpy()",
    ),
    "onnx": Use(
        """\
import onnxruntime
session = onnxruntime.InferenceSession(PATH)""",
        'probabilities = session.run(["probabilities"], {"cuboids": cuboids})[0]',
    ),
    "torch": Use(
        """\
import torch
network = torch.export.load(PATH).module()""",
        """\
with torch.inference_mode():
    probabilities = network(torch.from_numpy(cuboids)).softmax(1).numpy()""",
    ),
    "bundle": Use(
        """\
from cubeclf_core import load_classifier
classifier = load_classifier(PATH, exact=True)""",
        "probabilities = classifier.predict(cuboids)",
    ),
}
_AROUND = """\
import sys
import numpy as np
{load}
stored, found = np.load(sys.argv[1], mmap_mode="r"), []
for part in np.split(stored, range(1, len(stored), {step})):  # of one, and of several
    cuboids = np.ascontiguousarray(part)
{predict}
    found.append(probabilities)
np.save(sys.argv[2], np.concatenate(found))
"""


def predict_afresh(
    kind: str, path: Path, cuboids: Float[Tensor, "n c z y x"]
) -> npt.NDArray[np.float64]:
    """Get probabilities out of a file as its card says, in a process of its own.

    Parameters
    ----------
    kind
        One of `USES`.
    path
        The file.
    cuboids
        Raw counts.

    Returns
    -------
    numpy.ndarray
        Shape (n, class).

    Raises
    ------
    RunFailed
        If the process fails.
    """
    use = USES[kind]
    load = use.load.replace("PATH", repr(str(path)))
    code = _AROUND.format(load=load, predict=indent(use.predict, "    "), step=_AT_A_TIME)
    with tempfile.TemporaryDirectory() as folder:
        counts, found = Path(folder) / "counts.npy", Path(folder) / "found.npy"
        np.save(counts, cuboids.numpy())
        words = [sys.executable, "-c", code, str(counts), str(found)]
        done = subprocess.run(
            words,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            # GPUs of NVIDIA would leave out digits, so that right files seemed wrong.
            env={**os.environ, "NVIDIA_TF32_OVERRIDE": "0"},
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise RunFailed(
                f"the exported file cannot be used in a process of its own ({why}); nothing was "
                "written"
            )
        return np.asarray(np.load(found), np.float64)
