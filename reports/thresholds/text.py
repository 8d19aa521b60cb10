"""The words of README.md, with figures from the rows."""

import pandas as pd

LOW = 8  # "few steps"


def spread(rows: pd.DataFrame, name: str) -> str:
    """Mean validation agreement of each rule at few steps, best first; one threshold a channel if there are any."""
    held = rows[(rows.network == name) & (rows.part == "validation") & (rows.keep == "-") & (rows.correct == "none")]
    held = held[(held.timesteps <= LOW) & (held.granularity == held.granularity.iloc[0])]
    mean = 100 * held.groupby(["delay", "rule"]).agreement.mean()
    parts = [f"delay {delay}: " + ", ".join(f"`{rule}` {value:.1f}" for rule, value in
             mean[delay].sort_values(ascending=False).items()) for delay in (0, 1)]  # fmt: skip
    return f"  - {name}: " + "; ".join(parts) + "."


def granularity(rows: pd.DataFrame, name: str) -> str:
    """Agreement one a channel less one a layer, "mse"."""
    held = rows[(rows.network == name) & (rows.part == "validation") & (rows.keep == "-") & (rows.correct == "none")]
    cells = (
        held[(held.rule == "mse") & (held.timesteps <= LOW)].set_index(["granularity", "timesteps", "delay"]).agreement
    )
    if "channel" not in cells.index or "layer" not in cells.index:
        return ""
    gap = 100 * (cells["channel"] - cells["layer"]).dropna()
    low, high = gap.idxmin(), gap.idxmax()
    return (f"  - {name}: mean {gap.mean():+.1f} points; from {gap.min():+.1f} (T = {low[0]}, delay {low[1]}) "
            f"to {gap.max():+.1f} (T = {high[0]}, delay {high[1]}).")  # fmt: skip


def corrections(rows: pd.DataFrame, name: str) -> str:
    """Mean change, largest gain and largest loss of each correction on the validation part."""
    held = rows[(rows.network == name) & (rows.part == "validation") & (rows.keep == "-")]
    held = held[held.granularity == held.granularity.iloc[0]]
    cells = held.set_index(["correct", "rule", "timesteps", "delay"]).agreement
    out = []
    for kind in ("bias", "potential", "bias+potential"):
        gap = 100 * (cells[kind] - cells["none"]).dropna()
        mean, low, high = gap.groupby("delay").mean(), gap.idxmin(), gap.idxmax()
        out.append(f"`{kind}` {mean[0]:+.1f} at delay 0, {mean[1]:+.1f} at delay 1 (best {gap.max():+.1f} at "
                   f"`{high[0]}`, T = {high[1]}, delay {high[2]}; worst {gap.min():+.1f} at `{low[0]}`, T = {low[1]}, "
                   f"delay {low[2]})")  # fmt: skip
    return f"  - {name}: " + "; ".join(out) + "."


def kept(rows: pd.DataFrame, name: str) -> str:
    """Mean change of agreement and spikes with layers kept analog."""
    held = rows[(rows.network == name) & (rows.part == "validation") & (rows.correct == "none") & (rows.rule == "mse")]
    cells = held[held.granularity == "channel"].set_index(["keep", "timesteps", "delay"])
    out = []
    for keep in [keep for keep in dict.fromkeys(held.keep) if keep != "-"]:
        both = cells.loc[keep].join(cells.loc["-"], rsuffix="_plain")
        gap = 100 * (both.agreement - both.agreement_plain).groupby("delay").mean()
        spikes = 100 * (both.spikes_per_inference / both.spikes_per_inference_plain).mean() - 100
        out.append(f"`{keep}` {gap[0]:+.1f} at delay 0, {gap[1]:+.1f} at delay 1, spikes {spikes:+.0f} %")
    return f"  - {name}: " + "; ".join(out) + "." if out else ""


def outcome(picks: pd.DataFrame, name: str) -> str:
    """Test accuracy gained by each choice over the plain setting, mean over T by delay."""
    here = picks[picks.network == name].set_index(["choice", "timesteps", "delay"]).accuracy
    out = []
    for label in ("rule chosen", "correction chosen", "layers kept analog, chosen"):
        if label in here.index:
            gap = 100 * (here[label] - here["plain"]).dropna()
            mean = gap.groupby("delay").mean()
            out.append(
                f"{label} {mean[0]:+.1f} at delay 0, {mean[1]:+.1f} at delay 1 ({gap.min():+.1f} to {gap.max():+.1f})"
            )
    return f"  - {name}: " + "; ".join(out) + "."


def in_short(rows: pd.DataFrame, picks: pd.DataFrame) -> str:
    """The findings as figures."""
    names = list(dict.fromkeys(picks.network))
    split = [line for name in names if (line := granularity(rows, name))]
    return "\n".join([
        f"- **Rules**, mean agreement % over T up to {LOW}, best first (one threshold a channel; digits-qcfs: a layer):",
        *(spread(rows, name) for name in names),
        f"- **One threshold a channel instead of one a layer**, `mse`, change of agreement over T up to {LOW}:",
        *split,
        "- **Corrections**, mean change of agreement in points over the T measured:",
        *(corrections(rows, name) for name in names),
        "- **Layers kept analog** (`+` joins the list), `mse`, mean change over the T measured. A weight layer",
        "  outside the list gets its input re-encoded by neurons, so an activation kept alone saves no neuron:",
        *(line for name in names if (line := kept(rows, name))),
        "- **On the test images**, points of accuracy that the choices gained over the plain setting:",
        *(outcome(picks, name) for name in names),
    ])  # fmt: skip


TEXT = """# Which threshold rule, which correction, which layer to keep analog

Every rule of `threshold=`, every correction of `correct=` and some layers of `keep_analog=`, at T = {steps} and
delays 0 and 1 (not every one at every T). Made by
`python reports/thresholds/study.py --data DIR` (speedysnn {version}, {machine};
{minutes} minutes of CPU for the rows below); seed 0, one seed; nothing tuned. Guidance drawn from it:
[docs/thresholds.md](../../docs/thresholds.md).

Networks are converted with `correct="none"`; `reports/corrections` measures what a correction adds.

- Data: a validation part is held out of the training images; thresholds come from {calibration} other training images,
  corrections from the first 256 of those (ResNet-20: 64). Corrections were measured as they were before their changes were
  checked on other images, and without `moments`: see [corrections](../corrections/study.py). **Every choice is by the validation part**: the highest
  agreement with the source, at a tie the smallest error of the logits. Test images are run afterwards.
- The bundled digits networks and the ResNet-20 were trained on the validation images too, so
  the sources are nearly perfect there; hence agreement with the source is compared, which needs no labels. digits-qcfs,
  trained here (QCFS activations, 4 levels, 15 epochs, from the bundled weights), did not see them while QCFS was trained.
- Standard error of an agreement near 90 %: 2 points on 192 to 256 images. Settings are measured on the same images, so
  differences are surer than that, but a point or less is no finding.
- Networks: `digits-avg`, `digits-max` (bundled), `digits-qcfs`, and the published CIFAR-10 ResNet-20 of
  [cifar10_resnet20](../cifar10_resnet20/README.md). "Twin" is the quantized reading: what T steps
  reach without timing error. "Plain" is `mse`, one threshold a channel, no correction (digits-qcfs: `clip`, one a layer).

## In short, on validation images unless said otherwise

{short}

![rules](rules.png)
![corrections](corrections.png)
![chosen](chosen.png)

{sections}

All figures, with the logit errors: `thresholds.csv`.
"""
