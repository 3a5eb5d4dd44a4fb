"""The command line: tying-utils train | reproduce | figures."""

import argparse
import json
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, or 2 with what was wrong on stderr."""
    parser = argparse.ArgumentParser(prog="tying-utils", description=__doc__)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="train configurations, or load those that are finished")
    words = "a JSON object with the fields of TrainConfig that differ from their defaults; may be given several times"
    train.add_argument("--config", action="append", help=words)
    train.add_argument("--lines", action="store_true", help="print lines 'step N loss L' in place of a progress bar")
    train.set_defaults(run=_train)
    for name, run, words in (
        ("reproduce", _reproduce, "run every notebook top to bottom on a profile and draw its figures"),
        ("figures", _figures, "draw a profile's figures from its tables"),
    ):
        command = commands.add_parser(name, help=words)
        command.add_argument("--profile", default="quick", help="quick (default) or laptop")
        command.set_defaults(run=run)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, RuntimeError) as error:
        print(f"tying-utils: {error}", file=sys.stderr)
        return 2
    return 0


def _train(options: argparse.Namespace) -> None:
    from tying_utils.training import TrainConfig, train

    def tell(step: int, loss: float) -> None:
        print(f"step {step} loss {loss:.4f}", flush=True)

    for text in options.config or ["{}"]:
        try:
            config = TrainConfig.from_dict(json.loads(text))
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ValueError(f"--config: a JSON object of TrainConfig's fields is needed, got {text!r}") from error
        run = train(config, progress=not options.lines, on_step=tell if options.lines else None)
        print(run.folder, flush=True)


def _reproduce(options: argparse.Namespace) -> None:
    from tying_utils import notebooks, report

    print(f"executed notebooks: {notebooks.reproduce(options.profile)}")
    report.refresh_documents(options.profile)


def _figures(options: argparse.Namespace) -> None:
    from tying_utils import figures, report

    figures.render(options.profile)
    report.refresh_documents(options.profile)


if __name__ == "__main__":
    sys.exit(main())
