"""What corpora and arms are called: one spelling for training, tables, verdicts and figures. Reading this loads nothing."""

ROLES = ("source", "target")  # of a token in the two-role language
PYTHON, WIKITEXT, TWO_ROLE, WIKITEXT_103, PACKAGES = "python", "wikitext-2", "two-role", "wikitext-103", "packages"
LABELS = {PYTHON: "Python source", WIKITEXT: "WikiText-2", TWO_ROLE: "two-role language"}  # on pages and in figures
UNTIED, TIED = "untied", "tied"
SHARED_START = "shared start"
NEW_ROLES = {f"new {role} roles": role for role in ROLES}  # what a two-role language is fine-tuned on: that role dealt anew
EQUAL = "equal parameters"  # a tied arm that spends on its trunk what the second table costs the untied one
SECOND_START = "untied, second start"
LOG_COUNT = "log count"  # a table that knows of its tokens only how often they occur
AGAIN = "untied again"  # from another start: what two untied models share, which no remedy has to beat
# The columns that say where an arm of another place was trained.
PLACE = ("arch", "d_model", "n_layers", "vocab_size")
ELSEWHERE_SCALE, ELSEWHERE_SEEDS = 5.0, 3  # of the arms that ask the claims again at other architectures and shapes


def scaled(scale: float) -> str:
    """Return the name of the arm that multiplies the input path's gradient by `scale`; 1 is the ordinary tied arm."""
    return crossed(scale, 1)


def crossed(input_scale: float, output_scale: float) -> str:
    """Return the name of the arm that multiplies the gradients of both paths."""
    scales = {"input": input_scale, "output": output_scale}
    return ", ".join(f"{path} x{scale:g}" for path, scale in scales.items() if scale != 1) or TIED


def enlarged(arm: str) -> str:
    """Return the name of `arm` with the untied model's number of weights."""
    return EQUAL if arm == TIED else f"{arm}, {EQUAL}"


def tuned(arm: str, to: str) -> str:
    """Return the name of `arm` once its finished run is fine-tuned on the text or language called `to`."""
    return f"{arm}, then {to}"
