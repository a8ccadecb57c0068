"""The command line: the only place that prints. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbir_faiss.base.registry import GROUPS, load, names
from cbir_faiss.errors import CbirError, ConfigError

if TYPE_CHECKING:
    from cbir_faiss.collection import Collection, Match
    from cbir_faiss.training.checkpoint import Epoch

BAD_USAGE = 2


class _Commands(click.Group):
    """Turns our errors into one line on stderr and an exit status: 1 the work failed, 2 bad usage or config."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ConfigError as error:
            _fail(error, BAD_USAGE)
        except CbirError as error:
            _fail(error, 1)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except BrokenPipeError:
            sys.exit(0)


def _fail(message: object, status: int) -> None:
    click.echo(str(message).replace("\n", " "), err=True)
    sys.exit(status)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="cbir-faiss")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to stderr.")
def main(verbose: bool) -> None:
    """Image embeddings, raw or as binary codes, in FAISS or a vector database.

    \b
    cbir compare configs/demo.yaml --out runs/demo      what each choice costs, on your data
    cbir build photos.yaml --out photos.cbir            one collection of it
    cbir search photos.cbir query.jpg -k 5              the pictures most like one
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")


@main.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the results. [runs/<config's name>]"
)
def compare(config: Path, out: Path | None) -> None:
    """Run every combination of CONFIG; write results.json and report.html, print a table.

    \b
    cbir compare configs/demo.yaml --out runs/demo
    """
    from cbir_faiss.comparison.run import run
    from cbir_faiss.config import load_config
    from cbir_faiss.report.recommend import recommend

    out = out or Path("runs", config.stem)
    with _Bar("extracting") as bar:
        results = run(load_config(config), out, progress=bar.progress, report=bar.note)
    click.echo(_table(results["rows"]))
    for skipped in results["skipped"]:
        click.echo(f"skipped: {skipped['title']} {skipped['combination']}: {skipped['reason']}", err=True)
    _report_failures(results["failed"])
    advice = recommend(results["rows"])
    if advice:
        click.echo(f"\n{advice[1]}")
    click.echo(f"\n{out / 'report.html'}")


@main.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to train into.")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON.")
@click.option("--log-json", is_flag=True, help="Log progress and epochs to stderr, one JSON object a line.")
def train(config: Path, out: Path, as_json: bool, log_json: bool) -> None:
    """Train the network that CONFIG describes; the best one by the map of held-out pictures is kept in the folder.

    Started again after being killed, it goes on after the last whole epoch. The folder is then an extractor:
    {name: trained, path: DIR}.

    \b
    cbir train configs/papers/finetune-caltech101.yaml --out runs/finetuned
    """
    from cbir_faiss.base.options import need

    need("torch", "torch")
    from cbir_faiss.training.config import load_training
    from cbir_faiss.training.loop import train

    training = load_training(config)
    with _progress(log_json, "reading") as reading, _Bar("training", unit="batch") as bar:
        report = _log_epoch if log_json else bar.line(_epoch)
        result = train(training, out, progress=reading, steps=None if log_json else bar.progress, report=report)
    if as_json:
        click.echo(json.dumps(result.as_dict(), ensure_ascii=False))
        return
    click.echo(
        f"{out}: {result.parameters:,} parameters, {len(result.history)} epochs of {result.seconds_per_epoch:.1f} s; "
        f"best after epoch {result.best.epoch}: {result.measure} {result.best.score:.4f}"
    )
    _report_failures([failure.as_dict() for failure in result.failed])


def _log_epoch(epoch: Epoch) -> None:
    logging.getLogger("cbir_faiss.train").info("epoch", extra={"data": vars(epoch)})


def _epoch(epoch: Epoch) -> str:
    score = "" if epoch.score is None else f"  held out: loss {epoch.held_out_loss:.4f} score {epoch.score:.4f}"
    return f"epoch {epoch.epoch}: loss {epoch.loss:.4f}{score}  {epoch.seconds:.1f} s"


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(folder: Path) -> None:
    """Write report.html again from the results stored in FOLDER.

    \b
    cbir report runs/demo
    """
    from cbir_faiss.report.report import write_report

    click.echo(write_report(folder))


@main.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The collection to make.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("--log-json", is_flag=True, help="Log progress and phases to stderr, one JSON object a line.")
def build(config: Path, out: Path, as_json: bool, log_json: bool) -> None:
    """Build the one collection that CONFIG describes, or bring it up to what its source has become.

    Started again after being killed, it goes on where it was.

    \b
    cbir build photos.yaml --out photos.cbir
    """
    from cbir_faiss.collection import Collection

    with _progress(log_json) as progress, Collection.build(config, out, progress=progress) as collection:
        done = collection.report
    assert done is not None
    if as_json:
        click.echo(json.dumps(done.as_dict(), ensure_ascii=False))
        return
    click.echo(
        f"{out}: {done.items:,} items in {done.seconds['total']:.1f} s, {done.resumed_items:,} of them extracted before"
    )
    if done.images_per_second:
        new = done.items - done.resumed_items
        click.echo(f"{done.images_per_second:,.1f} images/s; {_seconds(done.seconds, new)}")
    click.echo(f"peak memory {done.peak_rss_bytes / 1e6:,.0f} MB")
    for reason, count in Counter(failure.reason for failure in done.failed).most_common():
        click.echo(f"{count:,} left out: {reason}")
    _report_failures([failure.as_dict() for failure in done.failed])


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("--log-json", is_flag=True, help="Log progress to stderr, one JSON object a line.")
def add(folder: Path, paths: tuple[Path, ...], as_json: bool, log_json: bool) -> None:
    """Add files, or all images below folders, to the collection FOLDER: all of them or, if it is killed, none.

    A file that is there with another content is replaced, under a new id.

    \b
    cbir add photos.cbir new/ holiday/beach.jpg
    """
    from cbir_faiss.collection import Collection

    with _progress(log_json) as progress, Collection.open(folder) as collection:
        done = collection.add(paths, progress=progress)
        items = len(collection)
    if as_json:
        failed = [failure.as_dict() for failure in done.failed]
        click.echo(json.dumps({**vars(done), "failed": failed, "items": items}, ensure_ascii=False))
        return
    click.echo(
        f"{folder}: {done.added:,} added ({done.replaced:,} in place of older ones), {done.unchanged:,} were there; "
        f"{items:,} items"
    )
    _report_failures([failure.as_dict() for failure in done.failed])


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--id", "ids", type=int, multiple=True, help="An item to delete; may be given again.")
@click.option("--where", help="A filter: 'label = \"cat\" and year >= 1990'.")
def delete(folder: Path, ids: tuple[int, ...], where: str | None) -> None:
    """Delete items from the collection FOLDER, by id or all that a filter matches, in one step.

    \b
    cbir delete photos.cbir --id 17 --id 18
    cbir delete photos.cbir --where 'label = "cat"'
    """
    if bool(ids) == bool(where):
        raise click.UsageError("give --id, or --where")
    from cbir_faiss.collection import Collection

    with Collection.open(folder) as collection:
        count = collection.delete(ids, where=where)
        click.echo(f"{folder}: {count:,} deleted, {len(collection):,} items left")


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--radius", type=int, help="Bits by which codes may differ; 0: equal codes. [a 32nd of the code]")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with the pictures, too.")
@click.option("--json", "as_json", is_flag=True, help="One list a group of {id, path, label, distance, same}.")
def duplicates(folder: Path, radius: int | None, html: Path | None, as_json: bool) -> None:
    """Find pictures that are in the collection FOLDER more than once: the same bytes, or nearly the same code.

    \b
    cbir duplicates photos.cbir --radius 8 --html duplicates.html
    """
    from cbir_faiss.collection.duplicates import find_duplicates, write_page
    from cbir_faiss.storage.store import Store

    with Store.open(folder) as store:
        groups = find_duplicates(store, radius)
        if html:
            write_page(store, groups, html)
    if as_json:
        click.echo(json.dumps([[vars(one) for one in group] for group in groups], ensure_ascii=False))
        return
    for number, group in enumerate(groups, 1):
        click.echo(f"group {number}")
        for one in group:
            how = "first" if one is group[0] else "same bytes" if one.same else f"{one.distance} bits"
            click.echo(f"  {how:>10}  {one.id:8d}  {one.path}  {'' if one.label is None else one.label}")
    click.echo(f"{len(groups):,} groups of {sum(map(len, groups)):,} items")
    if html:
        click.echo(str(html))


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option("-k", default=5, show_default=True, help="How many to find.")
@click.option("--where", help="A filter: 'label = \"cat\" and year >= 1990'.")
@click.option("--id", "ids", type=int, multiple=True, help="Query by an item of the collection.")
@click.option(
    "--vector", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Query by vectors, a .npy (n, dim)."
)
@click.option("--json", "as_json", is_flag=True, help="One list a query of {id, path, label, distance}.")
def search(
    folder: Path,
    images: tuple[Path, ...],
    k: int,
    where: str | None,
    ids: tuple[int, ...],
    vector: Path | None,
    as_json: bool,
) -> None:
    """Find the items of the collection FOLDER most like each of IMAGES.

    \b
    cbir search photos.cbir query.jpg -k 5
    cbir search photos.cbir --id 17 --where 'label = "cat"' --json
    """
    if sum(map(bool, (images, ids, vector))) != 1:
        raise click.UsageError("give images, or --id, or --vector")
    from cbir_faiss.collection import Collection

    with Collection.open(folder) as collection:
        found, queries = _search(collection, images, ids, vector, k, where)
    if as_json:
        click.echo(json.dumps([[match.as_dict() for match in some] for some in found], ensure_ascii=False))
        return
    for query, some in zip(queries, found, strict=True):
        click.echo(query)
        for match in some:
            click.echo(
                f"  {match.distance:10.4f}  {match.id:8d}  {match.path}  {'' if match.label is None else match.label}"
            )


def _search(
    collection: Collection,
    images: tuple[Path, ...],
    ids: tuple[int, ...],
    vector: Path | None,
    k: int,
    where: str | None,
) -> tuple[list[list[Match]], list[str]]:
    if ids:
        return collection.search_ids(ids, k, where), [f"id {i}" for i in ids]
    if vector:
        queries = _vectors(vector)
        return collection.search(queries, k, where), [f"vector {i}" for i in range(len(queries))]
    return collection.search(list(images), k, where), [str(image) for image in images]


def _vectors(path: Path) -> Any:
    import numpy as np

    try:
        queries = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise CbirError(f"{path}: not a .npy file of vectors ({error})") from error
    return queries[None] if queries.ndim == 1 else queries


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info(folder: Path, as_json: bool) -> None:
    """What the collection FOLDER holds.

    \b
    cbir info photos.cbir
    """
    from cbir_faiss.collection import Collection

    with Collection.open(folder) as collection:
        facts = collection.info()
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    for key, value in facts.items():
        click.echo(f"{key:<12} {_fact(key, value)}")


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--against", metavar="BACKEND", help="Compare with what was pushed to this engine; key=value… follow.")
@click.argument("options", nargs=-1, metavar="[KEY=VALUE]...")
def verify(folder: Path, against: str | None, options: tuple[str, ...]) -> None:
    """Read every byte of the collection FOLDER and say which files are not as they were written.

    With --against, compare a deployed copy with it instead: missing, extra and differing items, and whether sampled
    queries find as near neighbours.

    \b
    cbir verify photos.cbir
    cbir verify photos.cbir --against qdrant url=http://localhost:6333 collection=photos
    """
    if against is not None:
        _verify_deployed(folder, against, options)
        return
    if options:
        raise click.UsageError("key=value belongs to --against")
    from cbir_faiss.storage.manifest import damaged_files, read_manifest

    manifest = read_manifest(folder)
    damaged = damaged_files(folder, manifest)
    for name, how in damaged:
        click.echo(f"{folder / name}: {how}")
    if damaged:
        raise CbirError(f"{folder}: {len(damaged)} of {len(manifest.files)} files are damaged")
    click.echo(f"{folder}: {len(manifest.files)} files, {manifest.items:,} items, all as they were written")


def _verify_deployed(folder: Path, name: str, options: tuple[str, ...]) -> None:
    from cbir_faiss.collection.sync import Target, difference

    with _Bar("comparing", unit="item") as bar:
        found = difference(folder, Target(name, _key_values(options)), progress=bar.progress)
    for what in ("missing", "extra", "vectors", "payload"):
        ids = getattr(found, what)
        shown = ", ".join(map(str, ids[:5].tolist())) + (", …" if len(ids) > 5 else "")
        click.echo(f"{_DIFFERENCES[what]:<22} {len(ids):,}" + (f"  (ids {shown})" if len(ids) else ""))
    if found.agreement is not None:
        click.echo(f"{'neighbours as near':<22} {found.agreement:.1%}")
    if found:
        raise CbirError(f"{name} does not hold what {folder} holds")


_DIFFERENCES = {
    "missing": "missing there",
    "extra": "only there",
    "vectors": "other vector",
    "payload": "other payload",
}


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--to", "name", required=True, metavar="BACKEND", help="The engine to push to; key=value… are its options."
)
@click.argument("options", nargs=-1, metavar="[KEY=VALUE]...")
def push(folder: Path, name: str, options: tuple[str, ...]) -> None:
    """Store the collection FOLDER in an engine: codes (or floats), ids and payload. Interrupted, it goes on.

    \b
    cbir push photos.cbir --to qdrant url=http://localhost:6333 collection=photos
    cbir push photos.cbir --to pgvector path=pg/ table=photos
    """
    from cbir_faiss.collection.sync import Target, push
    from cbir_faiss.collection.transfer import ONE_SIGN

    with _Bar("pushing", unit="item") as bar:
        done = push(folder, Target(name, _key_values(options)), progress=bar.progress)
    click.echo(f"{name}: {done.items:,} items, {done.resumed:,} of them stored before")
    if done.one_sign is not None and done.one_sign > ONE_SIGN:
        click.echo(
            f"note: {done.one_sign:.0%} of these values have one sign, so an engine's own binary quantization would "
            "tell little apart; push a collection built with codec 'rotate' instead",
            err=True,
        )


@main.command()
@click.argument("name", metavar="BACKEND")
@click.argument("options", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The collection to make.")
def pull(name: str, options: tuple[str, ...], out: Path) -> None:
    """Copy the vectors and payload that an engine holds into a local collection, for `cbir compare` to run over.

    \b
    cbir pull qdrant url=http://localhost:6333 collection=photos --out photos.cbir
    cbir pull faiss file=photos.index --out photos.cbir
    """
    from cbir_faiss.collection.sync import Target, pull

    with _Bar("pulling", unit="item") as bar:
        done = pull(Target(name, _key_values(options)), out, progress=bar.progress)
    click.echo(f"{out}: {done.items:,} items")
    _report_failures([failure.as_dict() for failure in done.failed])


def _key_values(words: tuple[str, ...]) -> dict[str, Any]:
    """``key=value`` words as options; values are read as YAML reads them: numbers, true, lists, else text."""
    import yaml

    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise click.UsageError(f"options are key=value, not {word!r}")
        options[key] = yaml.safe_load(value) if value else ""
    return options


@main.command()
def plugins() -> None:
    """Every installed plugin and its options."""
    for group in GROUPS:
        click.echo(group)
        for name in names(group):
            click.echo(f"  {name:<24} {_options_of(group, name)}")


def _options_of(group: Any, name: str) -> str:
    try:
        plugin = load(group, name)
    except CbirError as error:
        return f"({error})"
    fields = plugin.Options.model_fields.items()
    return "  ".join(
        key if field.is_required() else f"{key}={field.get_default(call_default_factory=True)}" for key, field in fields
    )


def _fact(key: str, value: Any) -> str:
    if key == "bytes":
        return f"{sum(value.values()):,} in {len(value)} files"
    if key == "labels":
        shown = ", ".join(f"{label} ({count})" for label, count in list(value.items())[:8])
        return f"{len(value)}: {shown}{', …' if len(value) > 8 else ''}"
    if isinstance(value, dict):
        return " ".join([value["name"], *(f"{k}={v}" for k, v in value["options"].items())])
    return f"{value:,}" if isinstance(value, int) else str(value)


def _seconds(seconds: dict[str, float], items: int) -> str:
    """Each stage with its time and, where it goes item by item, its rate."""
    rates = {name: f" ({items / seconds[name]:,.0f}/s)" for name in ("extract", "encode", "store") if seconds[name]}
    return ", ".join(f"{name} {spent:.1f} s{rates.get(name, '')}" for name, spent in seconds.items() if name != "total")


def _report_failures(failed: list[dict[str, str]], most: int = 5) -> None:
    for failure in failed[:most]:
        click.echo(f"left out: {failure['path']}: {failure['reason']}", err=True)
    if len(failed) > most:
        click.echo(f"left out: {len(failed) - most} more, listed in the results", err=True)


def _table(rows: list[dict[str, Any]]) -> str:
    from cbir_faiss.report.recommend import bytes_per_item, main_measure, name_of

    measure = main_measure(rows)
    knn = next(name for name in rows[0]["metrics"] if name.startswith("knn_recall@"))
    head = ["extractor", "combination", measure, "worst–best", knn, "bytes/item", "resident MB", "p50 ms", "QPS"]
    lines = [head]
    for row in rows:
        low, high = row["metrics"].get(f"{measure}_min"), row["metrics"].get(f"{measure}_max")
        resident = row["bytes"]["resident"]
        lines.append(
            [
                row["title"],
                name_of(row),
                _cell(row["metrics"][measure]),
                "–" if low is None else f"{low:.3f}–{high:.3f}",
                _cell(row["metrics"][knn]),
                f"{bytes_per_item(row):,.0f}",
                "–" if resident is None else f"{resident / 1e6:.2f}",
                f"{row['latency_ms']['p50']:.2f}",
                f"{row['qps']:,.0f}",
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    aligned = [
        [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


@contextmanager
def _progress(log_json: bool, what: str = "extracting") -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, or lines of JSON on request."""
    if log_json:
        from cbir_faiss._lib.logs import LoggedProgress
        from cbir_faiss._lib.logs import log_json as to_json

        to_json(sys.stderr)
        yield LoggedProgress(logging.getLogger("cbir_faiss.collection.build"))
        return
    with _Bar(what) as bar:
        yield bar.progress


class _Bar:
    """Progress on stderr, on a terminal only."""

    def __init__(self, what: str, unit: str = "img") -> None:
        self._what, self._unit = what, unit
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def progress(self) -> Callable[[int, int], None] | None:
        return self._progress if sys.stderr.isatty() else None

    @property
    def note(self) -> Callable[[str], None] | None:
        return self._note if sys.stderr.isatty() else None

    def line(self, text_of: Callable[[Any], str]) -> Callable[[Any], None] | None:
        """Prints a line of its own for whatever it is called with."""

        def say(what: Any) -> None:
            self._end()
            click.echo(text_of(what), err=True)

        return say if sys.stderr.isatty() else None

    def _progress(self, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None or self._bar.total != total:
            self._end()
            self._bar = tqdm(total=total, desc=self._what, unit=self._unit, file=sys.stderr)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._end()

    def _note(self, text: str) -> None:
        self._end()
        click.echo(f"\r\x1b[K{text[:100]}", err=True, nl=False)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


if __name__ == "__main__":
    main()
