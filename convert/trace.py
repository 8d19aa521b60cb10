"""Trace a network, with torch.fx or torch.export, and say where in the source each call was made."""

import inspect
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from speedysnn import torch_utils
from speedysnn.errors import ConversionError

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_FOREIGN = (str(Path(torch.__file__).parent), "<frozen", str(Path(__file__).parent))


def require_initialised(model: nn.Module) -> None:
    """Refuse what cannot be read: TorchScript, and lazy modules that never ran, which would hold random values.

    Raises:
        ConversionError: names the module, or the parameters that hold no values yet.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(
                f"{name or 'the network'} is a TorchScript program, which cannot be read: give the Python network with "
                "its weights, load_state_dict(scripted.state_dict()), or export it with torch.export or torch.onnx"
            )
    empty = [name for name, value in model.named_parameters() if is_lazy(value)]
    if empty:
        raise ConversionError(
            f"{type(model).__name__}: {', '.join(empty[:5])} hold no values yet (lazy modules that never ran): load a "
            "checkpoint or run the network on a batch before converting it"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode and without gradients; every module's own mode comes back afterwards."""
    with torch_utils.evaluating(model), torch.no_grad():
        yield model


@dataclass(frozen=True)
class Traced:
    """A network as a list of calls.

    Attributes:
        module: the calls.
        tracer: "fx" or "export".
        batches: batch sizes it can be run with.
        model: the source network.
    """

    module: fx.GraphModule
    tracer: str
    batches: tuple[int, ...]
    model: nn.Module

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The source network's modules by path."""
        return dict(self.model.named_modules())

    def path(self, node: fx.Node) -> str:
        """The layer path of a call: the module's own, or the enclosing module's and the function's name."""
        if node.op == "call_module":
            return str(node.target)
        word = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
        found = self.scopes(node)
        scope = found[-1] if found else ""
        if self.tracer == "fx":
            return f"{scope}.{word}".lstrip(".")
        leaf = scope in self.modules and not list(self.modules[scope].children())
        return scope if scope and leaf else f"{scope}.{str(word).partition('.')[0]}".lstrip(".")

    def structured(self, outputs: Any) -> Any:
        """The outputs as the source network returns them; torch.export lists them flat."""
        info = getattr(self.module.graph._codegen, "pytree_info", None)
        if self.tracer == "fx" or info is None or info.out_spec is None:
            return outputs
        return torch.utils._pytree.tree_unflatten(list(outputs), info.out_spec)

    def scopes(self, node: fx.Node) -> list[str]:
        """Paths of the modules in which a call was met, the innermost last."""
        stack = node.meta.get("nn_module_stack") or {}
        names = stack.keys() if self.tracer == "fx" else (item[0] for item in stack.values())
        cleaned = [re.sub(r"^L\['self'\]\.?", "", str(name)) for name in names]
        return [name for name in cleaned if name in self.modules]


@dataclass(frozen=True)
class BatchInt:
    """A whole number that follows the batch size; only reshaping may use it."""

    value: int


@dataclass(frozen=True)
class BatchTensor:
    """A tensor made for the batch size that reads nothing of the input: one row an image, for the traced batch."""

    value: Tensor


class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[type, ...], functions: tuple[Any, ...]) -> None:
        super().__init__(autowrap_functions=functions)
        self.record_stack_traces = True
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self.leaves or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, leaves: tuple[type, ...] = (), functions: tuple[Any, ...] = ()) -> Traced:
    """Symbolic trace of a model in evaluation mode; `leaves` and `functions` are not looked into.

    Raises:
        ConversionError: its control flow or shapes depend on the data; names the file and line.
    """
    tracer = _Tracer(leaves, functions)
    try:
        graph = tracer.trace(model)
    except Exception as err:  # the user's forward runs on proxies and may raise anything
        where = _user_frame(err)
        raise ConversionError(f"{type(model).__name__} cannot be traced{where}: {first_line(err)}") from None
    return Traced(fx.GraphModule(model, graph), "fx", (2, 3), model)


def export(model: nn.Module, example: Sequence[Tensor], *, functional: bool = False) -> Traced:
    """The model's ATen operators by torch.export, batch size left open where it can be.

    `functional` replaces what changes a tensor in place, also through a view of it, by what gives a new one.

    Raises:
        ConversionError: torch.export gives up; names the file and line where it says so.
    """
    inputs = tuple(x[torch.arange(2) % x.shape[0]] for x in example)
    dynamic = _open_dims(model, len(inputs))
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one fused operator that says nothing of its parts
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, inputs, dynamic_shapes=dynamic, strict=False)
            module = _module(program.run_decompositions({}) if functional else program)
    except Exception as err:  # of the user's forward and of every part of the compiler
        raise ConversionError(f"torch.export gives up{_user_frame(err)}: {first_line(err)}") from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert isinstance(module, fx.GraphModule)
    return Traced(module, "export", open_batches(module, example), model)


def _module(program: torch.export.ExportedProgram) -> nn.Module:
    """The program as a module that takes any batch; since torch 2.9 it would check the traced one's guards."""
    guarded = "check_guards" in inspect.signature(program.module).parameters
    return program.module(check_guards=False) if guarded else program.module()


def _open_dims(model: nn.Module, inputs: int) -> dict[str, Any]:
    """Dimension 0 of every input left open, by the names of the forward method's parameters."""
    sizes: list[Any] = [{0: torch.export.Dim.AUTO} for _ in range(inputs)]
    out: dict[str, Any] = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            if sizes:
                out[name], sizes = tuple(sizes), []
        elif sizes and parameter.kind is not parameter.VAR_KEYWORD:
            out[name] = sizes.pop(0)
    return out


def open_batches(module: nn.Module, example: Sequence[Tensor]) -> tuple[int, ...]:
    """Batch sizes that an exported program can be run with: two and three, or the two it was exported with."""
    try:
        module(*(x[torch.arange(3) % x.shape[0]] for x in example))
    except (RuntimeError, AssertionError, ValueError):  # a size or guard that was fixed for the exported batch
        return (2,)
    return (2, 3)


def first_line(err: BaseException) -> str:
    """The first line of an error's message, without a full stop."""
    return str(err).strip().splitlines()[0].rstrip(".") if str(err).strip() else repr(err)


def _user_frame(err: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(err.__traceback__) if not f.filename.startswith(_FOREIGN)]
    return f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def source_of(node: fx.Node) -> str:
    """file:line where the source network makes the call, "" if unknown."""
    frames = _FRAME.findall(node.stack_trace or "")
    mine = [f for f in frames if not f[0].startswith(_FOREIGN)]
    return f"{Path(mine[-1][0]).name}:{mine[-1][1]}" if mine else ""
