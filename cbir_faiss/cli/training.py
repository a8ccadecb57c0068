"""Training a network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbir_faiss.cli._arguments import config_argument
from cbir_faiss.cli.printing import Bar, progress_of, say, say_failures, say_json

if TYPE_CHECKING:
    from cbir_faiss.training.checkpoint import Epoch
    from cbir_faiss.training.loop import Result


@click.command()
@config_argument
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to train into.")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON.")
@click.option("--log-json", is_flag=True, help="Log progress and epochs to stderr, one JSON object a line.")
def train(config: Path, out: Path, as_json: bool, log_json: bool) -> None:
    """Train the network that CONFIG describes; the best by the map of held-out pictures is kept.

    Started again after being killed, it goes on after the last whole epoch, and with more fit.epochs after the last.
    The folder is then an extractor: {name: trained, path: DIR}. With seeds, it has one of each: DIR/NAME-SEED.

    \b
    cbir train configs/papers/finetune-caltech101.yaml --out runs/finetuned
    """
    from cbir_faiss.base.options import need

    need("torch", "torch")
    from cbir_faiss.training.config import load_training
    from cbir_faiss.training.loop import train
    from cbir_faiss.training.seeds import folder_of, train_seeds

    training = load_training(config)
    with progress_of(log_json, "reading") as reading, Bar("training", unit="batch") as bar:
        how: dict[str, Any] = {
            "progress": reading,
            "steps": None if log_json else bar.progress,
            "report": _log_epoch if log_json else bar.line(_epoch),
        }
        if training.seeds:
            several = train_seeds(training, out, **how)
            told, over = several.as_dict(), several.score
            results = [(folder_of(out, seed), result) for seed, result in several.results.items()]
        else:
            results, over = [(out, train(training, out, **how))], None
            told = results[0][1].as_dict()
    if as_json:
        say_json(told)
        return
    for folder, one in results:
        say(_summary(folder, one))
    if over:
        say(
            f"{len(results)} seeds: {results[0][1].measure} {over.mean:.4f} ± {over.deviation:.4f}, "
            f"95 % interval of the mean {over.low:.4f} to {over.high:.4f}"
        )
    say_failures([failure.as_dict() for failure in results[0][1].failed])


def _summary(folder: Path, result: Result) -> str:
    return (
        f"{folder}: {result.parameters:,} parameters, "
        f"{len(result.history)} epochs of {result.seconds_per_epoch:.1f} s; "
        f"best after epoch {result.best.epoch}: {result.measure} {result.best.score:.4f}"
    )


def _log_epoch(epoch: Epoch) -> None:
    logging.getLogger("cbir_faiss.train").info("epoch", extra={"data": vars(epoch)})


def _epoch(epoch: Epoch) -> str:
    score = "" if epoch.score is None else f"  held out: loss {epoch.held_out_loss:.4f} score {epoch.score:.4f}"
    return f"epoch {epoch.epoch}: loss {epoch.loss:.4f}{score}  {epoch.seconds:.1f} s"
