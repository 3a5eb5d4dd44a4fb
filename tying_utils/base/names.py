"""What corpora and arms are called: one spelling for training, tables, verdicts and figures. Reading this loads nothing."""

ROLES = ("source", "target")  # of a token in the two-role language
PYTHON, WIKITEXT, TWO_ROLE, WIKITEXT_103, PACKAGES = "python", "wikitext-2", "two-role", "wikitext-103", "packages"
UNTIED, TIED = "untied", "tied"
PAIR = (UNTIED, TIED)
SHARED_START = "shared start"
NEW_ROLES = {f"new {role} roles": role for role in ROLES}  # what a two-role language is fine-tuned on: that role dealt anew
EQUAL = "equal parameters"  # a tied arm that spends on its trunk what the second table costs the untied one
AGAIN = "untied again"  # from another start: what two untied models share, which no remedy has to beat
# The columns that say where an arm that stands elsewhere was trained.
PLACE = ("arch", "d_model", "n_layers", "vocab_size")
ELSEWHERE_SCALE, ELSEWHERE_SEEDS = 5.0, 3  # of the arms that ask the claims again at other architectures and shapes


def scaled(scale: float) -> str:
    """The name of the arm that multiplies the input path's gradient by `scale`; 1 is the ordinary tied arm."""
    return TIED if scale == 1 else f"input x{scale:g}"


def output_scaled(scale: float) -> str:
    """The same of the output path."""
    return TIED if scale == 1 else f"output x{scale:g}"


def crossed(input_scale: float, output_scale: float) -> str:
    """The same where both paths are scaled."""
    if 1 in (input_scale, output_scale):
        return scaled(input_scale) if output_scale == 1 else output_scaled(output_scale)
    return f"{scaled(input_scale)}, {output_scaled(output_scale)}"


def enlarged(arm: str) -> str:
    """The name of `arm` with the untied model's number of weights."""
    return EQUAL if arm == TIED else f"{arm}, {EQUAL}"


def agreeing(arm: str, agreement: float) -> str:
    """The name of `arm` in the two-role language whose roles agree for the fraction `agreement` of its tokens."""
    return arm if agreement == 0 else f"{arm}, agreement {agreement:g}"


def tuned(arm: str, to: str) -> str:
    """The name of `arm` once its finished run is fine-tuned on the text or language called `to`."""
    return f"{arm}, then {to}"
