"""What can be chosen on the command line, known without torch; tests hold it equal to the registries."""

OPERATORS = ("duplicate", "zero_pad", "expand", "hyperclone", "net2net", "aki", "stack", "stack_identity")
DEFAULT_GROWTH = ("expand", 0.7)
OPTIMIZERS = (
    *("sgd", "asgd", "adam", "adamw", "adamax", "nadam", "radam", "adagrad", "adadelta", "rmsprop", "rprop"),
    *("adafactor", "muon", "sparseadam"),
)
DTYPES = ("float64", "float32", "bfloat16", "float16")
