"""The command line: results go to stdout, progress and errors to stderr.

Commands stand in modules by subject, imported when one of theirs is run; ``printing`` is the only place that prints.
"""

from __future__ import annotations

import click

from cbir_faiss.cli._group import Commands, Later

# The list of `cbir --help`, which imports none of these modules; a test compares it with what the commands say.
_COMMANDS = {
    "starting": {
        "init": "Write a first config, with comments, for the pictures in FOLDER; a file that is there is left alone.",
    },
    "fetching": {
        "data": "Download the data set NAME (caltech101, cifar10, mnist), check it, and lay it out for a source.",
    },
    "comparison": {
        "compare": "Run every combination of CONFIG; write results and report, print a table and the row to use.",
        "report": "Write report.html again from the results stored in FOLDER.",
    },
    "tuning": {
        "tune": "Find the cheapest index that reaches the targets on your data, and write the config that builds it.",
    },
    "training": {
        "train": "Train the network that CONFIG describes; the best by the map of held-out pictures is kept.",
    },
    "building": {
        "build": "Build the one collection that CONFIG describes, or bring it up to what its source has become.",
        "add": "Add files, or all images below folders, to the collection FOLDER, in one step.",
        "delete": "Delete items from the collection FOLDER, by id or all that a filter matches, in one step.",
    },
    "reading": {
        "duplicates": "Find pictures that are in FOLDER more than once: the same bytes, or nearly the same code.",
        "search": "Find the items of the collection FOLDER most like each of IMAGES.",
        "info": "What the collection FOLDER holds.",
        "verify": "Read every byte of the collection FOLDER and say which files are not as they were written.",
    },
    "examining": {
        "recall": "How much of what is nearest a search finds, in a collection, an index file, or an engine that runs.",
        "plan": "What a build of CONFIG takes for so many items: bytes of index, memory and disk, and seconds.",
        "doctor": "Will binary codes work for these vectors? Measured on a sample, with one recommendation.",
    },
    "serving": {
        "serve": "Serve a page and an HTTP API over collections, folders of photos, and runs of cbir compare.",
    },
    "engines": {
        "push": "Make an engine hold what the collection FOLDER holds: codes (or floats), ids and payload.",
        "pull": "Copy the vectors and payload that an engine holds into a local collection, under the same ids.",
        "export": "Write the collection FOLDER to one file for other programs: ids, paths, labels, payload, vectors.",
    },
    "plugins": {"plugins": "Every installed plugin and its options."},
}


@click.group(
    cls=Commands,
    commands={
        name: Later(name, f"cbir_faiss.cli.{module}", summary)
        for module, summaries in _COMMANDS.items()
        for name, summary in summaries.items()
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="cbir-faiss")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to stderr.")
def main(verbose: bool) -> None:
    """Image embeddings, raw or as binary codes, in FAISS or a vector database.

    \b
    cbir init photos/                       a first config for a folder of pictures: photos.yaml
    cbir build photos.yaml                  a collection of them: photos.cbir
    cbir search photos.cbir query.jpg       the pictures most like one
    cbir serve photos/                      all of it at once, to look at in the browser
    \b
    cbir init photos/ --compare             and to see what each choice costs on them
    cbir compare photos-compare.yaml
    """
    import logging

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
