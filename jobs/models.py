"""`scenesweep models`: list models, show cards, import weights, shrink files, export."""

from __future__ import annotations

import argparse
import json
import logging
import os.path
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from scenesweep.jobs.cli import run_job
from scenesweep.model.card import ModelCard, read_card
from scenesweep.model.errors import ModelError
from scenesweep.model.files.model_file import (
    SUFFIX,
    ModelFile,
    built_in_models,
    open_model,
    write_atomically,
)
from scenesweep.pipeline.publish.stac.model_item import model_item
from scenesweep.pipeline.storage.remote import local_name

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list", help="list the built-in models and the model files in folders"
    )
    listing.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="folders to search for model files"
    )
    show = actions.add_parser("show", help="print a model's card")
    show.add_argument("model", help="name of a built-in model, or a model file")
    for parts in (listing, show):
        parts.add_argument("--json", action="store_true", help="print JSON")
    _add_import(
        actions.add_parser("import", help="make a model file from weights of another library")
    )
    shrink = actions.add_parser(
        "shrink", help="write a smaller model file, with large convolutions in 8 bits"
    )
    shrink.add_argument("model", help="name of a built-in model, or a model file")
    shrink.add_argument("--out", type=Path, required=True, help="model file to write")
    export = actions.add_parser(
        "export", help="describe a model as a STAC item (MLM 1.5), or write it as ONNX"
    )
    export.add_argument("model", help="name of a built-in model, or a model file")
    export.add_argument(
        "--onnx",
        action="store_true",
        help="write ONNX with the metadata that the QGIS plugin Deepness reads",
    )
    export.add_argument("--out", type=Path, help="file to write (default: NAME.json, NAME.onnx)")
    export.add_argument(
        "--href", help="address of the model file (default: its path relative to the item)"
    )


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=Path,
        metavar="FILE",
        help="state_dict of a RetinaNet of torchvision, Detectron2 or mmdetection, Lightning "
        "checkpoint, or DeepForest folder",
    )
    parser.add_argument("--as", dest="card", type=Path, help="card of the model (YAML)")
    parser.add_argument("--out", type=Path, help=f"model file to write (default: NAME{SUFFIX})")
    parser.add_argument(
        "--gsd-m",
        type=float,
        help="DeepForest without --as: metres per pixel of its imagery (default: 0.1)",
    )
    parser.add_argument(
        "--patch-px",
        type=int,
        help="DeepForest without --as: its patch_size (default: 400)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the action that the arguments name."""
    actions = {
        "list": _list,
        "show": _show,
        "import": _import,
        "shrink": _shrink,
        "export": _export,
    }
    actions[arguments.action](arguments)
    return 0


def _list(arguments: argparse.Namespace) -> None:
    rows = [
        {"name": name, "file": str(path), "sha256": model.sha256}
        | model.card.model_dump(mode="json", include={"classes", "gsd_m", "description"})
        for name, path, model in _models(arguments.folders)
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['name']}\t{', '.join(row['classes'])}\t{row['gsd_m']} m\t{row['description']}")


def _models(folders: list[Path]) -> Iterator[tuple[str, Path, ModelFile]]:
    """Yield the built-in models by name, and those in `folders` by path."""
    for name, path in built_in_models().items():
        yield name, path, open_model(str(path))
    for folder in folders:
        if not folder.is_dir():
            raise ModelError(
                f"{folder}: expected a folder with model files, there is no such folder"
            )
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                yield str(path), path, open_model(str(path))
            except ModelError as error:  # the folder may also have safetensors files of others
                log.warning("ignored: %s", error)


def _show(arguments: argparse.Namespace) -> None:
    model = open_model(local_name(arguments.model))
    values = model.card.model_dump(mode="json") | {"sha256": model.sha256}
    if arguments.json:
        print(json.dumps(values, indent=2))
    else:
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")


def _import(arguments: argparse.Namespace) -> None:
    from scenesweep.model.files.convert import (  # imports torch, which takes seconds
        import_weights,
        write_model,
    )

    card = _card(arguments)
    weights = import_weights(arguments.source, card)
    out = arguments.out or Path(f"{card.name}{SUFFIX}")
    write_model(out, card, weights)
    log.info("%s: %s, at %g m", card.name, ", ".join(card.classes), card.gsd_m)
    print(out)


def _card(arguments: argparse.Namespace) -> ModelCard:
    """Read the card given by `--as`, or make that of a DeepForest folder."""
    scale = {"gsd_m": arguments.gsd_m, "patch_px": arguments.patch_px}
    given: dict[str, Any] = {name: value for name, value in scale.items() if value is not None}
    if arguments.card is None:
        from scenesweep.model.files.convert import deepforest_card, describe_weights

        if not arguments.source.is_dir():
            description = describe_weights(arguments.source)
            raise ModelError(
                f"{arguments.source}: expected --as card.yaml with classes, bands and scale "
                "(only a DeepForest folder needs no card)"
                + (f"; {description}" if description else "")
            )
        return deepforest_card(arguments.source, **given)
    if given:
        raise ModelError("expected either --as, or --gsd-m and --patch-px, got both")
    return read_card(arguments.card)


def _shrink(arguments: argparse.Namespace) -> None:
    from scenesweep.model.files.checkpoint import shrink_model

    model = open_model(local_name(arguments.model))
    shrink_model(model, arguments.out)
    sizes = len(model.content) / 1e6, arguments.out.stat().st_size / 1e6
    log.info("%s: %.1f MB, now %.1f MB; evaluate it again before use", model.card.name, *sizes)
    print(arguments.out)


def _export(arguments: argparse.Namespace) -> None:
    model = open_model(local_name(arguments.model))
    if arguments.onnx:
        _export_onnx(model, arguments)
        return
    out = arguments.out or Path(f"{model.card.name}.json")
    file = built_in_models().get(arguments.model, Path(arguments.model))
    href = arguments.href or Path(os.path.relpath(file, out.parent)).as_posix()
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(model_item(model, href=href), indent=2, ensure_ascii=False)
    out.write_text(text + "\n", encoding="utf-8")
    print(out)


def _export_onnx(model: ModelFile, arguments: argparse.Namespace) -> None:
    if arguments.href:
        raise ModelError("--href: belongs to a STAC item, not to --onnx")
    from scenesweep.model.files.onnx_file import onnx_content  # imports torch, which takes seconds

    out = arguments.out or Path(f"{model.card.name}.onnx")
    content = onnx_content(model)
    with write_atomically(out) as file:
        file.write(content)
    print(out)


if __name__ == "__main__":
    sys.exit(run_job("models"))
