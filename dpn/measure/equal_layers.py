"""Runs of equal layers, of which a dry run computes two and counts them as often as they occur."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dpn.metrics.memory import Moment, ResourceMeter
from dpn.tokens import LayerPlan

Forward = Callable[..., Any]


class EqualLayers:
    """Lets layers return their input, unchanged, where a pass would repeat what was just measured.

    Once two layers in a row had equal arguments, equal operations and an equal effect on memory,
    the next ones with these arguments are left out. The second one takes the place of the last
    layer of the run, whose output others may keep, and the first one counts for all between: its
    FLOPs and its storages count once more for each. Everything else is computed: the first layers
    of a run, layers between which a router acts, and the recomputation in the backward pass.

    The peak is exact, too. Within a run each layer saves the same again, so memory is highest in
    the last layer, both in the forward and in the backward pass; while that one is computed, all
    others are counted.

    Args:
        layers: Layers that are called in order, each with the output of the one before.
        meter: Meter that is on during the passes.

    Attributes:
        made_by: Place of each layer in `meter.made_by`.
    """

    def __init__(self, layers: Iterable[nn.Module], meter: ResourceMeter):
        self.meter, self.made_by = meter, dict[int, _Call]()
        self._latest: _Call | None = None  # the latest call that was computed
        self._index, self._end = -1, meter.moment  # layer of the latest call, and counts at its end
        self._layers = list(layers)
        self._forms = [_form(layer) for layer in self._layers]
        for index, layer in enumerate(self._layers):
            layer.forward = partial(self._call, index, layer.forward)

    def _call(self, index: int, forward: Forward, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        meter = self.meter
        if not meter.forward or meter.inside or kwargs.get("queries") is not None:
            return forward(hidden, *args, **kwargs)
        latest, gap = self._latest, meter.moment - self._end
        if latest is not None and latest.effect is None:
            latest.effect, latest.gap = meter.moment - latest.start, gap
        call = _Call(meter, [self._forms[index], *_arguments(hidden, args, kwargs)])
        connected = index == self._index + 1 and latest is not None and latest.gave(hidden)
        self._index = index
        if connected and latest.repeats(call, gap):  # type: ignore[union-attr]
            self._leave_out(index, latest.before)  # type: ignore[union-attr,arg-type]
            out: Any = hidden
        else:
            call.before = latest if connected and not latest.left_out else None  # type: ignore[union-attr]
            out = self._compute(index, call, partial(forward, hidden, *args, **kwargs), hidden)
        self._end = meter.moment
        if index == len(self._layers) - 1:
            meter.place = None
        return out

    def _compute(self, index: int, call: "_Call", run: Forward, hidden: Tensor) -> Any:
        meter = self.meter
        self._latest = self.made_by[index] = meter.place = call
        meter.high = meter.live.copy()
        if hidden.requires_grad and torch.is_grad_enabled():
            hidden.register_hook(lambda _: call.passed_back(meter))
        meter.inside = True
        try:
            out = run()
        finally:
            meter.inside = False
        if isinstance(out, Tensor):
            call.out = weakref.ref(out.untyped_storage())
        return out

    def _leave_out(self, index: int, counted: "_Call") -> None:
        """Count a call once more, for a layer that is not computed."""
        assert self._latest is not None
        assert counted.effect is not None
        self._latest.left_out += 1
        self.made_by[index], self.made_by[index - 1] = self.made_by[index - 1], counted
        self.meter.repeat(counted, counted.effect.flops)


class _Call:
    """One computed call of a layer.

    Attributes:
        start: Counts of the meter before it.
        key: Everything that the call depends on, see `_arguments`.
        before: Call of the layer before, if that was computed and nothing happened between.
        effect: Counts up to the next call.
        gap: Counts between this call and the next one.
        left_out: Number of layers after this call that were not computed.
    """

    def __init__(self, meter: ResourceMeter, key: list[Any]):
        self.start, self.key = meter.moment, key
        self.before: _Call | None = None
        self.effect: Moment | None = None
        self.gap: Moment | None = None
        self.left_out = 0
        self.out: Callable[[], Any] = lambda: None
        self._flops, self._copies, self._kept = 0, 0, Counter[str]()

    def gave(self, hidden: Tensor) -> bool:
        """Whether a tensor is the output of this call."""
        return self.out() is hidden.untyped_storage()

    def repeats(self, other: "_Call", gap: Moment) -> bool:
        """Whether this call repeated the one before, and another one would repeat it again."""
        before = self.before
        return (
            before is not None
            and _equal(before.key, self.key)
            and _equal(self.key, other.key)
            and before.effect == self.effect
            and not (gap.storages or gap.flops)  # a router works between the layers
            and _operations(before.gap) == _operations(self.gap) == gap.operations
        )

    def passed_back(self, meter: ResourceMeter) -> None:
        """Go to the layer before, in the backward pass.

        Copies of the layer before stay whole while it is computed, as the first of them is in a
        complete pass, and are released after it.
        """
        if self._copies:
            meter.flops += self._copies * (meter.flops - self._flops)
            meter.live.subtract(self._kept)
        if (before := self.before) is not None and (copies := meter.copies.pop(before, 0)):
            before._copies, before._flops = copies, meter.flops
            before._kept = Counter({k: copies * n for k, n in meter.made_by[before].items()})


def _operations(gap: Moment | None) -> int | None:
    return None if gap is None else gap.operations


def _form(layer: nn.Module) -> list[Any]:
    """Everything that a layer's work depends on, except for its place and its weights' values."""
    settings = [
        (type(module), [(k, v) for k, v in vars(module).items() if _is_plain(v)])
        for module in layer.modules()
    ]
    settings = [(kind, [x for x in values if x[0] != "layer_idx"]) for kind, values in settings]
    tensors = [*layer.named_parameters(), *layer.named_buffers()]
    return [settings, [(name, x.shape, x.dtype, x.requires_grad) for name, x in tensors]]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _arguments(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a call is given, without keeping any of it alive."""
    gradients = torch.is_grad_enabled(), hidden.requires_grad
    autocast = torch.is_autocast_enabled(hidden.device.type)
    own = (hidden.shape, hidden.stride(), hidden.dtype, gradients, autocast)
    return [own, *map(_argument, args), *((k, _argument(v)) for k, v in kwargs.items())]


def _argument(value: Any) -> Any:
    if _is_plain(value):
        return value
    if isinstance(value, LayerPlan) and value.rows is None and value.scale is None:
        return value
    if isinstance(value, tuple):
        return tuple(map(_argument, value))
    return weakref.ref(value)


def _equal(one: Any, other: Any) -> bool:
    """Whether two keys are equal; objects that are not plain must be the same object, and alive."""
    if isinstance(one, weakref.ref):
        return isinstance(other, weakref.ref) and one() is other() is not None
    if isinstance(one, list | tuple) and not isinstance(one, torch.Size):
        return type(one) is type(other) and len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and one == other
