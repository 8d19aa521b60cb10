"""The module path that an exporter wrote into an ONNX node's name."""

from __future__ import annotations

import ast
import re
from typing import Any

_SCOPES = "pkg.torch.onnx.name_scopes"


def scoped(node: Any) -> str:
    """The module path in a node's name, from either of PyTorch's exporters; else the name itself."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                scopes = [str(scope) for scope in ast.literal_eval(entry.value)]
            except (ValueError, SyntaxError):
                break
            return _clean(scopes[-2]) if len(scopes) > 1 else ""
    *parts, last = [part for part in node.name.split("/") if part] or [""]
    joined: list[str] = []
    for part in parts:
        if joined and part.startswith(f"{joined[-1]}."):  # "layer1", "layer1.0": the second says the first again
            joined.pop()
        joined.append(part)
    return _clean(".".join(joined) if "/" in node.name else last)


def _clean(name: str) -> str:
    parts = [re.sub(r"[^\w-]", "_", part, flags=re.ASCII) for part in name.split(".")]
    return ".".join(part for part in parts if part)
