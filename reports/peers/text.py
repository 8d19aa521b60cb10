"""The words of README.md."""

NETWORKS = {
    "digits-avg": "the bundled digits network with average pooling, 5 neuron layers",
    "digits-max": "the bundled digits network with max pooling, 5 neuron layers",
    "fashion-mnist": "three convolutions and two linear layers trained in the study, 4 neuron layers",
    "resnet20": "the published CIFAR-10 ResNet-20, 19 neuron layers",
}

TEXT = """# Other converters on the same networks

SpikingJelly's and sinabs' own converters beside ours: the same trained weights, the same unlabelled calibration batches
in the same order, the same test images, float32, in one process. Made by `python reports/peers/study.py` on {machine}.
Seed 0, one seed. Test images choose nothing: every setting below was named before it was run, and all of them are shown.

![accuracy against T](accuracy.png)
![error of the logits against T](error.png)
![accuracy against spikes](spikes.png)
![several spikes a step](multi.png)

## In short: accuracy % with binary spikes, ours at delay 0 and 1 (in brackets with the bias correction), then the best setting of each peer *at that T*

{short}

A peer's best setting is picked by these very test images, T by T, which favours the peers; ours are four fixed settings.
At delay 1 a network of L neuron layers answers after T + L steps instead of T (throughput stays one image in T steps);
`latency` in peers.csv has it. The peers' latency is T. Where accuracies are equal, the errors of the logits are not.

## What was run

- **speedysnn**: `to_spiking(..., threshold="mse", granularity="channel", correct="none")`, nothing tuned; thresholds chosen again for
  each T from the calibration's stored histograms, without data. "Bias corrected": `correct="bias"`, which measures for
  this T and delay, on the first calibration images, what each channel emits too much or too little on average and
  feeds it back as a constant current. `graded:15` may fire up to 15 times a step.
- **SpikingJelly** (SJ): `RateCodingRecipe` with mode "Max", "99.9%" and "99%" (one threshold a layer), and
  `channel_wise=True, half_threshold=True` at "99.9%", which its ImageNet example calls robust (with max pooling also
  `pre_spike_maxpool=True`, as in that example); `LocalThresholdBalancingRecipe` (LTB). Soft-reset IF neurons, constant
  input, mean of the outputs; "delayed read-out" leaves out the first steps as its `estimate_delay_start` says for each
  T ("from k": the first step read). LTB's half-threshold neurons come with the recipe. Its thresholds rise a little at
  every batch, and its ImageNet example gives it hundreds, so it is also run on "small batches three times": the same
  images, tenths of each batch, three times over (on the digits networks; a table without those rows was made without). No threshold of SpikingJelly depends on T.
- **sinabs**: `from_model` as it is (several spikes a step, threshold 1, membrane not below -1), and on activations
  normalised by us beforehand: s ReLU(z / s), s the layer's 99.9 percentile, the same function as before. Its own
  `normalize_weights` scales bias and weight alike, so that any network with biases or batch-norm becomes another
  function; it was not used. "Single spike" is `spike_fn=SingleSpike`; "no floor" is `min_v_mem=-1e6`.
- **snntorch** 1.0.0 has no conversion of a trained network, so nothing of it could be run.
- T below the longest: a peer is run once at the longest T and its running means are read, which is what a shorter run
  gives, since nothing in it depends on T. Ours is run at each T.
- Calibration: digits 1,200 training images in 12 batches; Fashion-MNIST 1,200 of 60,000; ResNet-20 1,024 of 4,660.
  The Fashion-MNIST network was trained by the study (4 epochs of Adam, batch 128, one-cycle rate, no augmentation).
  ResNet-20 is rewritten in modules (`nn.ReLU`, `nn.AdaptiveAvgPool2d`, shortcuts as fixed 1x1 convolutions), since
  SpikingJelly refuses `F.relu` and sinabs leaves it as it is; ours converts the same modules here, and the original
  elsewhere.
- Verified in the run ([checks.csv](checks.csv)): {checks}.

In the tables: accuracy % and, in brackets, spikes per neuron and image; "error" is |out − source| / |source| of the mean
logits. `multi` spikes count as often as they are sent. A pool before the spikes leaves fewer neurons to count.

{sections}
## Time at T = 8, all contestants in turn in one process, median of 5 rounds

{times}

"x ANN" is the time over that of one pass of the source network, the ideal being at most T. SpikingJelly has compiled
kernels for a GPU, which this machine has not. Times were taken on a machine with other work, which hits all
contestants of a round alike; the ratios are medians over rounds.
"""
