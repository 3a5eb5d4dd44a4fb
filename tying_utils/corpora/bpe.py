"""Byte-level BPE: learned on a text, and a text written as its tokens."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tying_utils.base.console import tqdm
from tying_utils.base.folder import VerifiedFolder
from tying_utils.corpora.corpus import SEPARATOR, Corpus, token_dtype
from tying_utils.corpora.installed import Documents

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_AT_ONCE = 32  # files that are tokenised together


def learn(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """Return a byte-level BPE of `vocab_size` tokens, `SEPARATOR` among them, learned on `texts`, which are read once.

    Raises ValueError if the texts support fewer tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (most := tokenizer.get_vocab_size()) < vocab_size:
        fewer = f"the text supports {most} tokens, fewer than {vocab_size}"
        raise ValueError(f"vocab_size: {fewer}; ask for that many or give more text")
    return tokenizer


def tokenise(
    folder: VerifiedFolder, name: str, parts: tuple[Documents, Documents], vocab_size: int, vocabulary: Corpus | None
) -> dict[str, str]:
    """Write the tokenizer and the tokens of the training and the validation part into `folder`; return the files' sha256s.

    The tokenizer is that of the `vocabulary`, or is learned on the training part. `name` is shown beside the progress.
    """
    if vocabulary is None:
        tokenizer = learn((text for _, text in tqdm(parts[0], f"learning BPE on {name}", leave=False)), vocab_size)
    else:
        tokenizer = vocabulary.tokenizer
    dtype = token_dtype(vocab_size)
    separator: Any = tokenizer.token_to_id(vocabulary.separator if vocabulary else SEPARATOR)

    def write(path: Path, documents: Documents) -> None:
        # Piece by piece: as Python integers the tokens of a large text would not fit in memory.
        bar = tqdm(total=len(documents), desc=f"tokenising {name}", unit="file", leave=False)
        with path.open("wb") as file, bar:
            for start in range(0, len(documents), _AT_ONCE):
                batch = [text for _, text in documents[start : start + _AT_ONCE]]
                for encoding in tokenizer.encode_batch_fast(batch):
                    np.asarray([*encoding.ids, separator], dtype=dtype).tofile(file)
                bar.update(len(batch))

    return {
        "tokenizer.json": folder.write("tokenizer.json", lambda path: tokenizer.save(str(path))),
        "train.bin": folder.write("train.bin", lambda path: write(path, parts[0])),
        "validation.bin": folder.write("validation.bin", lambda path: write(path, parts[1])),
    }
