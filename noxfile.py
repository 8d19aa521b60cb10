"""The matrix of Python and torch versions, and the checks around it: `nox -l` lists the sessions.

Each session has an environment of its own. Arguments after `--` go to pytest, as in
`nox -s "tests(python='3.12', torch='2.6.0')" -- tests/test_numerics.py -n 0`.
"""

import os
from pathlib import Path

import nox

PYTHONS = ("3.11", "3.12", "3.13")
TORCHES = ("2.6.0", "2.7.1", "2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
MATRIX = [(python, torch) for python in PYTHONS for torch in TORCHES]
nox.options.sessions = ("lint", "docs", "wheel")
nox.options.error_on_missing_interpreters = False


def install(session: nox.Session, *versions: str) -> None:
    """The project with its test tools; torchvision is the one that the chosen torch asks for."""
    session.run("python", "tools/link_rooms.py")
    session.install(*versions, "-e", ".[test]")
    session.run("python", "-m", "pip", "check")


@nox.session(venv_backend="venv")
@nox.parametrize(("python", "torch"), MATRIX)
def tests(session: nox.Session, torch: str) -> None:
    """The test suite under one Python and one torch; TORCH_INDEX names an index of CPU builds, where there is one."""
    if index := os.environ.get("TORCH_INDEX"):
        session.install(f"torch=={torch}", "torchvision", "--index-url", index)
    install(session, f"torch=={torch}", "torchvision")
    session.run("pytest", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(venv_backend="venv")
def lint(session: nox.Session) -> None:
    """Style and types."""
    install(session)
    session.run("ruff", "check", ".")
    session.run("mypy")


@nox.session(venv_backend="venv")
def docs(session: nox.Session) -> None:
    """The pages against the code."""
    install(session)
    session.run("pytest", "-n", "0", "tests/test_architecture.py", "tests/test_layout.py", *session.posargs)


@nox.session(venv_backend="venv")
def wheel(session: nox.Session) -> None:
    """The wheel: complete, and the demo runs from it outside the checkout."""
    session.install("build")
    built = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "build", "--wheel", "--outdir", str(built), ".")
    (found,) = built.glob("*.whl")
    session.run("python", "tools/check_wheel.py", str(found))
    session.install(str(found))
    session.run("python", "-m", "pip", "check")
    session.chdir(built)
    session.run("speedysnn", "--version")
    session.run("speedysnn", "demo", "-o", "demo")
