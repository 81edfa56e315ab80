"""Theoretical receptive field: which input pixels a unit could depend on, by the arithmetic of kernels and strides.

Source: Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019. Unit i of a
layer sees the input rows first + i * stride to last + i * stride. A convolution of kernel k, stride s, dilation d and
p rows of padding before its input makes of (stride j, first, last)

    (j * s,  first - p * j,  last + ((k - 1) * d - p) * j)

and a sum of branches sees the union. One forward pass is followed function by function (`TorchFunctionMode`), so that
what happens between modules counts too. Global operations (pooling, squeeze-and-excite, group norm, RPWConv) make the
field the whole image. What the rules do not know, such as cutting a map into windows, is reported as not followed;
`erf_probe.py` then finds the field of one unit by experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fullfield.layers import RegionAttention, RegionPWConv
from fullfield.layers.depthwise import DepthwiseConv2d
from fullfield.measure.erf_fixed_weights import has_fixed_weights
from fullfield.measure.feature_maps import feature_map, frozen

__all__ = ["ReceptiveField", "receptive_field"]


@dataclass(frozen=True)
class ReceptiveField:
    """The input pixels that the units of a layer could depend on, before the image's border cuts them off."""

    size: tuple[float, float] | None
    """(height, width) in pixels; None where it is the whole image or unknown."""
    stride: tuple[float, float] | None
    """Distance of neighbouring units' fields, pixels; None where units have no place (after flattening)."""
    centre: tuple[float, float] | None
    """Row and column, in pixel indices, of the middle of the field of unit (0, 0)."""
    limit: str = ""
    """Why there is no size: the global operation, or the one that could not be followed; "" where there is one."""
    followed: bool = True
    """False where an operation could not be followed: the field may be anything."""

    def centre_of(self, position: tuple[int, int]) -> tuple[float, float] | None:
        """Return the middle of a unit's field as (row, column) in pixel indices, None where units have no place."""
        if self.centre is None or self.stride is None:
            return None
        (y, x), (sy, sx) = self.centre, self.stride
        return y + position[0] * sy, x + position[1] * sx

    def window(self, position: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """Return (top, left, bottom, right) of a unit's field inside the image, the last two exclusive.

        None where the field has no size or units have no place.

        Args:
            position: (row, column) of the unit.
            image_size: (H, W).
        """
        middle = self.centre_of(position)
        if self.size is None or middle is None:
            return None
        (height, width), (H, W) = self.size, image_size
        top, left = round(middle[0] - (height - 1) / 2), round(middle[1] - (width - 1) / 2)
        return max(0, top), max(0, left), min(H, top + round(height)), min(W, left + round(width))

    def __str__(self) -> str:
        """Say it in a few words."""
        if self.size is not None:
            return f"{self.size[0]:.0f}×{self.size[1]:.0f} px"
        return f"global ({self.limit})" if self.followed else f"not followed past {self.limit}"


@dataclass(frozen=True)
class _Axis:
    """One spatial axis of a tensor: which input rows (or columns) its unit 0 sees, and how far apart units are."""

    dim: int
    stride: float = 1.0
    first: float = 0.0
    last: float = 0.0

    def slide(self, kernel: float, stride: float, before: float, dilation: float = 1) -> _Axis:
        reach = (kernel - 1) * dilation - before
        return replace(
            self,
            stride=self.stride * stride,
            first=self.first - before * self.stride,
            last=self.last + reach * self.stride,
        )


@dataclass(frozen=True)
class _Seen:
    """What a tensor has seen of the image. Two axes, or none once the map is pooled away or not followed."""

    axes: tuple[_Axis, ...] = ()
    whole: str = ""
    """The operation that made the field the whole image."""
    lost: str = ""
    """The operation that could not be followed."""

    def all_of_it(self, where: str) -> _Seen:
        return replace(self, whole=self.whole or where)

    def unknown(self, where: str) -> _Seen:
        return replace(self, axes=(), lost=self.lost or where)


def receptive_field(model: nn.Module, layer: str, images: Tensor) -> ReceptiveField:
    """Compute the theoretical receptive field of a layer's units.

    Args:
        model: On the device of the images; it runs once, in eval mode, and is left as it was.
        layer: A name of `list_feature_maps`.
        images: (B, C, H, W), of which the first is run. The field does not depend on it, but the model must be able to
            take its size.

    Returns:
        The field; its `size` is None where it is the whole image or could not be followed.

    Raises:
        ConfigError: There is no such layer, its output is no map, or the model can't take images of this size.
    """
    images = images[:1].detach().clone()
    _mark(images, _Seen((_Axis(2), _Axis(3))))
    where: list[str] = []
    with frozen(model), torch.no_grad(), ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(_enter(where, name)).remove)
            hooks.callback(module.register_forward_hook(_leave(where, name)).remove)
        hooks.enter_context(_Follow(where))
        output = feature_map(model, layer, images)
    seen = _seen(output) or _Seen(lost=layer)
    if len(seen.axes) != 2:
        return ReceptiveField(None, None, None, seen.whole or seen.lost or layer, followed=bool(seen.whole))
    rows, columns = seen.axes
    return ReceptiveField(
        None if seen.whole else (rows.last - rows.first + 1, columns.last - columns.first + 1),
        (rows.stride, columns.stride),
        ((rows.first + rows.last) / 2, (columns.first + columns.last) / 2),
        seen.whole,
    )


def _seen(tensor: Any) -> _Seen | None:
    return getattr(tensor, "_fullfield_seen", None)


def _mark(tensor: Tensor, seen: _Seen) -> None:
    tensor._fullfield_seen = seen  # type: ignore[attr-defined]


def _tensors_of(value: Any) -> Iterable[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_of(item)
    elif isinstance(value, dict):
        yield from _tensors_of(list(value.values()))


def _enter(where: list[str], name: str) -> Callable[..., None]:
    return lambda *_: where.append(name)


def _leave(where: list[str], name: str) -> Callable[..., None]:
    """Return a hook for modules whose inside is not followed: our operators, and autograd functions of anyone."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        where.pop()
        known = [seen for t in _tensors_of(inputs) if (seen := _seen(t)) is not None]
        if not known:
            return
        kind = f"{type(module).__name__} {name}".strip()
        for tensor in _tensors_of(output):
            if isinstance(module, RegionAttention | RegionPWConv):
                _mark(tensor, known[0] if has_fixed_weights(module) else known[0].all_of_it(kind))
            elif isinstance(module, DepthwiseConv2d):
                _mark(tensor, _slide_conv(known[0], module.kernel_size, module.stride, module.padding, module.dilation))
            elif _seen(tensor) is None:
                _mark(tensor, known[0].unknown(kind))

    return hook


class _Follow(TorchFunctionMode):
    """Carry what every tensor has seen through each function of torch."""

    def __init__(self, where: list[str]) -> None:
        super().__init__()
        self.where = where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = [seen for t in _tensors_of((args, kwargs)) if (seen := _seen(t)) is not None]
        out = func(*args, **kwargs)
        results = list(_tensors_of(out))
        if known and results:
            name = getattr(func, "__name__", str(func)).strip("_")
            here = f"{name} in {self.where[-1]}" if self.where and self.where[-1] else name
            rule = _RULES.get(name)
            seen = _merge(known, here)
            seen = rule(seen, _Call(here, args, kwargs, results)) if rule else seen.unknown(here)
            for result in results:
                _mark(result, seen)
        return out


def _merge(known: list[_Seen], here: str) -> _Seen:
    """Return the union of what several inputs have seen."""
    whole = next((seen.whole for seen in known if seen.whole), "")
    lost = next((seen.lost for seen in known if seen.lost), "")
    maps = [seen.axes for seen in known if seen.axes]
    if lost or not maps:
        return _Seen((), whole, lost)
    if any((a.dim, a.stride) != (b.dim, b.stride) for axes in maps for a, b in zip(axes, maps[0], strict=True)):
        return _Seen((), whole, here)
    axes = tuple(
        replace(axis, first=min(m[i].first for m in maps), last=max(m[i].last for m in maps))
        for i, axis in enumerate(maps[0])
    )
    return _Seen(axes, whole)


# --- the rules: (what the inputs have seen, the call) -> what the results have seen ---


@dataclass(frozen=True)
class _Call:
    """One call of a function of torch."""

    here: str
    """The function and the module, for messages."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]

    def argument(self, index: int, name: str, default: Any) -> Any:
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    @property
    def ndim(self) -> int:
        return self.results[0].ndim


_Rule = Callable[[_Seen, _Call], _Seen]


def _pair(value: Any) -> tuple[Any, Any]:
    """Return (for rows, for columns) of an argument that is one number or two."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values[0], values[-1]


def _dims(value: Any, ndim: int) -> set[int]:
    values = range(ndim) if value is None else [value] if isinstance(value, int) else value
    return {int(v) % ndim for v in values}


def _spatial(seen: _Seen) -> set[int]:
    return {axis.dim for axis in seen.axes}


def _pointwise(seen: _Seen, _call: _Call) -> _Seen:
    return seen


def _slide_conv(seen: _Seen, kernel: Any, stride: Any, padding: Any, dilation: Any) -> _Seen:
    if not seen.axes:
        return seen
    kernels, strides, dilations = _pair(kernel), _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        padding = [(k - 1) * d // 2 if padding == "same" else 0 for k, d in zip(kernels, dilations, strict=True)]
    steps = zip(seen.axes, kernels, strides, _pair(padding), dilations, strict=True)
    return replace(seen, axes=tuple(axis.slide(k, s, p, d) for axis, k, s, p, d in steps))


def _conv(seen: _Seen, call: _Call) -> _Seen:
    if [axis.dim for axis in seen.axes] != [2, 3]:
        return seen.unknown(call.here) if seen.axes else seen
    weight = call.argument(1, "weight", None)
    stride, padding = call.argument(3, "stride", 1), call.argument(4, "padding", 0)
    return _slide_conv(seen, weight.shape[2:], stride, padding, call.argument(5, "dilation", 1))


def _pool(seen: _Seen, call: _Call) -> _Seen:
    kernel = call.argument(1, "kernel_size", None)
    stride = call.argument(2, "stride", None)
    dilation = call.argument(4, "dilation", 1) if call.here.startswith("max") else 1
    return _slide_conv(seen, kernel, stride or kernel, call.argument(3, "padding", 0), dilation)


def _pad(seen: _Seen, call: _Call) -> _Seen:
    ndim = call.ndim
    amounts = call.argument(1, "pad", ())
    before = {ndim - 1 - i: amounts[2 * i] for i in range(len(amounts) // 2)}
    return replace(seen, axes=tuple(axis.slide(1, 1, before.get(axis.dim, 0)) for axis in seen.axes))


def _whole(seen: _Seen, call: _Call) -> _Seen:
    """Statistics of the whole map that keep every unit in its place (group norm)."""
    return seen.all_of_it(call.here)


def _vector(seen: _Seen, call: _Call) -> _Seen:
    """Pooling of the whole map to one vector."""
    return replace(seen.all_of_it(call.here), axes=())


def _reduce(seen: _Seen, call: _Call) -> _Seen:
    ndim = call.args[0].ndim
    start = 2 if call.here.startswith("norm") else 1
    dims = _dims(call.argument(start, "dim", None), ndim)
    if dims & _spatial(seen):
        return replace(seen.all_of_it(call.here), axes=())
    if call.ndim == ndim:
        return seen
    return replace(seen, axes=tuple(replace(a, dim=a.dim - sum(d < a.dim for d in dims)) for a in seen.axes))


def _along_dim(seen: _Seen, call: _Call) -> _Seen:
    """Functions that mix one axis (softmax, cat, chunk, ...): harmless if it is not a spatial one."""
    position = 2 if call.here.startswith(("split", "chunk")) else 1
    dim = call.argument(position, "dim", 0)
    return seen.unknown(call.here) if _dims(dim, call.ndim) & _spatial(seen) else seen


def _last_dim(seen: _Seen, call: _Call) -> _Seen:
    return seen.unknown(call.here) if call.ndim - 1 in _spatial(seen) else seen


def _layer_norm(seen: _Seen, call: _Call) -> _Seen:
    axes = len(call.argument(1, "normalized_shape", ()))
    covered = set(range(call.ndim - axes, call.ndim))
    return seen.all_of_it(call.here) if covered & _spatial(seen) else seen


def _permute(seen: _Seen, call: _Call) -> _Seen:
    order = list(call.args[1] if len(call.args) == 2 else call.args[1:]) or list(call.kwargs.get("dims", ()))
    order = [d % len(order) for d in order]
    return replace(seen, axes=tuple(replace(axis, dim=order.index(axis.dim)) for axis in seen.axes))


def _transpose(seen: _Seen, call: _Call) -> _Seen:
    first, second = (d % call.ndim for d in call.args[1:3])
    swapped = {first: second, second: first}
    return replace(seen, axes=tuple(replace(axis, dim=swapped.get(axis.dim, axis.dim)) for axis in seen.axes))


def _view(seen: _Seen, call: _Call) -> _Seen:
    """A view of the same shape, or of a map that is already pooled to a vector."""
    return seen if not seen.axes or call.results[0].shape == call.args[0].shape else seen.unknown(call.here)


def _index(seen: _Seen, call: _Call) -> _Seen:
    """Slices: a spatial axis may be shifted and strided; an axis that is dropped or an index array is not followed."""
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if not seen.axes or Ellipsis in index or not all(isinstance(part, slice) for part in index):
        return seen if not seen.axes else seen.unknown(call.here)
    axes = []
    for axis in seen.axes:
        part = cast("slice", index[axis.dim]) if axis.dim < len(index) else slice(None)
        start, _, step = part.indices(call.args[0].shape[axis.dim])
        axes.append(axis.slide(1, step, -start))
    return replace(seen, axes=tuple(axes))


_POINTWISE = """add sub mul div truediv radd rsub rmul rtruediv iadd isub imul itruediv rdiv neg pow sqrt rsqrt exp log
    abs square tanh sigmoid relu relu6 gelu silu mish elu selu celu leaky_relu prelu softplus hardswish hardsigmoid
    hardtanh hardtanh_ clamp clamp_min clamp_max threshold maximum minimum lerp addcmul batch_norm dropout dropout2d
    alpha_dropout feature_dropout contiguous clone to float double half bfloat16 type type_as detach erf positive"""
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_POINTWISE.split(), _pointwise),
    **dict.fromkeys(("conv2d",), _conv),
    **dict.fromkeys(("max_pool2d", "avg_pool2d"), _pool),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "norm", "logsumexp", "var_mean"), _reduce),
    **dict.fromkeys(("softmax", "log_softmax", "cat", "concat", "chunk", "split"), _along_dim),
    **dict.fromkeys(("group_norm", "instance_norm"), _whole),
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "expand", "unflatten"), _view),
    **dict.fromkeys(("transpose", "swapaxes"), _transpose),
    **dict.fromkeys(("linear", "rms_norm"), _last_dim),
    "layer_norm": _layer_norm,
    "pad": _pad,
    "permute": _permute,
    "getitem": _index,
    "adaptive_avg_pool2d": _vector,
    "adaptive_max_pool2d": _vector,
}
