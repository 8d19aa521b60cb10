"""Triton's interpreter patches its language anew at every call between kernels' functions: here once a kernel.

That is most of the time that the checks in the interpreter take; what a kernel computes does not change.
"""

from collections.abc import Callable
from typing import Any


def patch_once() -> None:
    """Have the interpreter patch each module of the language once a launch; nothing where it is built otherwise."""
    import triton.language as tl
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope", "GridExecutor")):
        return
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    modules: dict[Callable[..., Any], frozenset[bool]] = {}
    patched: set[frozenset[bool]] = set()

    def patch_lang(function: Callable[..., Any]) -> Any:
        if function not in modules:
            modules[function] = frozenset(value is tl for value in function.__globals__.values() if value in (tl, tl.core))
        if modules[function] in patched:
            return interpreter._LangPatchScope()
        patched.add(modules[function])
        return patch(function)

    def call(self: Any, *args: Any, **options: Any) -> Any:
        patched.clear()  # the end of a launch undoes its patches
        return launch(self, *args, **options)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_lang, call
