"""Call a compiled graph without the tracer around it.

What `torch.compile` returns collects the graph's inputs from arguments and modules, calls the graph, and rebuilds from
its outputs what the traced function returns. For a minibatch of a small network this takes nearly as long as the graph.
Within an iteration all inputs but a few arguments are the same tensors, so the graph is called with the inputs of the
last traced call, in which only these arguments are replaced.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, fx

Compiled = Callable[..., Sequence[Any]]


class _Plan(NamedTuple):
    """How the next call of a graph differs from the last one."""

    graph: Compiled
    inputs: list[Any]
    places: list[tuple[int, int]]
    """Of each input that is an argument: its place among the inputs, and among the arguments."""
    same: list[tuple[int, Any]]
    """Places of arguments that are no tensors, and what they have to be."""
    results: Any
    """What the traced function returned, with places of outputs instead of tensors."""


class DirectCalls:
    """A backend of `torch.compile` whose graphs can be called past the tracer.

    The traced function must do nothing but compute: what the tracer does besides calling the graph is left out.

    Args:
        backend: Compiles the graphs.
    """

    def __init__(self, backend: Callable[[fx.GraphModule, Sequence[Any]], Compiled]) -> None:
        self._backend = backend
        self._called: tuple[Compiled, tuple[Any, ...], Sequence[Any]] | None = None
        self._plan: _Plan | None = None

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        """Compile a graph, as the tracer asks for."""
        compiled = self._backend(graph, inputs)

        def call(*values: Any) -> Sequence[Any]:
            outputs = compiled(*values)
            self._called = compiled, values, outputs
            return outputs

        return call

    def learn(self, arguments: Sequence[Any], results: Any) -> None:
        """Take down what a traced call had as inputs and outputs; it was the last one."""
        if self._called is None:
            return
        (graph, inputs, outputs), self._called, self._plan = self._called, None, None
        by_argument = {id(value): place for place, value in enumerate(arguments) if isinstance(value, Tensor)}
        places = [(place, by_argument[id(value)]) for place, value in enumerate(inputs) if id(value) in by_argument]
        same = [(place, value) for place, value in enumerate(arguments) if not isinstance(value, Tensor)]
        by_output = {id(value): place for place, value in enumerate(outputs)}
        try:
            found = _mapped(lambda value: by_output[id(value)], results)
        except KeyError:  # a result that is no output as it is
            return
        self._plan = _Plan(graph, list(inputs), places, same, found)

    def forget(self) -> None:
        """Let go of the tensors of the last call; the next one has to go through the tracer."""
        self._called = self._plan = None

    def run(self, arguments: Sequence[Any]) -> Any:
        """Return the results for arguments like those of the last traced call, None where they are not."""
        plan = self._plan
        if plan is None or any(arguments[place] is not value for place, value in plan.same):
            return None
        for place, argument in plan.places:
            plan.inputs[place] = arguments[argument]
        outputs = plan.graph(*plan.inputs)
        return _mapped(outputs.__getitem__, plan.results)


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return nested tuples with `function` applied to what is none."""
    if not isinstance(tree, tuple):
        return function(tree)
    values = [_mapped(function, value) for value in tree]
    return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
