"""The command line: tying-utils train | reproduce | figures."""

import argparse
import json
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tying-utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train one configuration, or load it if it is finished")
    train.add_argument("--config", default="{}", help="a JSON object with the fields of TrainConfig that differ from default")
    train.add_argument("--lines", action="store_true", help="print lines 'step N loss L' in place of a progress bar")
    options = parser.parse_args(arguments)
    try:
        return {"train": _train}[options.command](options)
    except ValueError as error:
        print(f"tying-utils: {error}", file=sys.stderr)
        return 2


def _train(options: argparse.Namespace) -> int:
    from tying_utils.training import TrainConfig, train

    config = TrainConfig.from_dict(json.loads(options.config))

    def tell(step: int, loss: float) -> None:
        print(f"step {step} loss {loss:.4f}", flush=True)

    run = train(config, progress=not options.lines, on_step=tell if options.lines else None)
    print(run.folder, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
