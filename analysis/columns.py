"""What every figure of this room means: its unit, its ideal, and in which direction it is better."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One figure.

    Attributes:
        unit: of its values; fractions lie in 0..1.
        meaning: one sentence.
        higher_is_better: None where neither direction is.
        ideal: the value it would have without noise, in words.
    """

    unit: str
    meaning: str
    higher_is_better: bool | None = None
    ideal: str = ""


# One entry a column of `NoiseReport.layers`, in the table's order. a: the source's activation; z: its pre-activation;
# r: the neuron's mean output over T steps; e = r - a; every sum runs over all elements of all images.
COLUMNS: Mapping[str, Column] = {
    "layer": Column("name", "Name of the neuron layer, in execution order."),
    "kind": Column("name", 'Spike kind: "binary", "ternary" or "graded:N".'),
    "reads": Column("names", "The neuron layers whose spikes reach this one directly; empty for the first."),
    "theta_mean": Column("activation", "Mean threshold of the layer."),
    "theta_min": Column("activation", "Smallest threshold."),
    "theta_max": Column("activation", "Largest threshold."),
    "timesteps": Column("steps", "T.", None),
    "v_init": Column("fraction of theta", "Mean initial membrane; 0.5 rounds, 0 floors."),
    "delay": Column("steps", 'Look-ahead, or "full" for T.'),
    "n": Column("elements", "Neurons times images."),
    "sqnr_db": Column(
        "dB", "Signal to noise of the spiking layer: 10 log10(sum a^2 / sum e^2).", True, "its floor_db"
    ),
    "floor_db": Column(
        "dB", "What the step theta/T alone allows, clipping and timing left out.", True, "more T, or a smaller theta"
    ),
    "gap_db": Column("dB", "floor_db - sqnr_db: what is lost beyond the step.", False, "0"),
    "twin_sqnr_db": Column(
        "dB", "The same for the quantized reading, in which time does no harm.", True, "its floor_db"
    ),
    "gain": Column("ratio", "sum a r / sum a^2; below 1 the layer answers too weakly.", None, "1"),
    "cosine": Column("ratio", "sum a r / (|a| |r|), blind to a wrong scale, so read it beside gain.", True, "1"),
    "rmse_steps": Column(
        "steps theta/T", "Root mean squared error over all elements, in quantizer steps.", False, "rmse_ideal"
    ),
    "rmse_ideal": Column(
        "steps theta/T", "Error of rounding alone; silent elements are exact, so a sparse layer may lie below it."
    ),
    "saturated": Column("fraction", "Elements that fired all they could, N spikes in every step.", False, "0"),
    "silent": Column("fraction", "Elements whose mean output is 0.", None, "source_silent"),
    "source_silent": Column("fraction", "Elements whose source activation is 0."),
    "rate": Column("events per neuron and step", "Spikes, signed ones included, a graded one counted once.", False),
    "rate_ideal": Column("spikes per neuron and step", "mean(a / theta): what carries the source activation."),
    "spikes_per_neuron": Column("events per neuron", "rate times T: all events of one inference.", False),
    "share_clip": Column("fraction of sum e^2", "Error of the range: clamp(z, 0, N theta) - a.", None),
    "share_round": Column("fraction of sum e^2", "Error of the step: Q(z) - clamp(z, 0, N theta).", None, "1"),
    "share_propagated": Column("fraction of sum e^2", "Error brought in from earlier layers: Q(z') - Q(z).", None),
    "share_temporal": Column("fraction of sum e^2", "Error of spike timing in this layer: r - Q(z').", None),
    "bias": Column("activation", "Mean error r - a.", None, "0"),
    "bias_share": Column(
        "fraction of sum e^2", "Part that one constant a channel would remove: a bias or v_init.", False, "0"
    ),
    "remaining_share": Column(
        "fraction of sum e^2", "What no constant a channel removes: the channels' variance.", None, "1"
    ),
    "bias_gain_db": Column("dB", "SQNR that removing every channel's mean error would add.", False, "0"),
    "residual": Column(
        "fraction", "What the four parts miss of the measured error, relative RMS; a check on the split.", False, "0"
    ),
    "noise_mean": Column("steps theta/T", "Mean of e over all elements.", None, "0"),
    "noise_variance": Column("steps theta/T, squared", "Variance of e over all elements.", False),
    "noise_skew": Column("ratio", "Skew of e: positive where large errors are too high.", None, "0"),
    "noise_kurtosis": Column("ratio", "Kurtosis of e, 3 for a normal law: large where few elements err much.", None),
    "round_mean": Column(
        "steps theta/T", "Mean of Q(z) - z inside the range, exact zeros of z left out.", None, "v_init - 1/2"
    ),
    "round_variance": Column("steps theta/T, squared", "Variance of the same.", False, "1/12"),
    "round_skew": Column("ratio", "Skew of the same.", None, "0"),
    "round_kurtosis": Column("ratio", "Kurtosis of the same.", None, "1.8"),
    "round_ks": Column(
        "ratio",
        "Kolmogorov-Smirnov distance of the same from the uniform law [v_init - 1, v_init], at the histogram's edges.",
        False,
        "0",
    ),
    "exact": Column("fraction", "Elements without any error.", True),
    "signal_correlation": Column(
        "ratio", "Correlation of e with a: negative where large values come out too small.", None, "0"
    ),
    "channel_correlation": Column(
        "ratio", "Mean |correlation| of two channels' errors at one place.", False, "0; by chance sqrt(2/pi/places)"
    ),
    "channels_compared": Column("channels", "All, or 512 drawn with a fixed seed, fewer where memory is short."),
    "step_correlation": Column(
        "ratio",
        "Correlation of s[t] - mean drive/theta one step apart, where the mean drive is in range: below 0 where spikes "
        "are spread out, above where they bunch.",
    ),
    "units": Column("neurons", "Neurons of one image."),
    "units_read": Column("neurons", "Of these, how many the next three were counted among; fewer where sampled."),
    "dead_units": Column("neurons", "Whose mean output was 0 on every image.", None),
    "lost_units": Column("neurons", "Dead ones whose source was active on some image.", False, "0"),
    "saturated_units": Column("neurons", "That fired all they can on at least half of the images.", False, "0"),
    "first_spike": Column("steps", "Mean step of the first spike, 1 to T, over elements that fire.", None),
    "never_fired": Column("fraction", "Elements without a spike.", None, "source_silent"),
    "start_up": Column("steps", "First step in which any neuron of the layer fires, mean over images.", False, "1"),
    "lateness": Column("steps", "Mean step of all spikes minus (T + 1)/2.", None, "0"),
    "membrane_outside": Column(
        "fraction",
        "Elements whose last membrane lies outside [0, theta), silent ones below and saturated ones above excepted: "
        "just those with a temporal error. Binary spikes without look-ahead only.",
        False,
        "0",
    ),
}

# The fields of `NoiseReport.outputs`, of `Evaluation` and of a sweep's columns.
OUTPUTS: Mapping[str, Column] = {
    "images": Column("images", "Images measured."),
    "reading": Column("name", "The reading that accuracy, agreement, SQNR and spikes belong to."),
    "reference": Column("words", "What the outputs are compared with."),
    "layer_reference": Column("words", "What the layers are compared with."),
    "timesteps": Column("steps", "T."),
    "delay": Column("steps", 'Look-ahead of every neuron, "full" for T, or "mixed".'),
    "latency": Column("steps", "From the first input to the last output.", False),
    "depth": Column("layers", "Neurons on the longest path."),
    "spikes": Column("name", "Spike kind."),
    "theta": Column("name", '"fixed" or "recalibrated" for this T.'),
    "neurons": Column("neurons", "Neurons of the network."),
    "accuracy": Column("fraction", "Spiking network, where labels are known.", True, "analog_accuracy"),
    "twin_accuracy": Column("fraction", "Quantized reading.", True, "analog_accuracy"),
    "analog_accuracy": Column("fraction", "The source the network is compared with.", True),
    "agreement": Column("fraction", "Images that spiking network and source classify alike.", True, "1"),
    "twin_agreement": Column("fraction", "Images that quantized reading and source classify alike.", True, "1"),
    "sqnr_db": Column("dB", "Spiking output against the source's.", True, "twin_sqnr_db"),
    "twin_sqnr_db": Column("dB", "Quantized output against the source's.", True, "+inf"),
    "temporal_gap_db": Column("dB", "twin_sqnr_db - sqnr_db: what timing costs.", False, "0"),
    "logit_error": Column("ratio", "|spiking - source| / |source| of the outputs.", False, "0"),
    "twin_logit_error": Column("ratio", "|quantized - source| / |source| of the outputs.", False, "0"),
    "spikes_per_neuron": Column("events per neuron", "Of one inference, all layers.", False),
    "spikes_per_inference": Column("events", "Of one image, all layers.", False),
    "precision": Column("name", "Of the spiking reading's arithmetic."),
    "float32_accuracy": Column("fraction", "The same in float32, where the precision is another.", True),
    "float32_agreement": Column("fraction", "Images that get the class of float32, likewise.", True, "1"),
}
