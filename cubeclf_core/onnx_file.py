"""Classifiers as ONNX, which runs in onnxruntime and without torch; the header goes along inside.

Needs onnx, onnxscript and onnxruntime, which are imported where they are used.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cubeclf_core.checkpoint import Header, read_header
from cubeclf_core.errors import CheckpointError, InputError
from cubeclf_core.files import replacing

SUFFIX = ".onnx"
_INPUT, _OUTPUT = "cuboids", "probabilities"
_HEADER = "cubeclf"


def is_onnx(path: Path) -> bool:
    """Whether a path is such a file, by its name."""
    return path.suffix == SUFFIX and path.is_file()


def check_onnx() -> None:
    """Raise unless what reads and writes ONNX is installed.

    Raises
    ------
    InputError
        If it is not.
    """
    if not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        raise InputError("an .onnx file needs onnxruntime: pip install 'cubeclf[onnx]'")


def save_onnx(
    path: Path, network: nn.Module, example: Tensor, dynamic: dict[int, Any], header: Header
) -> None:
    """Write a network from raw counts to probabilities, whole or not at all.

    Parameters
    ----------
    path
        An ``.onnx`` file.
    network
        In evaluation mode; its input is called cuboids and its output probabilities.
    example
        Input of at least two items.
    dynamic
        The axes of the input that may have any length, and what they are.
    header
        Goes along in the file.
    """
    check_onnx()
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=(dynamic,),
        input_names=[_INPUT],
        output_names=[_OUTPUT],
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    model.metadata_props.add(key=_HEADER, value=header.to_json())
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def quantise(source: Path, path: Path) -> None:
    """Write a model with its products of matrices in int8: weights now, tokens as they come.

    Parameters
    ----------
    source
        As `save_onnx` wrote it.
    path
        An ``.onnx`` file; it keeps the header.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # types of what is in between, which quantisation changes
    advice = logging.getLogger()
    level = advice.level
    advice.setLevel(logging.ERROR)  # it recommends what the exporter has done
    try:
        with replacing(path) as temporary:
            quantize_dynamic(
                model,
                temporary,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm"],
            )
    finally:
        advice.setLevel(level)


class OnnxNetwork:
    """A model of onnxruntime that takes raw counts as our networks do, on the CPU.

    Parameters
    ----------
    session
        Of onnxruntime.
    """

    def __init__(self, session: Any) -> None:
        self.session = session

    def __call__(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b klass"]:
        """Log-probabilities."""
        (found,) = self.session.run([_OUTPUT], {_INPUT: cuboids.cpu().numpy()})
        return torch.from_numpy(found).clamp_min(torch.finfo(torch.float32).tiny).log()


def load_onnx(path: Path) -> tuple[OnnxNetwork, Header]:
    """Load an exported model and its header.

    Raises
    ------
    CheckpointError
        If the file was not exported by cubeclf, or cannot be read.
    InputError
        If onnxruntime is not installed.
    """
    if find_spec("onnxruntime") is None:
        raise InputError(f"{path} needs onnxruntime to be read: pip install 'cubeclf[onnx]'")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as torch was told
    try:
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no base of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is no ONNX model: {reason}") from error
    text = session.get_modelmeta().custom_metadata_map.get(_HEADER)
    if not text:
        raise CheckpointError(f"{path} was not exported by cubeclf: its metadata have no {_HEADER}")
    return OnnxNetwork(session), read_header(path, text, "classifier")
