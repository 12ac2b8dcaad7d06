"""Write the metrics of an iteration to TensorBoard as one event: each event wakes the thread that writes them."""

from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary


def add_scalars(writer: Any, metrics: Mapping[str, Any], step: int) -> None:
    """Write one point for each metric, as `SummaryWriter.add_scalar` does for one."""
    points = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
    writer._get_file_writer().add_summary(Summary(value=points), step)
