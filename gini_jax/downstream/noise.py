"""Wrong labels: accuracy by the share of training labels that are wrong.

It draws the runs of a sweep that varied `dataset.label_noise`: `--mode=sweep
--vary=dataset.label_noise=0.0,0.2,0.4`. Test labels stay right. `dataset.label_noise_kind` chooses
symmetric noise or pairwise noise (Han et al., "Co-teaching", arXiv 1804.06872, section 4).
"""

SETTING = "dataset.label_noise"
X_LABEL = "share of wrong training labels"
