"""The evaluation protocols by name: `"module:attribute"` of an `esp.recipes.Protocol`, and where each comes from."""

from __future__ import annotations

PROTOCOLS: dict[str, str] = {
    "dc": "esp.recipes:DC",
    "dsa": "esp.recipes:DSA",
    "idc": "esp.recipes:IDC",
    "kip2nn": "esp.recipes:KIP2NN",
    "mtt": "esp.recipes:MTT",
}

SOURCES: dict[str, str] = {
    "dc": "DC (Zhao et al., ICLR 2021), utils.py of the released code; CAFE's is dc@600",
    "dsa": "DSA (Zhao and Bilen, ICML 2021) and DM, utils.py of the released code; CAFE+DSA's is the same",
    "idc": "IDC (Kim et al., ICML 2022), train.py and argument.py of the released code",
    "kip2nn": "KIP (Nguyen et al., NeurIPS 2021), nn_training.ipynb of the released code",
    "mtt": "MTT (Cazenavette et al., CVPR 2022), utils.py of the released code",
}

FIELDS: dict[str, str] = {
    "epochs": "passes over the synthetic set",
    "steps": "length in steps in place of epochs; 0 for epochs",
    "batch": "images per step",
    "lr": "learning rate at the start; learned or stable: see lr_of",
    "lr_of": "number; learned: lr times the rate that came with the set; stable: lr times the largest stable one",
    "fallback_lr": "learning rate for a set that came without one where lr_of is learned; 0 for none",
    "momentum": "of SGD",
    "weight_decay": "L2 coefficient of every parameter",
    "schedule": "steps at the milestones, or cosine down to zero",
    "milestones": "fractions of the training after which lr is multiplied by gamma",
    "gamma": "factor of lr at a milestone",
    "reset_momentum": "whether a milestone clears the momentum",
    "augmentation": "operations of DSA joined by _, or none",
    "mode": "single: one operation for a batch; sequence: IDC's order; both with parameters for each image",
    "cutmix": "probability that a batch is mixed",
    "loss": "ce: cross-entropy; bce: one binary one for each class; mse: half the mean square of centred labels",
    "checks": "looks during training, the last epoch included",
    "large": "[images, fraction] pairs: sets of more images train for that fraction of the epochs",
    "network": "the network of the protocol's own; empty for that of --network",
    "select": "last: the last epoch is the score; held-out: the best look at held-out training images",
    "held_out": "fraction of the training images of each class that are held out",
    "lrs": "learning rates that selection tries in place of lr",
}
"""What a protocol consists of: the keys of one's own, beside `base`."""

NOTES: dict[str, dict[str, str]] = {
    "dc": {
        "epochs": "300, and the loop runs one more",
        "milestones": "after epoch E // 2 + 1",
        "augmentation": "the released code augments MNIST alone; here it is not",
    },
    "dsa": {"epochs": "1000, and the loop runs one more", "milestones": "after epoch E // 2 + 1"},
    "mtt": {
        "epochs": "1000, and the loop runs one more",
        "milestones": "after epoch E // 2 + 1",
        "lr_of": "the student's rate, learned with the images",
    },
    "idc": {"augmentation": "all of DSA but cutout, since CutMix is on", "milestones": "2E // 3 and 5E // 6"},
    "kip2nn": {
        "lr_of": "2 N / largest eigenvalue of the empirical NTK of 50 training images, N = 50 x classes",
        "weight_decay": "found by a grid search there",
        "network": "wide, without normalisation; --network kipnet,width=128 is the affordable one",
    },
}
"""What a value of a built-in protocol stands for, where that is not plain."""
