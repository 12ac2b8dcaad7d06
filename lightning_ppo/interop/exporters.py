"""The formats of exported agents; one of your own is a subclass of `Exporter`, named by its class path."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_ppo.interop.export import Deployed, Function
from lightning_ppo.support.errors import UserError
from lightning_ppo.support.packages import install


class Exporter(ABC):
    """Writes an agent to a file in one format, and reads it back, so that both can be compared.

    Attributes:
        ending: What the names of its files end in.
    """

    ending: ClassVar[str]

    @abstractmethod
    def write(self, deployed: Deployed, path: Path) -> Function:
        """Write a policy to a file and return the function that was read back from it."""


class TorchExporter(Exporter):
    """A file for `torch.export.load`."""

    ending = ".pt2"

    def write(self, deployed: Deployed, path: Path) -> Function:
        """Write the traced policy."""
        torch.export.save(traced(deployed), path)
        # for a policy with memory the guards would refuse a single row, which the graph itself handles
        module = torch.export.load(path).module(check_guards=False)

        def run(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with torch.no_grad():
                return dict(zip(deployed.outputs, module(*(tensors[name] for name in deployed.inputs)), strict=True))

        return run


class OnnxExporter(Exporter):
    """A file for ONNX Runtime."""

    ending = ".onnx"

    def write(self, deployed: Deployed, path: Path) -> Function:
        """Write the traced policy as an ONNX graph."""
        program = traced(deployed)
        for package in ("onnxruntime", "onnxscript"):
            if find_spec(package) is None:
                raise UserError(f"ONNX needs {package}: {install('export')}")
        import onnxruntime

        converted = torch.onnx.export(
            program, (), dynamo=True, verbose=False, input_names=deployed.inputs, output_names=deployed.outputs
        )
        assert converted is not None
        converted.save(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            found = session.run(None, {name: tensors[name].numpy() for name in deployed.inputs})
            return {name: torch.from_numpy(value) for name, value in zip(deployed.outputs, found, strict=True)}

        return run


def traced(deployed: Deployed) -> Any:
    """Return a policy as a program of `torch.export`, for any number of rows."""
    example = deployed.sample(3, np.random.default_rng(0))
    arguments = tuple(example[name] for name in deployed.inputs)
    shapes = ({0: torch.export.Dim("batch")},) * len(arguments)
    return torch.export.export(deployed, arguments, dynamic_shapes=(shapes,))
