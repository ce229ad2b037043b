"""`scenesweep models`: list models and show their cards."""

from __future__ import annotations

import argparse
import sys

import yaml

from jobs.cli import run_job
from model.checkpoint import built_in_models, open_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="list the built-in models")
    show = actions.add_parser("show", help="print a model's card")
    show.add_argument("model", help="name of a built-in model, or a model file")


def run(arguments: argparse.Namespace) -> int:
    """List or show."""
    if arguments.action == "list":
        for name, path in built_in_models().items():
            card = open_model(str(path)).card
            print(f"{name}\t{', '.join(card.classes)}\t{card.gsd_m} m\t{card.description}")
    else:
        model = open_model(arguments.model)
        values = model.card.model_dump(mode="json") | {"sha256": model.sha256}
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")
    return 0


if __name__ == "__main__":
    sys.exit(run_job("models"))
