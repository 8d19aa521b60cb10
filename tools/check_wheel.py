"""Fail unless a wheel holds every package, one top-level name, the data files, and nothing else."""

import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def problems(wheel: str) -> list[str]:
    """What is wrong with the wheel, one sentence each."""
    names = zipfile.ZipFile(wheel).namelist()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    out = [f"package {package} is missing" for package in settings["packages"]
           if f"{package.replace('.', '/')}/__init__.py" not in names]  # fmt: skip
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if tops != {"speedysnn"}:
        out.append(f"expected the one top-level name speedysnn, got {sorted(tops)}")
    wanted = ("speedysnn/py.typed", "speedysnn/assets/digits.npz", "speedysnn/assets/digits_avg.safetensors",
              "speedysnn/analysis/report/templates/report.html")  # fmt: skip
    out += [f"{name} is missing" for name in wanted if name not in names]
    return out


if __name__ == "__main__":
    found = problems(sys.argv[1])
    sys.stdout.write("\n".join(found) + "\n" if found else "wheel: complete\n")
    sys.exit(1 if found else 0)
