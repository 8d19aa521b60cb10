"""Search over settings: which spikes, look-ahead, correction and levels a network answers best with, under limits."""
