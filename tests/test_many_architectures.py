"""ARCHITECTURES.md says what happens to a model of each architecture of transformers, as it is now."""

import many_architectures as many
import pytest
import torch

# One of each kind: an encoder, a scale, a cap, positions in a table, neither, images, a state space.
FEW = ("bert", "cohere", "gemma2", "gpt2", "llama", "llava", "mamba")
AGAIN = "`python tests/many_architectures.py` writes it anew"


def written() -> dict[str, str]:
    """The line of each architecture on the page."""
    lines = many.FILE.read_text(encoding="utf-8").splitlines()
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}


def test_the_page_has_a_line_for_each_of_many_architectures():
    assert list(written()) == ["Architecture", "---", *many.ARCHITECTURES] and len(many.ARCHITECTURES) >= 25, AGAIN
    assert many.page(list(written().values())[2:]).splitlines()[:4] == many.FILE.read_text(encoding="utf-8").splitlines()[:4]


def test_the_page_says_what_comes_of_each():
    assert many.rows(many.ARCHITECTURES) == list(written().values())[2:], AGAIN


def test_models_are_small_and_tied_as_asked():
    for name in FEW:
        model, untied = many.build(name), many.build(name, tied=False)
        assert sum(weight.numel() for weight in model.parameters()) < 100_000
        ends = [[end.weight for end in (m.get_input_embeddings(), m.get_output_embeddings())] for m in (model, untied)]
        assert [source is target for source, target in ends] == [True, False]
        assert many.TOKENS.max() < len(ends[0][0]) and not torch.equal(*ends[1])


@pytest.mark.parametrize(
    ("error", "cell"),
    [
        (None, many.WORKS),
        (ValueError("model: 0.37213 is | too\n  much, 1.5e-3 would do"), "model: … is \\| too much, … would do"),
        (AttributeError("no vocab_size"), "**AttributeError**: no vocab_size"),
        (AssertionError("tied = True"), "**wrong**: tied = True"),
    ],
)
def test_a_cell_says_what_the_user_gets(error, cell):
    def attempt(tied: bool = True) -> None:
        if error and tied:
            raise error

    assert many.outcome(attempt) == cell
    assert many.both(attempt) == (cell if error is None else f"tied: {cell}; untied: {many.WORKS}")
