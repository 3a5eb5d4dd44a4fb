"""The command line: tying-utils COMMAND ..., as `tying-utils --help` lists them."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tying_utils.base.console import say

if TYPE_CHECKING:
    from tying_utils.training.config import TrainConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, or 2 with what was wrong on stderr; 130 where it was interrupted."""
    parser = argparse.ArgumentParser(prog="tying-utils", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], words: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=words)
        made.set_defaults(run=run)
        return made

    train = command("train", _train, "train configurations, or load those that are finished")
    words = "a JSON object with the fields of TrainConfig that differ from their defaults; may be given several times"
    train.add_argument("--config", action="append", help=words)
    train.add_argument("--profile", help="start from an arm of this profile; --config changes fields of it")
    train.add_argument("--arm", help="of the profile, as tied (default) or untied")
    train.add_argument("--seed", type=int, help="of the profile's arm (default: the profile's first)")
    train.add_argument("--lines", action="store_true", help="print lines 'step N loss L' in place of a progress bar")
    plan = command("plan", _plan, "say what training would take here: time (from a short probe), memory and disk")
    plan.add_argument("--config", action="append", help=words)
    plan.add_argument("--profile", help="in place of configurations: all runs of a profile that are missing")
    plan.add_argument("--corpus", help="one of the profile's (default: each of them)")
    prepare = command("prepare", _prepare, "stream a text of any size into token files, for the corpus 'shards'")
    prepare.add_argument("--out", required=True, metavar="FOLDER", help="for corpus 'shards' with this path")
    words = (
        "a file or pattern of files (.json, .jsonl, .txt, .parquet, also .gz), a URL, the id of a dataset on the hub or @FILE, "
        "a list of these, one per line; may be given several times"
    )
    prepare.add_argument("--text", action="append", required=True, metavar="SOURCE", help=words)
    prepare.add_argument("--column", default="text", help="that holds the documents (default: text)")
    prepare.add_argument("--split", default="train", help="of a dataset on the hub (default: train)")
    prepare.add_argument("--subset", metavar="NAME", help="of a dataset on the hub")
    words = "rows of the table (default: 50280); without --tokenizer a byte-level BPE of that many tokens is learned"
    prepare.add_argument("--vocab-size", type=_count, default=50_280, metavar="V", help=words)
    prepare.add_argument("--tokenizer", metavar="SOURCE", help="a tokenizer.json, a folder with one, or the id of a model")
    prepare.add_argument("--tokens", type=_count, metavar="N", help="to train on, as 30e9 (default: all there are)")
    prepare.add_argument("--shard-tokens", type=_count, default=100_000_000, metavar="N", help="a file (default: 100_000_000)")
    words = "of the first documents, held out (default: 10_000_000)"
    prepare.add_argument("--validation-tokens", type=_count, default=10_000_000, metavar="N", help=words)
    sweep = command("sweep", _sweep, "cross the input scales with the output scales: the tables behind the sliders")
    sweep.add_argument("--profile", default="laptop", help="laptop (default) or another that has a sweep")
    sweep.add_argument("--corpus", help="python or two-role (default: each that has a sweep)")
    sweep.add_argument("--fresh", action="store_true", help="measure again from the runs, even where a table is there")
    words = (
        "train the I-th of N shares of the sweep's runs and measure nothing: start all N, on one folder that all machines see, "
        "then once without --shard, which measures (and trains what a share has left)"
    )
    sweep.add_argument("--shard", metavar="I/N", help=words)
    words = "train what is missing of laptop's axis of training length, for days: start it once for each core; it resumes"
    longer = command("lengths", _lengths, words)
    words = "train nothing: measure every length and seed all of whose arms are finished, into data/results/lengths"
    longer.add_argument("--measure", action="store_true", help=words)
    words = "measure SmolLM2, or another tied model, into data/results/real; needs the extra `real`"
    measured = command("real", _real, words)
    measured.add_argument("--source", help="a hub id, a folder or a GGUF file in place of SmolLM2")
    measured.add_argument("--fresh", action="store_true", help="measure again, even where a table is there")
    words = "check a card: is everything right on it, how fast is it, and what do the claims say there"
    gpu = command("gpu", _gpu, words)
    gpu.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: 8)")
    gpu.add_argument("--device", default="cuda", help="cuda (default), or cpu to try the command itself at a small size")
    words = "for what is found: empty or not there"
    gpu.add_argument("--out", type=Path, default=Path("gpu-check"), metavar="FOLDER", help=words)
    words = "ask for the claims alone, with models of these seeds: a further check of the same kind of card"
    gpu.add_argument("--seeds", type=int, nargs="+", metavar="N", help=words)
    words = "train models of the size that the check in this folder chose, so that both can be read together"
    gpu.add_argument("--like", type=Path, metavar="FOLDER", help=words)
    words = "turn such folders, of one kind of card, into data/results/gpu and rows of the benchmarks' table; checks nothing"
    gpu.add_argument("--read", type=Path, nargs="+", metavar="FOLDER", help=words)
    evaluate = command("evaluate", _evaluate, "let runs and checkpoints answer downstream tasks; needs the extra `eval`")
    words = (
        "a name, and the folder of a run or checkpoint or a hub id (another revision: ID@REVISION); may be given several times"
    )
    evaluate.add_argument("--model", action="append", required=True, metavar="NAME=SOURCE", help=words)
    evaluate.add_argument("--tasks", help="lm-eval's names, with commas between (default: the nine of the paper's Table 7)")
    evaluate.add_argument("--include", metavar="FOLDER", help="with more tasks, as lm-eval's YAML files")
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N documents of each task")
    evaluate.add_argument("--out", metavar="FILE", help="a CSV file for the scores, a row per model, task and metric")
    reproduce = command("reproduce", _reproduce, "run every notebook top to bottom on a profile and draw its figures")
    figures = command("figures", _figures, "draw a profile's figures from its tables")
    for drawing in (reproduce, figures):
        drawing.add_argument("--profile", default="quick", help="quick (default) or laptop")
    site = command("site", _site, "run the notebooks on a profile and render them, with all verdicts, to build/site")
    site.add_argument("--profile", default="laptop", help="laptop (default): its committed tables are read, nothing is trained")
    badges = command("badges", _badges, "write the repository's address into pyproject.toml, badges and setup cells")
    badges.add_argument("--repo", required=True, help="owner/name on GitHub")
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except (ValueError, RuntimeError, ArithmeticError, OSError) as error:
        say(f"tying-utils: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        say(f"tying-utils: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130


def _train(options: argparse.Namespace) -> None:
    from tying_utils.base.names import TIED
    from tying_utils.study import profiles
    from tying_utils.training.ranks import Ranks
    from tying_utils.training.trainer import train

    ranks, base = Ranks.here(), {}
    if options.profile:
        profile = profiles.get(options.profile)
        seed = profile.seeds[0] if options.seed is None else options.seed
        base = profile.config(options.arm or TIED, seed).as_dict()
    elif options.arm is not None or options.seed is not None:
        raise ValueError("--arm and --seed: they are of a profile; give --profile, or name the fields in --config")

    def tell(step: int, loss: float) -> None:
        say(f"step {step} loss {loss:.4f}")

    for text in options.config or ["{}"]:
        run = train(_config(text, base), progress=not options.lines, on_step=tell if options.lines else None)
        if ranks.first:
            say(run.folder)
    ranks.leave()


def _config(text: str, base: dict[str, Any] | None = None) -> "TrainConfig":
    """Return the condition that `text` says, in the fields that it names; the others are those of `base`."""
    from tying_utils.training.config import TrainConfig

    try:
        return TrainConfig.from_dict({**(base or {}), **json.loads(text)})
    except (json.JSONDecodeError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"--config: a JSON object of TrainConfig's fields is needed, got {text!r:.200}") from error


def _plan(options: argparse.Namespace) -> None:
    from tying_utils.study.plan import plan, plan_profile

    if (options.config and options.profile) or (options.corpus and not options.profile):
        raise ValueError("--profile: either it or --config is needed, and --corpus goes with --profile alone")
    for corpus in _corpora(options) if options.profile else []:
        say(plan_profile(options.profile, corpus))
    for text in [] if options.profile else options.config or ["{}"]:
        say(plan(_config(text)))


def _corpora(options: argparse.Namespace) -> list[str]:
    from tying_utils.study import profiles

    profiles.get(options.profile, options.corpus)
    return [options.corpus] if options.corpus else list(profiles.PROFILES[options.profile])


def _prepare(options: argparse.Namespace) -> None:
    from tying_utils.corpora.token_shards import prepare

    record = prepare(**{name: value for name, value in vars(options).items() if name != "run"})
    train, validation = record["tokens"]["train"], record["tokens"]["validation"]
    say(f"{options.out}: {train:,} tokens in {len(record['files']) - 1} shards, {validation:,} for validation")


def _count(text: str) -> Any:
    """Return an integer from text as 30e9 or 100_000_000; what is none stays as it is, for the command to name."""
    try:
        return int(number) if (number := float(text)).is_integer() else number
    except ValueError:
        return text


def _sweep(options: argparse.Namespace) -> None:
    from tying_utils.study.study import SWEEP, Shard, Study

    shard = Shard.parse(options.shard) if options.shard is not None else None
    if shard and options.fresh:
        raise ValueError("--fresh: with --shard nothing is measured; give it to the call that measures")
    corpora = _corpora(options)
    studies = [Study(options.profile, corpus, fresh=options.fresh) for corpus in corpora]
    having = [study for study in studies if study.profile.sweep]
    if not having:
        raise ValueError(f"--profile: {options.profile!r} has no sweep on {', '.join(corpora)}; try laptop")
    for study in having:
        if shard:
            for run in study.train(SWEEP, shard):
                say(run.folder)
            continue
        study.complete(SWEEP)
        for name in SWEEP:
            if name in study:
                say(f"{study.folder / name}.csv: {study.origin[name]}")


def _lengths(options: argparse.Namespace) -> None:
    from tying_utils.study import axis, train_lengths

    if options.measure:
        for place in axis.PLACES:
            tables = axis.Axis(place, fresh=True)
            for name in (name for name in tables.names if tables.finished and name in tables):
                say(f"{tables.folder / name}.csv: {len(tables[name])} rows, {tables.origin[name]}")
        return
    for condition, run in train_lengths.train_next():
        loss, seconds = run.metrics["validation_loss"].iloc[-1], run.record["made"]["seconds"]
        where = f"{condition.profile}, {condition.arm.name}"
        words = f"{where}, {condition.tokens_per_weight:g} tokens per weight, seed {condition.seed}"
        say(f"{words}, rate x{condition.rate:g}: validation loss {loss:.4f}, {seconds:.0f} s, {run.folder.name}")


def _real(options: argparse.Namespace) -> None:
    from tying_utils.study.real import Real

    made = Real(options.source, fresh=options.fresh)
    for name in made.names:
        say(f"{made[name].to_string(index=False)}\n{made.folder / name}.csv: {made.origin[name]}")


def _gpu(options: argparse.Namespace) -> int:
    if options.read:
        from tying_utils.card.read import read

        for path in read(*options.read):
            say(path)
        return 0
    sys.dont_write_bytecode = True
    from tying_utils.card.command import check

    return check(options.minutes, options.device, options.out, options.seeds, options.like)


def _evaluate(options: argparse.Namespace) -> None:
    from tying_utils.base import files
    from tying_utils.experiments import downstream

    sources: dict[str, str] = {}
    for text in options.model:
        name, _, source = text.partition("=")
        if not name or not source or name in sources:
            raise ValueError(f"--model: NAME=SOURCE is needed, each name once, got {text!r}")
        sources[name] = source
    tasks = options.tasks.split(",") if options.tasks else list(downstream.TABLE_7.values())
    scores = downstream.evaluate(sources, tasks, limit=options.limit, include_path=options.include)
    table = downstream.table(scores)
    say(table.to_string(index=False, float_format="{:.4g}".format))
    if options.out:
        files.write_with(Path(options.out), lambda path: table.to_csv(path, index=False))
    first, *others = dict.fromkeys(scores["model"])
    for other in others:
        say(f"\n{other} - {first}, paired over documents, 95 % interval")
        say(downstream.differences(scores, first, other).to_string(index=False, float_format="{:.4g}".format))


def _reproduce(options: argparse.Namespace) -> None:
    from tying_utils.base import paths
    from tying_utils.pages import notebooks, report

    folder = notebooks.reproduce(options.profile)
    report.refresh_documents(options.profile)
    say(f"{report.summary(options.profile)}\n\nexecuted notebooks: {folder}; figures: {paths.figures(options.profile)}")


def _figures(options: argparse.Namespace) -> None:
    from tying_utils.experiments import figures
    from tying_utils.pages import report

    figures.render(options.profile)
    report.refresh_documents(options.profile)


def _site(options: argparse.Namespace) -> None:
    from tying_utils.pages import site

    say(f"open {site.render(options.profile)}")


def _badges(options: argparse.Namespace) -> None:
    from tying_utils.pages import address

    for path in address.write(options.repo):
        say(path)


if __name__ == "__main__":
    sys.exit(main())
