"""The settings of the study, its table, and what is chosen by it; both `study.py` and `present.py` use them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

RULES = ("mse", "gaussian", "laplace", "half-normal", "percentile:99", "percentile:99.9", "max")
CORRECTIONS = ("bias", "potential", "bias+potential")
KEY = ["network", "part", "rule", "granularity", "correct", "keep", "timesteps", "delay"]
CALIBRATION = 512


@dataclass(frozen=True)
class Setting:
    """How a network is converted and run; `keep` names the layers kept analog, "+" between, "-" for none."""

    timesteps: int
    delay: int
    rule: str = "mse"
    granularity: str = "channel"
    correct: str = "none"
    keep: str = "-"


@dataclass(frozen=True)
class Plan:
    """Which settings a network is measured at on the validation part, each at delays 0 and 1."""

    rules: dict[str, tuple[tuple[str, ...], tuple[int, ...]]]  # granularity -> (rules, T)
    steps: tuple[int, ...]  # for the first rule of each granularity and "max", beyond those of `rules`
    corrected: tuple[int, ...]
    keep: tuple[str, ...]
    kept: tuple[int, ...]
    correction_images: int
    validation: int
    correct_rules: tuple[str, ...] = ("mse",)
    longest_test: int = 32  # T; longer ones are run on the validation part only

    def settings(self) -> dict[str, list[Setting]]:
        """The settings by the question they answer: "rules", "corrections", "keep"."""
        both, first = (0, 1), next(iter(self.rules))
        rules = [Setting(t, d, rule, part) for part, (names, steps) in self.rules.items()
                 for t in steps for d in both for rule in names]  # fmt: skip
        rules += [Setting(t, d, rule, first) for t in self.steps for d in both for rule in ("mse", "max")]
        corrections = [Setting(t, d, rule, first, kind) for t in self.corrected for d in both
                       for rule in self.correct_rules for kind in CORRECTIONS]  # fmt: skip
        keep = [Setting(t, d, keep=name) for name in self.keep for t in self.kept for d in both]
        return {"rules": rules, "corrections": corrections, "keep": keep}


ALL, FEW = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8)
KEEP_DIGITS = ("relu1", "relu1+conv2", "relu5+fc2")
KEEP_RESNET = ("relu", "relu+layer1.0.conv1", "relu+layer1", "layer3.2+linear")
PLANS = {
    "digits-avg": Plan({"channel": (RULES, ALL), "layer": (RULES, ALL)}, (), ALL, KEEP_DIGITS, (1, 2, 4), 256, 256,
                       ("mse", "max")),
    "digits-max": Plan({"channel": (RULES, FEW), "layer": (RULES, FEW)}, (), FEW, KEEP_DIGITS, (1, 2, 4), 256, 256,
                       ("mse", "max")),
    "digits-qcfs": Plan({"layer": (("clip", "mse", "half-normal", "percentile:99.9", "max"), ALL)}, (), ALL, (), (), 256,
                        256, ("clip",)),
    "resnet20": Plan({"channel": (RULES, (4, 2, 8, 16)), "layer": (("mse", "percentile:99.9", "max"), (2, 4))}, (32,),
                     (2, 4, 8), KEEP_RESNET, (2, 4), 64, 192, longest_test=8),
}  # fmt: skip


class Table:
    """The csv file, one row a measurement; what it holds is not measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records") if path.is_file() else []
        self.done = {tuple(row[name] for name in KEY) for row in self.rows}

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row; the file is replaced as a whole."""
        self.rows.append(row)
        self.done.add(tuple(row[name] for name in KEY))
        part = self.path.with_suffix(".part")
        pd.DataFrame(self.rows).round(6).to_csv(part, index=False)
        part.replace(self.path)


def best(table: Table, name: str, settings: Sequence[Setting]) -> Setting:
    """The setting with the highest agreement with the source on the validation part, at a tie the smallest error."""
    rows = {tuple(row[key] for key in KEY[2:]): row for row in table.rows
            if row["network"] == name and row["part"] == "validation"}  # fmt: skip

    def order(setting: Setting) -> tuple[float, float]:
        row = rows[tuple(asdict(setting)[key] for key in KEY[2:])]
        return -row["agreement"], row["logit_error"]

    return min(settings, key=order)


def tested(table: Table, name: str) -> list[Setting]:
    """Settings to report on test images: the first rule at each T and delay, "max" at T = 4, and those chosen."""
    plan = PLANS[name].settings()
    out: list[Setting] = []
    first, granularity = plan["rules"][0].rule, plan["rules"][0].granularity
    pairs = sorted({(s.timesteps, s.delay) for s in plan["rules"] if s.timesteps <= PLANS[name].longest_test})
    for t, d in pairs:
        here = {kind: [s for s in some if (s.timesteps, s.delay) == (t, d)] for kind, some in plan.items()}
        plain = Setting(t, d, first, granularity)
        out += [plain, best(table, name, here["rules"])]
        out += [best(table, name, here["corrections"])] if here["corrections"] else []
        out += [best(table, name, here["keep"])] if here["keep"] else []
        out += [Setting(t, d, "max", granularity)] if t == 4 else []
    return list(dict.fromkeys(out))
