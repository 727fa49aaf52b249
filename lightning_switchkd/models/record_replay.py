"""Record and replay: tell the vision encoder of a Hugging Face model and its projector apart.

``get_image_features`` of every model runs the vision encoder and then the projector. :func:`record` ends that call when
the output of the vision encoder is known. :func:`replay` runs it with a recorded output in place of the vision encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lightning_switchkd.core.types import Features, Vision

Hook = Callable[[nn.Module, Any, Any], Any]
"""(module, its arguments, its output) -> another output, or None to keep it"""


@dataclass(frozen=True)
class OutputForm:
    """The form of a vision encoder's output.

    Attributes:
        leaves: Its values, with None in place of tensors.
        spec: How the values are nested.
        read: The places of the tensors that the projector reads.
    """

    leaves: list[Any]
    spec: TreeSpec
    read: list[int]

    def fill(self, features: Features) -> Any:
        """Return an output with these tensors, in the order of ``read``."""
        given = dict(zip(self.read, features, strict=True))
        return tree_unflatten([given.get(place, leaf) for place, leaf in enumerate(self.leaves)], self.spec)


class _RecordedError(Exception):
    """Ends a call of ``get_image_features``."""


@contextmanager
def hooked(module: nn.Module, hook: Hook) -> Iterator[None]:
    """Call a function with each output of a module."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def record(base: Any, tower: nn.Module, form: OutputForm, vision: Vision) -> Features:
    """Run the vision encoder alone.

    Args:
        base: The base model, which has ``get_image_features``.
        tower: Its vision encoder.
        form: The form of the vision encoder's output.
        vision: The arguments of ``get_image_features``.

    Returns:
        The tensors that the projector reads.
    """
    features: Features = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        leaves = tree_flatten(output)[0]
        features.extend(leaves[place] for place in form.read)
        raise _RecordedError

    with hooked(tower, keep):
        try:
            base.get_image_features(**vision, return_dict=True)
        except _RecordedError:
            return features
    raise AssertionError("get_image_features runs the vision encoder")


def replay(base: Any, tower: nn.Module, output: Any, vision: Vision) -> list[Tensor]:
    """Run the projector alone.

    Args:
        base: The base model, which has ``get_image_features``.
        tower: Its vision encoder, which does not run.
        output: What the vision encoder returns instead (:meth:`OutputForm.fill`).
        vision: The arguments of ``get_image_features``.

    Returns:
        ``[P, H]`` of each image.
    """
    tower.forward = lambda *args, **kwargs: output
    try:
        return list(base.get_image_features(**vision, return_dict=True).pooler_output)
    finally:
        del tower.forward


def probe(base: Any, tower: nn.Module, vision: dict[str, Any]) -> tuple[OutputForm, set[str]]:
    """Find what image embeddings depend on, from the autograd graph of a small image.

    Args:
        base: The base model, which has ``get_image_features``.
        tower: Its vision encoder.
        vision: Arguments of ``get_image_features`` for the image, on any device.

    Returns:
        The form of the vision encoder's output, and the names of its parameters that no embedding depends on.
    """
    parameters = dict(tower.named_parameters())
    trained = {name: parameter.requires_grad for name, parameter in parameters.items()}
    some = next(iter(parameters.values()))
    outputs: list[tuple[list[Any], TreeSpec]] = []

    def as_views(module: nn.Module, arguments: Any, output: Any) -> Any:
        leaves, spec = tree_flatten(output)
        views = [leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        outputs.append((views, spec))
        return tree_unflatten(views, spec)

    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with torch.enable_grad(), hooked(tower, as_views):
            arguments = {name: _like(some, value) for name, value in vision.items()}
            nodes = _graph(base.get_image_features(**arguments, return_dict=True).pooler_output)
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(trained[name])
    ((views, spec),) = outputs
    read = [place for place, view in enumerate(views) if isinstance(view, Tensor) and view.grad_fn in nodes]
    reached = {id(node.variable) for node in nodes if hasattr(node, "variable")}
    form = OutputForm([None if isinstance(view, Tensor) else view for view in views], spec, read)
    return form, {name for name, parameter in parameters.items() if id(parameter) not in reached}


def _like(parameter: Tensor, value: Any) -> Any:
    """Move a tensor to the device of a parameter, and cast it to its dtype unless it holds integers."""
    if not isinstance(value, Tensor):
        return value
    return value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)


def _graph(tensors: Iterable[Tensor]) -> set[Any]:
    """Return all nodes of the autograd graph of tensors."""
    nodes: set[Any] = set()
    found = [tensor.grad_fn for tensor in tensors]
    while found:
        node = found.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            found.extend(following for following, _ in node.next_functions)
    return nodes
