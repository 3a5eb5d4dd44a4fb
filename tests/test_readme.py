"""README's recipe for a model of one's own is run as it stands; METHODS' table of remedies is the code's."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from tying_utils import models
from tying_utils.balance import REMEDIES

ROOT = Path(__file__).resolve().parents[1]


def section(document: str, heading: str) -> str:
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    assert found, f"{document} has no section {heading!r}"
    return found[1]


def test_the_recipe_runs_as_it_stands(tmp_path):
    model: Any = models.build("gpt2", tied=True, vocab_size=90, d_model=16, n_layers=1, n_heads=2, context=16)
    batches = list(torch.randint(0, 90, (12, 4, 12), generator=torch.Generator().manual_seed(0)))
    rows = [{"input_ids": row, "labels": row} for row in torch.cat(batches)]
    options: dict[str, Any] = {"max_steps": 3, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    args = TrainingArguments(output_dir=str(tmp_path), save_strategy="no", **options)
    names: dict[str, Any] = {"model": model, "batches": batches, "args": args, "data": rows}
    before = models.tables(model).table.clone()
    loop, callback = re.findall(
        r"^```python\n(.*?)^```", section("README.md", "In a model of your own"), re.DOTALL | re.MULTILINE
    )
    assert len([line for line in loop.splitlines() if line.strip()]) <= 20

    exec(loop, names)
    after = models.tables(model).table.clone()
    assert len(names["shares"]) == 12 and all(0 < share < 1 for share in names["shares"])
    assert not torch.equal(after, before)
    total = torch.nn.functional.cross_entropy(model(batches[0][:, :-1]).logits.flatten(0, 1), batches[0][:, 1:].flatten())
    total.backward()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight

    exec(callback, names)
    assert not torch.equal(models.tables(model).table, after)


def value(expression: str, V: int, d: int, w: int) -> int:
    """A cell of the table of remedies in numbers."""
    plain = expression.replace("²", "**2").replace("−", "-").replace(" (", "*(").replace("V d", "V*d").replace(" / ", "//")
    return eval(plain, {"V": V, "d": d, "w": w})


@pytest.mark.parametrize(("V", "d"), [(300, 32), (97, 20)])
def test_the_table_of_remedies_is_the_codes(V, d):
    lines = [line for line in section("METHODS.md", "Remedies").splitlines() if line.startswith("| `")]
    table = {cells[0].strip("`"): cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)}
    assert list(table) == list(REMEDIES)
    for name, (_, asked, added, _) in table.items():
        assert REMEDIES[name].fits == {"tied": (True,), "untied": (False,), "either": (True, False)}[asked]
        assert REMEDIES[name]().added_parameters(V, d) == value(added, V, d, w=16)
