"""What a name that there is not may mean: words of other frameworks by meaning, then the nearest spelling.

A row is a word as others write it, in small letters without `_`, `-` and `.`, and ours; or a sentence, where there is
nothing of that kind. To add one is all that is needed.
"""

from collections.abc import Iterable

NONE = "there is no such rule here"
SHARED = {
    # Fields.
    "lr": "learning_rate", "rate": "learning_rate", "stepsize": "learning_rate", "eps": "epsilon", "wd": "weight_decay",
    "decay": "weight_decay", "l2": "weight_decay", "b1": "beta1", "b2": "beta2", "beta1": "beta1", "beta2": "beta2",
    "betas": "beta1", "smoothing": "label_smoothing", "batchsize": "batch", "bs": "batch", "filters": "channels",
    "outchannels": "channels", "inchannels": "it is that of the input, whatever it is: leave it out", "infeatures": "it is that of the input, whatever it is: leave it out",
    "outfeatures": "units", "hiddensize": "units", "hiddendim": "units", "nunits": "units", "hidden": "units", "kernelsize": "kernel",
    "poolsize": "window", "strides": "stride", "pad": "padding", "dilationrate": "dilation", "featuregroupcount": "groups",
    "usebias": "bias", "kernelinitializer": "kernel_init", "weightinit": "kernel_init", "biasinitializer": "bias_init",
    "numheads": "heads", "nheads": "heads", "nhead": "heads", "iscausal": "causal", "numembeddings": "vocabulary",
    "vocabsize": "vocabulary", "inputdim": "vocabulary", "embeddingdim": "features", "outputdim": "features", "embeddim": "features",
    "returnsequences": "returns", "batchfirst": "sequences are [batch, time, channels] here, always: leave it out",
    "p": "rate", "negativeslope": "slope", "classweights": "there are no weights of classes here", "classweight": "there are no weights of classes here",
    "sampleweight": "there are no weights of examples here", "reduction": "a loss is the mean here, always: leave it out",
    "epochs": "there are steps here: epochs times examples over batch", "nepochs": "there are steps here: epochs times examples over batch",
    "iterations": "steps", "maxsteps": "steps", "randomseed": "seed", "path": "file", "filename": "file", "filepath": "file",
    "model": "networks", "models": "networks", "network": "networks", "dataset": "data", "train": "training", "eval": "evaluation",
    "criterion": "loss", "losses": "loss", "lossfn": "loss", "optim": "optimizer", "optimiser": "optimizer", "opt": "optimizer",
    "scheduler": "schedule", "lrscheduler": "schedule", "clipping": "clip", "gradclip": "clip", "dropoutrate": "dropout",
    "input": "inputs", "layer": "layers", "description": "about", "valsplit": "test", "validationsplit": "test", "testsize": "test",
    "normalize": "normalise", "scalefactor": "factor", "size": "factor", "droplast": "last_batch", "gamma": "multiply_by",
    "stepsizelr": "every", "warmupsteps": "warmup", "tmax": "steps", "dtype": "precision is said when it is run: --precision float64",
    "device": "the device is said when it is run: --device gpu", "activation": "an activation is a layer of its own, like '- relu'",
    # Initializers.
    "kaiminguniform": "he_uniform", "kaimingnormal": "he_normal", "kaiming": "he_normal", "he": "he_normal", "xavieruniform": "glorot_uniform",
    "xaviernormal": "glorot_normal", "xavier": "glorot_uniform", "glorot": "glorot_uniform", "lecun": "lecun_normal", "randomnormal": "normal",
    "randomuniform": "uniform", "truncnormal": "truncated_normal", "gaussian": "normal", "fill": "constant", "zero": "zeros", "one": "ones",
    "identity": "there is no such thing here: 'values: [[1, 0], [0, 1]]' says it number by number", "eye": "there is no such thing here: 'values: [[1, 0], [0, 1]]' says it number by number",
    "dirac": NONE, "sparse": NONE, "variancescaling": "glorot, he and lecun are its kinds",
    # Layers.
    "linear": "dense", "fc": "dense", "fullyconnected": "dense", "lin": "dense", "innerproduct": "dense", "conv": "conv2d", "convolution": "conv2d",
    "conv2dtranspose": "conv_transpose2d", "convtranspose2d": "conv_transpose2d", "deconv": "conv_transpose2d", "deconv2d": "conv_transpose2d",
    "maxpool": "max_pool2d", "maxpooling2d": "max_pool2d", "maxpooling1d": "max_pool1d", "avgpool": "avg_pool2d", "averagepooling2d": "avg_pool2d",
    "averagepooling1d": "avg_pool1d", "meanpool": "avg_pool2d", "globalaveragepooling2d": "global_avg_pool", "globalaveragepooling1d": "global_avg_pool",
    "globalmaxpooling2d": "global_max_pool", "globalmaxpooling1d": "global_max_pool", "adaptiveavgpool2d": "global_avg_pool", "gap": "global_avg_pool",
    "batchnormalization": "batch_norm", "batchnorm2d": "batch_norm", "batchnorm1d": "batch_norm", "bn": "batch_norm", "layernormalization": "layer_norm",
    "ln": "layer_norm", "groupnorm": NONE, "instancenorm": NONE, "instancenorm2d": NONE, "rmsnorm": NONE, "multiheadattention": "attention",
    "multiheaddotproductattention": "attention", "selfattention": "attention", "mha": "attention", "swish": "silu", "prelu": NONE, "relu6": NONE, "mish": NONE, "hardswish": NONE,
    "logsoftmax": "softmax_cross_entropy takes logits and has it within", "dropout2d": "dropout", "spatialdropout2d": "dropout",
    "upsample": "upsample2d", "upsampling2d": "upsample2d", "interpolate": "upsample2d", "cat": "concatenate", "concat": "concatenate",
    "sum": "add", "plus": "add", "mul": "multiply", "product": "multiply", "view": "reshape", "embed": "embedding", "posembedding": "positions",
    "positionalembedding": "positions", "positionalencoding": "positions", "rnn": NONE, "simplernn": NONE, "skip": "residual", "sequential": "block",
    # Losses and metrics.
    "crossentropy": "softmax_cross_entropy", "crossentropyloss": "softmax_cross_entropy", "categoricalcrossentropy": "softmax_cross_entropy",
    "sparsecategoricalcrossentropy": "softmax_cross_entropy", "nll": "softmax_cross_entropy", "nllloss": "softmax_cross_entropy", "bce": "sigmoid_cross_entropy",
    "bceloss": "sigmoid_cross_entropy", "bcewithlogits": "sigmoid_cross_entropy", "bcewithlogitsloss": "sigmoid_cross_entropy", "binarycrossentropy": "sigmoid_cross_entropy",
    "binarycrossentropywithlogits": "sigmoid_cross_entropy", "logloss": "softmax_cross_entropy", "l1": "mae", "l1loss": "mae", "meanabsoluteerror": "mae", "mseloss": "mse", "l2loss": "mse",
    "meansquarederror": "mse", "huber": NONE, "smoothl1": NONE, "hinge": NONE, "kldiv": NONE, "ctc": NONE, "triplet": NONE, "focal": NONE, "acc": "accuracy",
    # Optimizers, schedules, clips.
    "momentum": "sgd", "sgdm": "sgd", "gradientdescent": "sgd", "nadam": NONE, "adamax": NONE, "radam": NONE, "rmsprop": NONE, "adagrad": NONE, "adadelta": NONE,
    "lamb": NONE, "lion": NONE, "lbfgs": NONE, "muon": NONE, "ftrl": NONE, "adafactor": NONE, "cosineannealing": "cosine", "cosineannealinglr": "cosine",
    "cosinedecay": "cosine", "steplr": "step", "multisteplr": "step", "piecewise": "step", "exponential": "step", "exponentiallr": "step", "onecycle": NONE,
    "polynomial": NONE, "reducelronplateau": NONE, "plateau": NONE, "clipgradnorm": "global_norm", "clipnorm": "global_norm", "norm": "global_norm",
    "clipbyglobalnorm": "global_norm", "clipvalue": "value", "clipgradvalue": "value",
    # Data.
    "mnist": "'digits' is a small one; a file of your own is 'npz' or 'csv'", "cifar10": "a file of your own is 'npz' or 'csv'", "imagenet": "a file of your own is 'npz' or 'csv'",
    "numpy": "npz", "npy": "npz", "tsv": "csv", "pandas": "csv", "txt": "text", "file": "npz", "array": "inline", "list": "inline", "synthetic": "random", "noise": "random",
    # Backends, devices, precisions.
    "pytorch": "torch", "keras": "tensorflow", "tf": "tensorflow", "flax": "jax", "optax": "jax", "cuda": "gpu", "bf16": "bfloat16", "fp32": "float32",
    "f32": "float32", "float": "float32", "single": "float32", "fp64": "float64", "f64": "float64", "double": "float64", "fp16": "half precision here is 'bfloat16'",
    "float16": "half precision here is 'bfloat16'", "half": "half precision here is 'bfloat16'", "mixed": "bfloat16", "mixedbfloat16": "bfloat16", "mixedprecision": "bfloat16",
}  # fmt: skip
"""By the word; a meaning that is none of the known names is passed over, so that one table serves every place."""
BY_FIELD = {"kernelsize": ("kernel", "window"), "p": ("rate", "dropout"), "dropout": ("rate",), "features": ("units", "channels"), "hidden": ("units",),
            "size": ("factor", "units"), "rate": ("learning_rate",), "outfeatures": ("units", "features"), "step": ("every",), "noise": ("noise",)}  # fmt: skip
"""Words that mean one thing in one place and another in another: the first that is known there."""


def hint(name: str, known: Iterable[str]) -> str:
    """What was meant by a name that is none of the known ones, for the end of a message; or nothing.

    >>> hint("kaiming_normal", ["lecun_normal", "he_normal"]), hint("dnse", ["dense"]), hint("quux", ["dense"])
    ("; here that is 'he_normal'", "; did you mean 'dense'?", '')
    >>> hint("nadam", ["adam", "sgd"])
    '; there is no such rule here'
    """
    known = list(known)
    plain = _plain(name)
    for word in known:
        if _plain(word) == plain:
            return f"; did you mean '{word}'?"
    for meant in (*BY_FIELD.get(plain, ()), SHARED.get(plain, "")):
        if meant in known:
            return f"; here that is '{meant}'"
        if " " in meant:
            return f"; {meant}"
    near = min(known, key=lambda word: (distance(name, word), word), default="")
    return f"; did you mean '{near}'?" if near and distance(name, near) <= max(1, min(3, len(name) // 3)) else ""


def _plain(name: str) -> str:
    text = name.removeprefix("nn.").lower()
    return "".join(character for character in text if character.isalnum())


def distance(a: str, b: str) -> int:
    """How many letters are to be changed, left out, put in or swapped with the next to make one word of another.

    >>> distance("sdg", "sgd"), distance("dnse", "dense"), distance("xavier", "he")
    (1, 1, 4)
    """
    if abs(len(a) - len(b)) > 3:  # noqa: PLR2004 - more than is ever asked for
        return abs(len(a) - len(b))
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        above, before, row = before, row, [i + 1]
        for j, y in enumerate(b):
            least = min(row[j] + 1, before[j + 1] + 1, before[j] + (x != y))
            if i and j and x == b[j - 1] and a[i - 1] == y:
                least = min(least, above[j - 1] + 1)
            row.append(least)
    return row[-1]
